"""Charts over runs: ratios, shares of the floor, and the host's instructions."""

from collections.abc import Sequence

from benchmarks.history import Run
from benchmarks.report import drawing
from benchmarks.report.drawing import CYCLE, EAGER, Chart
from benchmarks.report.trend import Trend, instructions

NAMES = ("trend", "instructions")
"""The charts' names."""
MARKERS = "os^DvPX"


def ratios(run: Run, trend: Trend) -> Chart:
    """Ratios above, shares of the floor below: one panel per direction, one line per family."""
    figure = drawing.new_figure(
        f"From run to run: {trend.common} cells that all {len(trend.runs)} runs have", run, 6.4
    )
    above, below = figure.subplots(2, len(trend.directions), sharex=True, sharey="row", squeeze=False)
    for row, values in ((above, trend.ratios), (below, trend.shares)):
        for axes, direction in zip(row, trend.directions, strict=True):
            for number, family in enumerate(trend.families):
                if (direction, family) in values:
                    color, marker = _look(number)
                    style = {"color": color, "marker": marker, "markersize": 4, "label": family}
                    axes.plot(values[direction, family], **style)
            axes.grid(alpha=0.25)
    for axes, direction in zip(above, trend.directions, strict=True):
        axes.axhline(1, color="black", linewidth=1)
        axes.set_title(direction, fontsize=9)
    for axes in (axes for axes in below if not axes.lines):
        axes.text(0.5, 0.5, "no floor", ha="center", color=EAGER, transform=axes.transAxes)
    for axes in below:
        axes.set_xticks(range(len(trend.runs)), _names(trend.runs), rotation=90, fontsize=7)
    every = [value for values in trend.ratios.values() for value in values]
    drawing.logarithmic(above[0], "y", min(1.0, *every), max(every))
    below[0].set_ylim(0, 1.08 * max([1.0, *(value for values in trend.shares.values() for value in values)]))
    below[0].yaxis.set_major_formatter(lambda value, _: f"{value:.0%}")
    above[0].set_ylabel("times faster than eager,\ngeometric mean")
    below[0].set_ylabel("share of the floor,\nmedian")
    for axes in (*above, *below):
        axes.tick_params(axis="y", labelsize=8)
    drawing.legend(figure, [*above, *below])
    changes = ", ".join(
        f"{direction} {family} {values[0]:.2f} to {values[-1]:.2f}"
        for (direction, family), values in trend.ratios.items()
    )
    alt = f"Times faster than eager from the first to the last of {len(trend.runs)} runs: {changes}."
    return Chart("trend", "Speed over commits", "", alt, drawing.png(figure))


def host(run: Run, runs: Sequence[Run]) -> Chart | None:
    """Instructions per call over the runs that counted them. None if `run` did not."""
    counted, calls = instructions(runs, run)
    if not counted or counted[-1] is not run:
        return None
    figure = drawing.new_figure("Instructions of the host for one tiny call", run, 5.6, drawing.NARROW)
    axes = figure.add_subplot()
    last = {}
    for number, (call, counts) in enumerate(calls.items()):
        points = [(place, count) for place, count in enumerate(counts) if count is not None]
        color, marker = _look(number)
        axes.plot(*zip(*points, strict=True), color=color, marker=marker, markersize=4, label=call)
        last[call] = points[-1][1]
        axes.annotate(f"{last[call]:,}", points[-1], (6, 3), textcoords="offset points", fontsize=7)
    axes.set_xticks(range(len(counted)), _names(counted), rotation=90, fontsize=7)
    axes.margins(x=0.1)
    every = [count for counts in calls.values() for count in counts if count is not None]
    drawing.logarithmic(axes, "y", max(min(every), 1), max(*every, 1))
    axes.yaxis.set_major_formatter(lambda value, _: f"{value:,.0f}")
    axes.set_ylabel("instructions, logarithmic; less is better")
    axes.grid(alpha=0.25)
    drawing.legend(figure, [axes])
    alt = "Instructions of the host: " + ", ".join(f"{call} {count:,}" for call, count in last.items()) + "."
    return Chart("instructions", "Instructions of the host", "", alt, drawing.png(figure))


def _look(number: int) -> tuple[str, str]:
    """A line's colour and marker. When colours repeat, markers differ."""
    turn, place = divmod(number, len(CYCLE))
    return CYCLE[place], MARKERS[(place + turn) % len(MARKERS)]


def _names(runs: Sequence[Run]) -> list[str]:
    return [f"{run.commit} {run.date[:10]}" for run in runs]

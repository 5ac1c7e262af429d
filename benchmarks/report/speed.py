"""Charts of speed: speedup over eager, and achieved bandwidth beside possible bandwidth."""

import statistics
from collections import defaultdict
from collections.abc import Iterator, Sequence

from matplotlib.axes import Axes

from benchmarks.grid.cells import STEPS
from benchmarks.history import Run, slug
from benchmarks.report import drawing
from benchmarks.report.drawing import EAGER, OTHER_MARKERS, OURS, SLOWER, Chart
from benchmarks.report.figures import (
    ROW_NAMES,
    Cell,
    by_way,
    directions,
    families,
    other_rows,
    slower,
    summaries,
)

BAR = 0.72


def bars(run: Run, found: Sequence[Cell]) -> Iterator[Chart]:
    """One chart per family."""
    for family in families(found):
        cells = [cell for cell in found if cell.family == family]
        name = "Whole training steps" if family == STEPS else f"Layers ({family})"
        ratios = [cell.ratio for cell in cells]
        total = summaries(cells)[-1]
        figure = drawing.panels(
            f"{name}: times faster than eager nn.BatchNorm + nn.ReLU",
            run,
            cells,
            _bars,
            "eager's time / ours, logarithmic; more is better",
        )
        ends = [1.0, *ratios, *(row.ratio for cell in cells for row in cell.others.values())]
        drawing.logarithmic(figure.axes[0], "x", min(ends), 1.6 * max(ends))
        alt = (
            f"Bars: {name}, {len(cells)} cells, {min(ratios):.2f} to {max(ratios):.2f} times faster than "
            f"eager, geometric mean {total.ratio:.2f}; {total.slower_than_eager} slower than eager."
        )
        words = "A bar begins at eager's time: to the right faster, to the left slower."
        yield Chart(f"speedup-{slug(family)}", name, words, alt, drawing.png(figure))


def _bars(axes: Axes, cells: Sequence[Cell], places: Sequence[int]) -> None:
    for marked, color, label in ((False, OURS, "ours"), (True, SLOWER, "ours, slower than eager")):
        drawn = [
            (place, cell) for place, cell in zip(places, cells, strict=True) if slower(cell.ratio) == marked
        ]
        if drawn:
            widths = [cell.ratio - 1 for _, cell in drawn]
            axes.barh([place for place, _ in drawn], widths, BAR, left=1, color=color, label=label)
    for name, marker in zip(other_rows(cells), OTHER_MARKERS, strict=False):
        marks = [(c.others[name].ratio, p) for p, c in zip(places, cells, strict=True) if name in c.others]
        style = {"color": "black", "markerfacecolor": "white", "markersize": 4}
        drawing.points(axes, marks, ROW_NAMES.get(name, name), marker=marker, **style)
    for place, cell in zip(places, cells, strict=True):
        end = max(1.0, cell.ratio, *(row.ratio for row in cell.others.values()))
        text = f"{cell.ratio:.1f}" if cell.ratio >= 10 else f"{cell.ratio:.2f}"
        axes.annotate(text, (end, place), (6, 0), textcoords="offset points", va="center", fontsize=7)
    axes.axvline(1, color="black", linewidth=1, label="eager = 1")
    axes.set_title(f"geometric mean {statistics.geometric_mean(cell.ratio for cell in cells):.2f}")


def rooflines(run: Run, found: Sequence[Cell]) -> Iterator[Chart]:
    """A chart of the calls that have a floor, and one of replays of graphs."""
    cells = [cell for cell in found if cell.speed.floor_seconds > 0 and cell.speed.bytes > 0]
    for ending, of_way in by_way(cells).items():
        yield _roofline(run, of_way, ending)


def _roofline(run: Run, cells: Sequence[Cell], ending: str) -> Chart:
    """One panel per direction."""
    names = directions(cells)
    columns = min(2, len(names))
    figure = drawing.new_figure(
        f"Achieved bandwidth beside the possible one{ending}", run, 1.2 + 3.6 * ((len(names) + 1) // 2)
    )
    grid = figure.subplots((len(names) + 1) // 2, columns, sharex=True, sharey=True, squeeze=False)
    panels = list(grid.flat)
    for axes, direction in zip(panels, names, strict=False):
        _rates_over_sizes(axes, [cell for cell in cells if cell.speed.direction == direction])
        axes.set_title(direction, fontsize=9)
    drawing.hide(panels[len(names) :], above=panels[:-columns])
    sizes = [cell.speed.bytes for cell in cells]
    rates = [rate for cell in cells for rate in (*_rates(cell).values(), _possible(cell))]
    drawing.logarithmic(panels[0], "x", min(sizes), max(sizes), "B")
    drawing.logarithmic(panels[0], "y", min(rates), max(rates))
    figure.supylabel("mandatory traffic / time, GB/s", fontsize=9)
    drawing.legend(figure, panels[: len(names)], "mandatory traffic of one call: each tensor once")
    shares = [cell.share or 0.0 for cell in cells]
    alt = (
        f"Roofline of {len(cells)} cells{ending}: ours reaches {min(shares):.0%} to {max(shares):.0%} of the "
        f"bandwidth of a copy, {statistics.median(shares):.0%} in the median."
    )
    words = (
        "The line is the floor: a copy that moves as many bytes, the median of the cells of a size. "
        "Tensors that fit a cache can lie above the bandwidth of memory."
    )
    heading = f"Achieved and possible bandwidth{ending}"
    return Chart(f"roofline{slug(ending) and '-' + slug(ending)}", heading, words, alt, drawing.png(figure))


def _rates_over_sizes(axes: Axes, cells: Sequence[Cell]) -> None:
    possible = defaultdict(list)
    for cell in cells:
        possible[cell.speed.bytes].append(_possible(cell))
    sizes = sorted(possible)
    axes.plot(
        sizes, [statistics.median(possible[size]) for size in sizes], color="black", label="possible: a copy"
    )
    names = ["eager", *other_rows(cells), "ours"]
    markers = dict(zip(names[1:-1], OTHER_MARKERS, strict=False)) | {"eager": "o", "ours": "o"}
    colors = {"eager": EAGER, "compile": drawing.COMPILE, "ours": OURS}
    for name in names:
        marks = [(cell.speed.bytes, _rates(cell)[name]) for cell in cells if name in cell.speed.rows]
        color = colors.get(name, "black")
        face = color if name == "ours" else "none"
        style = {"markersize": 5, "color": color, "markerfacecolor": face, "alpha": 0.85}
        drawing.points(axes, marks, ROW_NAMES.get(name, name), marker=markers.get(name, "x"), **style)
    axes.grid(alpha=0.25)


def _rates(cell: Cell) -> dict[str, float]:
    """GB/s by row. The copy is the line."""
    rows = {name: row for name, row in cell.speed.rows.items() if name != "copy"}
    return {name: cell.speed.bytes / row.seconds / 1e9 for name, row in rows.items()}


def _possible(cell: Cell) -> float:
    return cell.speed.bytes / cell.speed.floor_seconds / 1e9

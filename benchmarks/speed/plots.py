"""The picture of one run: speedup over eager, one bar per case and direction."""

import statistics
from pathlib import Path

from matplotlib.figure import Figure

from benchmarks import files
from benchmarks.comparison import DIRECTIONS
from benchmarks.speed.results import REQUIRED_CELL, Results, Seconds, speedup

COLORS = {"forward": "#0072B2", "forward+backward": "#E69F00"}  # the palette of Okabe and Ito
HEIGHT = 0.38


def write(results: Results, path: Path) -> None:
    """Writes the PNG, if any case was timed completely."""
    timed = [result for result in results.results if len(result.timings) == len(DIRECTIONS)]
    if not timed:
        return
    figure = Figure(figsize=(9, 2.2 + 0.42 * len(timed)), dpi=130, layout="constrained")
    axes = figure.add_subplot()
    for number, direction in enumerate(DIRECTIONS):
        timings = [result.timings[direction] for result in timed]
        positions = [place + (number - 0.5) * HEIGHT for place in range(len(timed))]
        values = [speedup(seconds) for seconds in timings]
        label = f"{direction} (geometric mean {statistics.geometric_mean(values):.2f})"
        axes.barh(positions, values, HEIGHT, color=COLORS[direction], label=label)
        for position, value, seconds in zip(positions, values, timings, strict=True):
            low, high = quartiles(seconds)
            axes.plot([low, high], [position, position], color="black", linewidth=1)
            axes.text(max(value, high), position, f" {value:.1f}", va="center", fontsize=8)
        if all("compile" in seconds for seconds in timings):
            compiled = [speedup(seconds, "compile") for seconds in timings]
            name = "torch.compile" if number == 0 else None
            axes.plot(compiled, positions, "D", color="black", fillstyle="none", markersize=4, label=name)
    axes.axvline(1, color="black", linewidth=1)
    axes.axvline(REQUIRED_CELL, color="#555555", linewidth=1, linestyle=":", label="required of every cell")
    axes.set_yticks(range(len(timed)), [result.case.id for result in timed], fontsize=8)
    axes.set_ylim(len(timed) - 0.4, -0.6)
    axes.margins(x=0.08)
    axes.set_xlim(left=0)
    axes.set_xlabel("times faster than eager nn.BatchNorm2d + nn.ReLU; black: quartiles over the rounds")
    axes.set_title(
        f"fused_bn.BatchNorm2d(activation='relu'), training mode\n{results.conditions}", fontsize=9
    )
    axes.spines[["top", "right"]].set_visible(False)
    figure.legend(loc="outside lower center", ncols=4, fontsize=8, frameon=False)
    files.write_whole(path, figure.savefig)


def quartiles(seconds: Seconds) -> tuple[float, float]:
    """The range that holds the middle half of the rounds' ratios."""
    ratios = [e / o for e, o in zip(seconds["eager"], seconds["ours"], strict=True)]
    if len(ratios) < 2:
        return ratios[0], ratios[0]
    low, _, high = statistics.quantiles(ratios, n=4, method="inclusive")
    return low, high

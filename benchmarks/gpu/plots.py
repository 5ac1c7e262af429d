"""The pictures: ratios with the floor, measured against predicted times, LeNet's rates. Knows no torch."""

import statistics
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from matplotlib.axes import Axes
from matplotlib.figure import Figure

from benchmarks.gpu.figures import DIRECTIONS, Figures, figures
from benchmarks.gpu.tables import SMOKE, images_per_second

COLORS = {"forward": "#0072B2", "backward": "#E69F00"}  # Okabe and Ito's palette
MODES = {"eager": "#BBBBBB", "graph": "#009E73"}
HEIGHT = 0.38
WIDTH = 1.4
"""Of the ratios' axis, in longest bars: the floor of tiny tensors, far below a launch, lies beyond it."""
FAR = 1.25
"""Measured over predicted, or the reverse, from which on a point is named."""


def write(results: dict[str, Any], directory: Path) -> None:
    """Writes what there are readings for: ratios.png and predicted.png, and lenet.png."""
    readings, note = results["readings"], SMOKE if results["smoke"] else ""
    table = readings.get("table", {})
    timed = [each for each in figures(table) if each.ours] if "bandwidth" in table else []
    if timed:
        _save(_ratios(timed), note, directory / "ratios.png")
        _save(_predicted(timed), note, directory / "predicted.png")
    if "steps" in readings.get("lenet", {}):
        _save(_lenet(readings["lenet"]), note, directory / "lenet.png")


def _save(figure: Figure, note: str, path: Path) -> None:
    if note:
        figure.suptitle(note, fontsize=8, color="#D55E00")
    for axes in figure.axes:
        axes.spines[["top", "right"]].set_visible(False)
    figure.savefig(path)


def _ratios(timed: Sequence[Figures]) -> Figure:
    """Bars of eager's time over ours; a black line where the floor would be, a diamond for torch.compile."""
    cases = list(dict.fromkeys(each.case for each in timed))
    figure = Figure(figsize=(10, 2 + 0.5 * len(cases)), dpi=120, layout="constrained")
    axes = figure.add_subplot()
    longest = max(each.ratios.get("eager", 1.0) for each in timed)
    axes.set_xlim(0, WIDTH * max(longest, 1.0))
    for number, direction in enumerate(DIRECTIONS):
        of_direction = [each for each in timed if each.direction == direction and "eager" in each.ratios]
        if not of_direction:
            continue
        values = [each.ratios["eager"] for each in of_direction]
        places = [cases.index(each.case) + (number - 0.5) * HEIGHT for each in of_direction]
        label = f"{direction} (geometric mean {statistics.geometric_mean(values):.2f})"
        axes.barh(places, values, HEIGHT, color=COLORS[direction], label=label)
        _marks(axes, of_direction, places, first=number == 0)
    axes.axvline(1, color="black", linewidth=1)
    axes.set_yticks(range(len(cases)), cases, fontsize=8)
    axes.invert_yaxis()
    axes.set_xlabel("times faster than eager batch norm + ReLU, by graph replay from cold buffers")
    figure.legend(loc="outside lower center", ncols=4, fontsize=8, frameon=False)
    return figure


def _marks(axes: Axes, found: Sequence[Figures], places: Sequence[float], *, first: bool) -> None:
    """The floor and torch.compile, as eager's time over theirs."""
    for number, (each, place) in enumerate(zip(found, places, strict=True)):
        name = first and number == 0
        floor = each.medians["eager"] / each.floor
        label = "floor: the mandatory bytes at the bandwidth of a copy" if name else None
        axes.plot([floor, floor], [place - HEIGHT / 2, place + HEIGHT / 2], color="black", label=label)
        ends = [each.ratios["eager"]]
        if floor < 0.9 * axes.get_xlim()[1]:  # its text has room behind it
            ends.append(floor)
        if "compile" in each.medians:
            ratio = each.medians["eager"] / each.medians["compile"]
            label = "torch.compile" if name else None
            axes.plot(ratio, place, "D", color="black", fillstyle="none", markersize=4, label=label)
            ends.append(ratio)
        share = each.share or 0.0
        axes.text(max(ends), place, f"  {share:.0%} of floor", va="center", fontsize=7)


def _predicted(timed: Sequence[Figures]) -> Figure:
    """Measured against predicted, a point a case and direction; both axes logarithmic."""
    figure = Figure(figsize=(7, 6), dpi=120, layout="constrained")
    axes = figure.add_subplot()
    for direction in DIRECTIONS:
        points = [(each.predicted, each.ours or 0.0) for each in timed if each.direction == direction]
        if points:
            axes.scatter(*zip(*points, strict=True), color=COLORS[direction], label=direction)
    for each in timed:
        point = (each.predicted, each.ours or 0.0)
        if max(point) > FAR * min(point):
            axes.annotate(each.case, point, (5, -3), textcoords="offset points", fontsize=5)
    ends = [value for each in timed for value in (each.predicted, each.ours or each.predicted)]
    axes.plot([min(ends), max(ends)], [min(ends), max(ends)], color="black", linewidth=1)
    axes.set_xscale("log")
    axes.set_yscale("log")
    axes.set_xlabel("predicted by the planner, microseconds")
    axes.set_ylabel("measured, microseconds; on the line they agree")
    axes.legend(frameon=False)
    return figure


def _lenet(readings: dict[str, Any]) -> Figure:
    rates = images_per_second(readings)
    figure = Figure(figsize=(8, 1 + 0.4 * len(rates)), dpi=120, layout="constrained")
    axes = figure.add_subplot()
    for place, (name, rate) in enumerate(rates.items()):
        axes.barh(place, rate, color=MODES.get(name.rpartition(" ")[2], "#BBBBBB"))
        axes.text(rate, place, f" {rate:,.0f}", va="center", fontsize=8)
    axes.set_yticks(range(len(rates)), list(rates), fontsize=8)
    axes.invert_yaxis()
    axes.margins(x=0.15)
    axes.set_xlabel(f"LeNet-5, batch {readings['batch']}: images a second, more is better")
    return figure

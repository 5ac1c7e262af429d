"""Charts of errors against float64 and of peak memory, beside PyTorch's."""

import math
from collections.abc import Iterator, Sequence
from typing import Any

from matplotlib.axes import Axes

from benchmarks.grid.cells import STEPS
from benchmarks.history import Accuracy, Run, slug
from benchmarks.report import drawing
from benchmarks.report.drawing import COMPILE, EAGER, OURS, Chart
from benchmarks.report.figures import ROW_NAMES, Cell, compared, families, further

MARKS: dict[str, dict[str, Any]] = {
    "eager": {"color": EAGER, "marker": "o", "markersize": 8, "markerfacecolor": "none"},
    "compile": {"color": COMPILE, "marker": "D", "markersize": 5, "markerfacecolor": "none"},
    "ours": {"color": OURS, "marker": "o", "markersize": 4},
}
"""Rings around dots show two equal values."""
COLUMNS = 3
SMALLEST_ULPS, LARGEST_ULPS = 1e-3, 1e9
"""The ends of the axis."""


def accuracy(run: Run) -> Iterator[Chart]:
    """One chart per dtype, with a panel per quantity and a line per kind of data."""
    found = compared(run)
    for dtype in dict.fromkeys(each.dtype for each in found):
        of_dtype = [each for each in found if each.dtype == dtype]
        data = list(dict.fromkeys(each.data for each in of_dtype))
        quantities = list(dict.fromkeys(each.quantity for each in of_dtype))
        columns = min(COLUMNS, len(quantities))
        rows = math.ceil(len(quantities) / columns)
        figure = drawing.new_figure(
            f"{dtype}: largest errors against float64, means over draws",
            run,
            1.2 + rows * (0.7 + 0.24 * len(data)),
        )
        panels = list(figure.subplots(rows, columns, sharex=True, sharey=True, squeeze=False).flat)
        for axes, quantity in zip(panels, quantities, strict=False):
            _errors(axes, [each for each in of_dtype if each.quantity == quantity], data)
            axes.set_title(quantity, fontsize=9)
        drawing.lines(panels, data)
        drawing.hide(panels[len(quantities) :], above=panels[:-columns])
        ends = [_clipped(ulps) for each in of_dtype for ulps in each.ulps.values()]
        drawing.logarithmic(panels[0], "x", min(ends), max(ends))
        drawing.legend(figure, panels[: len(quantities)], "ulps of the quantity, logarithmic; less is better")
        worse = further(of_dtype)
        alt = (
            f"Largest errors of {dtype} against float64, ours beside PyTorch's: "
            f"ours is further off in {len(worse)} of {len(of_dtype)} comparisons."
        )
        words = _ends_meaning(min(ends), max(ends))
        yield Chart(f"accuracy-{slug(dtype)}", f"Accuracy, {dtype}", words, alt, drawing.png(figure))


def _errors(axes: Axes, accuracies: Sequence[Accuracy], data: Sequence[str]) -> None:
    for row, style in MARKS.items():
        places = [
            (_clipped(each.ulps[row]), data.index(each.data)) for each in accuracies if row in each.ulps
        ]
        drawing.points(axes, places, ROW_NAMES.get(row, row), **style)
    axes.grid(alpha=0.25)


def _ends_meaning(low: float, high: float) -> str:
    exact = f"At {SMALLEST_ULPS:g} ulps lie smaller errors, too, and what is exact. "
    wrong = f"At {LARGEST_ULPS:g} ulps lie larger errors, too, and what is infinite or NaN."
    return (exact if low <= SMALLEST_ULPS else "") + (wrong if high >= LARGEST_ULPS else "")


def _clipped(ulps: float) -> float:
    return LARGEST_ULPS if math.isnan(ulps) else min(max(ulps, SMALLEST_ULPS), LARGEST_ULPS)


def memory(run: Run, found: Sequence[Cell]) -> Iterator[Chart]:
    """One chart per family, of the cells with measured peaks."""
    measured = [cell for cell in found if cell.peak_share is not None]
    for family in families(measured):
        cells = [cell for cell in measured if cell.family == family]
        name = "whole training steps" if family == STEPS else f"layers ({family})"
        figure = drawing.panels(
            f"Peak memory, {name}",
            run,
            cells,
            _peaks,
            "peak of the tensors of one call, logarithmic; less is better",
        )
        ends = [value for cell in cells for value in _peak_bytes(cell).values()]
        drawing.logarithmic(figure.axes[0], "x", max(min(ends), 1), max(ends), "B")
        shares = [cell.peak_share or 0.0 for cell in cells]
        alt = (
            f"Peak memory of {len(cells)} cells, {name}: ours takes {min(shares):.0%} to {max(shares):.0%} "
            "of eager's."
        )
        heading = f"Memory, {name}"
        yield Chart(f"memory-{slug(family)}", heading, "", alt, drawing.png(figure))


def _peaks(axes: Axes, cells: Sequence[Cell], places: Sequence[int]) -> None:
    peaks = [(_peak_bytes(cell), place) for cell, place in zip(cells, places, strict=True)]
    for of_cell, place in peaks:
        axes.plot([of_cell["ours"], of_cell["eager"]], [place, place], color=EAGER, linewidth=1)
    for row, style in MARKS.items():
        drawing.points(
            axes, [(of[row], place) for of, place in peaks if row in of], ROW_NAMES.get(row, row), **style
        )
    axes.grid(axis="x", alpha=0.25)


def _peak_bytes(cell: Cell) -> dict[str, int]:
    return {
        row: peak
        for row, speed in cell.speed.rows.items()
        if row in MARKS and (peak := speed.peak_bytes) is not None
    }

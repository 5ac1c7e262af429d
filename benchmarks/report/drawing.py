"""What the charts share: a figure with its texts, colours, logarithmic axes, panels by direction."""

import io
import math
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import matplotlib
from matplotlib.artist import Artist
from matplotlib.axes import Axes
from matplotlib.axis import Axis
from matplotlib.figure import Figure
from matplotlib.ticker import EngFormatter, FuncFormatter, LogLocator, NullFormatter

from benchmarks.history import Run
from benchmarks.report.figures import Cell, directions

# Okabe and Ito's palette.
OURS, SLOWER, EAGER, COMPILE = "#0072B2", "#D55E00", "#767676", "#E69F00"
CYCLE = ("#0072B2", "#D55E00", "#009E73", "#CC79A7", "#E69F00", "#56B4E9", "#000000")
OTHER_MARKERS = ("D", "s", "^", "v", "P")
"""Markers of torch.compile and of peers, in the rows' order."""
WIDTH, NARROW, DPI = 12.0, 9.0, 110
SHORTEST = 4.0
"""The smallest ratio of highest to lowest value on a logarithmic axis."""


@dataclass(frozen=True)
class Chart:
    """A picture: the `name` of its file, an explanation in `heading` and `words`, and a text `alt`."""

    name: str
    heading: str
    words: str
    alt: str
    png: bytes


def conditions(run: Run) -> str:
    """The conditions of the measurement, in one line."""
    e = run.environment
    kernels = e.get("fused_bn_capability") or e.get("fused_bn_kernels", "")
    return (
        f"{run.device}, {e.get('threads', '?')} threads, torch {e.get('torch', '?')}, "
        f"fused_bn {e.get('fused_bn', '?')} ({kernels}), commit {run.commit}, {run.date[:10]}"
    )


@contextmanager
def style() -> Iterator[None]:
    """The context for all drawing. A dollar in a name is printed as a dollar."""
    with matplotlib.rc_context({"text.parse_math": False, "font.size": 9}):
        yield


def png(figure: Figure) -> bytes:
    """Draws the figure, without the frame's upper and right lines."""
    for axes in figure.axes:
        axes.spines[["top", "right"]].set_visible(False)
    file = io.BytesIO()
    figure.savefig(file, format="png")
    return file.getvalue()


def new_figure(title: str, run: Run, height: float, width: float = WIDTH) -> Figure:
    """An empty figure with the title, and the conditions below it. Sizes are in inches."""
    figure = Figure(figsize=(width, height), dpi=DPI, layout="constrained")
    figure.suptitle(f"{title}\n{conditions(run)}", fontsize=9)
    return figure


def panels(
    title: str,
    run: Run,
    found: Sequence[Cell],
    draw: Callable[[Axes, Sequence[Cell], Sequence[int]], None],
    caption: str,
) -> Figure:
    """Panels side by side, one per direction, with a line per case. `draw` gets a panel's cells and lines."""
    cases = list(dict.fromkeys(cell.case for cell in found))
    of = {name: [cell for cell in found if cell.speed.direction == name] for name in directions(found)}
    figure = new_figure(title, run, 2 + 0.24 * len(cases), WIDTH if len(of) > 2 else NARROW)
    row = figure.subplots(1, len(of), sharex=True, sharey=True, squeeze=False)[0]
    for axes, (direction, cells) in zip(row, of.items(), strict=True):
        draw(axes, cells, [cases.index(cell.case) for cell in cells])
        heading = axes.get_title()
        axes.set_title(direction + (f"\n{heading}" if heading else ""), fontsize=9)
    lines(row, cases)
    legend(figure, row, caption)
    return figure


def lines(drawn: Sequence[Axes], names: Sequence[str]) -> None:
    """Labels the lines of panels that share their y axis, the first on top."""
    drawn[0].set_yticks(range(len(names)), names)
    drawn[0].set_ylim(len(names) - 0.4, -0.6)
    for axes in drawn:
        axes.tick_params(labelsize=8)


def hide(unused: Sequence[Axes], above: Sequence[Axes]) -> None:
    """Hides the empty panels of the last row. The panels `above` them show the axis' numbers."""
    for axes in unused:
        axes.set_visible(False)
    for axes in above[len(above) - len(unused) :] if unused else ():
        axes.tick_params(labelbottom=True)


def points(axes: Axes, places: Sequence[tuple[float, float]], label: str, **style: Any) -> None:
    """Draws unconnected marks. Without values it adds no label."""
    if places:
        axes.plot(*zip(*places, strict=True), linestyle="", label=label, **style)


def legend(figure: Figure, drawn: Sequence[Axes], caption: str = "") -> None:
    """A legend below the figure with every label once, under `caption`."""
    entries: dict[str, Artist] = {}
    for axes in drawn:
        for handle, label in zip(*axes.get_legend_handles_labels(), strict=True):
            entries.setdefault(label, handle)
    style = {"ncols": 6, "fontsize": 8, "title_fontsize": 9, "frameon": False, "title": caption or None}
    figure.legend(list(entries.values()), list(entries), loc="outside lower center", **style)


def logarithmic(axes: Axes, name: str, low: float, high: float, unit: str = "") -> None:
    """Sets the range of axis "x" or "y" around `low` and `high`, with plain numbers as labels."""
    margin = max((high / low) ** 0.06, (SHORTEST * low / high) ** 0.5)
    ends = low / margin, high * margin
    axis: Axis = getattr(axes, f"{name}axis")
    axes.set(**{f"{name}scale": "log", f"{name}lim": ends})
    decades = math.log10(ends[1] / ends[0])
    few = 1.3 if unit else 1.8  # from this many decades on, powers of ten are enough
    between = (1.0, 1.5, 2.0, 3.0, 5.0, 7.0) if decades < 1 else (1.0, 2.0, 5.0) if decades < few else (1.0,)
    axis.set_major_locator(LogLocator(subs=between, numticks=8))
    axis.set_major_formatter(EngFormatter(unit) if unit else FuncFormatter(_plain))
    axis.set_minor_formatter(NullFormatter())


def _plain(value: float, _: int | None = None) -> str:
    """The number without a plus sign and trailing zeros."""
    if 1e-3 <= value < 1e5:
        return f"{value:,.0f}" if value >= 1e3 else f"{value:g}"
    mantissa, exponent = f"{value:.0e}".split("e")
    return f"{mantissa}e{int(exponent)}"

"""The picture of one experiment: each variant's accuracy by epoch, in training and on the watched part."""

import math
from pathlib import Path

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import MaxNLocator

from benchmarks import files
from benchmarks.experiments.results import Results

COLORS = ("#000000", "#0072B2", "#D55E00")  # the palette of Okabe and Ito; a panel has at most three variants
_COLUMNS = 3


def write(results: Results, path: Path) -> None:
    """Writes a PNG with one panel per group of variants. All panels have the same axes."""
    panels = results.experiment.panels
    columns = min(_COLUMNS if len(panels) != 4 else 2, len(panels))
    rows = math.ceil(len(panels) / columns)
    size = (8, 5) if len(panels) == 1 else (4 * columns, 3.2 * rows)
    figure = Figure(figsize=size, dpi=150, layout="constrained")
    grid = figure.subplots(rows, columns, sharex=True, sharey=True, squeeze=False)
    for axes, (title, ids) in zip(grid.flat, panels.items(), strict=True):
        _panel(axes, results, ids)
        axes.set_title(title, fontsize=10)
    for axes in grid[-1]:
        axes.set_xlabel("epoch")
    for axes in grid[:, 0]:
        axes.set_ylabel("accuracy")
    figure.suptitle(results.experiment.title)
    conditions = results.conditions.replace("\n", ", ")
    figure.supxlabel(f"line: mean, band: range; {conditions}", fontsize=7, color="#555555")
    files.write_whole(path, figure.savefig)


def _panel(axes: Axes, results: Results, ids: tuple[str, ...]) -> None:
    for id, color in zip(ids, COLORS, strict=False):
        curves = results.curves[id]
        name = f"{id}, " if len(ids) > 1 else ""
        _curve(axes, [curve.watched_accuracy for curve in curves], color, "-", f"{name}{results.watched}")
        _curve(axes, [curve.train_accuracy for curve in curves], color, ":", f"{name}training")
    axes.legend(loc="best", fontsize=8)
    axes.grid(axis="y", alpha=0.3)
    axes.spines[["top", "right"]].set_visible(False)
    axes.xaxis.set_major_locator(MaxNLocator(integer=True, min_n_ticks=1))
    axes.set_xlim(left=1 - 0.05 * results.length.epochs)


def _curve(axes: Axes, curves: list[list[float]], color: str, style: str, label: str) -> None:
    values = np.array(curves)
    epochs = np.arange(1, values.shape[1] + 1)
    few = values.shape[1] <= 10
    axes.plot(
        epochs,
        values.mean(axis=0),
        color=color,
        linestyle=style,
        marker="o" if few else "",
        markersize=3,
        label=label,
    )
    axes.fill_between(epochs, values.min(axis=0), values.max(axis=0), color=color, alpha=0.12, linewidth=0)

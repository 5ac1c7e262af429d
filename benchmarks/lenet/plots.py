"""The pictures of one job: accuracy and loss by epoch for all variants, and the time per step."""

from pathlib import Path
from typing import Any

from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import MaxNLocator

from benchmarks import files
from benchmarks.lenet.results import Result, Results

# Okabe and Ito's palette. PyTorch's line is wide and pale with rings. Ours is thin and dashed with dots and
# lies on top, so that both show where they are equal.
STYLES: dict[str, dict[str, Any]] = {
    "none": {"color": "#000000", "marker": "s", "markersize": 4, "linewidth": 1.5},
    "torch": {"color": "#56B4E9", "marker": "o", "markersize": 9, "fillstyle": "none", "linewidth": 4},
    "fused": {"color": "#0072B2", "marker": "o", "markersize": 4, "linestyle": "--", "linewidth": 1.5},
    "torch-relu": {"color": "#E69F00", "marker": "o", "markersize": 9, "fillstyle": "none", "linewidth": 4},
    "fused-relu": {"color": "#D55E00", "marker": "o", "markersize": 4, "linestyle": "--", "linewidth": 1.5},
}


def write(results: Results, directory: Path) -> list[Path]:
    """Writes accuracy.png, loss.png and step_time.png into `directory` and returns their paths."""
    drawings = {"accuracy.png": _accuracy, "loss.png": _loss, "step_time.png": _step_time}
    for name, draw in drawings.items():
        figure = Figure(figsize=(8, 5), dpi=150, layout="constrained")
        axes = figure.add_subplot()
        draw(axes, results.results)
        figure.supxlabel(results.conditions, fontsize=8, color="#555555")
        axes.spines[["top", "right"]].set_visible(False)
        files.write_whole(directory / name, figure.savefig)
    return [directory / name for name in drawings]


def _accuracy(axes: Axes, results: list[Result]) -> None:
    for result in results:
        values = [100 * epoch.test_accuracy for epoch in result.epochs]
        _by_epoch(axes, result, values)
    axes.set_ylabel("accuracy on the test images, %")
    axes.set_title("LeNet-5 on MNIST: test accuracy")
    axes.legend(loc="lower right")


def _loss(axes: Axes, results: list[Result]) -> None:
    for result in results:
        _by_epoch(axes, result, [epoch.train_loss for epoch in result.epochs])
    axes.set_ylabel("mean training loss")
    axes.set_title("LeNet-5 on MNIST: training loss")
    axes.legend(loc="upper right")


def _by_epoch(axes: Axes, result: Result, values: list[float]) -> None:
    numbers = [epoch.number for epoch in result.epochs]
    label = f"{result.variant.id}: {result.variant.description}"
    axes.plot(numbers, values, label=label, **STYLES[result.variant.id])
    axes.set_xlabel("epoch")
    axes.set_xlim(0.5, max(numbers[-1] + 0.5, axes.get_xlim()[1]))
    axes.xaxis.set_major_locator(MaxNLocator(integer=True, min_n_ticks=1))
    axes.grid(axis="y", alpha=0.3)


def _step_time(axes: Axes, results: list[Result]) -> None:
    for position, result in enumerate(results):
        norm = result.norm_ms or 0.0
        rest = max(result.step_ms - norm, 0.0)
        axes.barh(position, rest, color="#BBBBBB")
        axes.barh(position, norm, left=rest, color=STYLES[result.variant.id]["color"])
        share = f", norm {norm:.2f} ms" if result.norm_ms is not None else ""
        axes.text(rest + norm, position, f" {result.step_ms:.2f} ms{share}", va="center")
    axes.set_yticks(range(len(results)), [f"{r.variant.id}\n{r.variant.description}" for r in results])
    axes.invert_yaxis()
    axes.set_xlim(right=1.45 * max(result.step_ms for result in results))
    axes.set_xlabel("milliseconds per training step; coloured: the norm layers, measured alone")
    axes.set_title("LeNet-5 on MNIST: time per training step")

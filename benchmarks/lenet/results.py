"""The results of one job: a table for the terminal and a JSON file."""

import json
import statistics
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

from rich import box
from rich.table import Table

from benchmarks import files
from benchmarks.lenet.agreement import Agreement
from benchmarks.lenet.model import Variant
from benchmarks.lenet.training import Epoch

FORMAT = 1
"""Increase it when a field of the JSON file changes its meaning or its name."""


PUBLISHED_EPOCHS = 10
"""Accuracies were published for the first epoch and for this one."""


@dataclass
class Result:
    """One variant: its finished epochs, and the cost of its steps."""

    variant: Variant
    epochs: list[Epoch]
    norm_ms: float | None  # None without norm
    peak_bytes: int

    @property
    def step_ms(self) -> float:
        """Milliseconds per training step: the median over the epochs."""
        return 1e3 * statistics.median(epoch.seconds / epoch.steps for epoch in self.epochs)

    @property
    def images_per_second(self) -> float:
        """Images per second in training: the median over the epochs."""
        return statistics.median(epoch.images_per_second for epoch in self.epochs)


@dataclass
class Results:
    """The results of a job. `results` has only variants with a finished epoch."""

    arguments: dict[str, Any]
    environment: dict[str, Any]
    agreements: list[Agreement] = field(default_factory=list)
    results: list[Result] = field(default_factory=list)
    interrupted: bool = False

    @property
    def conditions(self) -> str:
        """The conditions of the measurement, in one line."""
        a, e = self.arguments, self.environment
        processes = f"{e['processes']} synchronised processes of " if a.get("sync") else ""
        return (
            f"recipe {a['recipe']}, batch {a['batch_size']}, {a['dtype']}, {e['device']}, "
            f"{processes}{e['threads']} threads, torch {e['torch']}, "
            f"fused_bn {e['fused_bn']} ({e['fused_bn_kernels']})"
        )

    def write(self, path: Path) -> None:
        """Writes the JSON file: times in ms or s, memory in bytes, accuracies in [0, 1]."""
        variants = {
            result.variant.id: {
                "description": result.variant.description,
                "published_accuracy_percent": result.variant.published,
                "images_per_second": result.images_per_second,
                "step_ms": result.step_ms,
                "norm_ms": result.norm_ms,
                "peak_bytes": result.peak_bytes,
                "epochs": [asdict(epoch) for epoch in result.epochs],
            }
            for result in self.results
        }
        content = {
            "format": FORMAT,
            "interrupted": self.interrupted,
            "arguments": self.arguments,
            "environment": self.environment,
            "variants": variants,
            "agreements": [asdict(agreement) for agreement in self.agreements],
        }
        files.write_whole(path, json.dumps(content, indent=1) + "\n")

    def table(self) -> Table:
        """One row per variant, with the published accuracies beside ours."""
        last = max(len(result.epochs) for result in self.results)
        published = "\n(published)" if last == PUBLISHED_EPOCHS else ""
        table = Table(title=self.conditions, caption=CAPTION, caption_justify="left", box=box.SIMPLE_HEAD)
        table.add_column("variant", no_wrap=True)
        headings = ("epoch 1, %\n(published)", f"epoch {last}, %{published}")
        for heading in (*headings, "images\n/s", "step\nms", "norm\nms", "peak\nMiB"):
            table.add_column(heading, justify="right", no_wrap=True)
        for result in self.results:
            first, tenth = result.variant.published
            table.add_row(
                result.variant.id,
                accuracy(result.epochs[0], first),
                accuracy(result.epochs[-1], tenth if len(result.epochs) == PUBLISHED_EPOCHS else None),
                f"{result.images_per_second:,.0f}",
                f"{result.step_ms:.2f}",
                "-" if result.norm_ms is None else f"{result.norm_ms:.3f}",
                f"{result.peak_bytes / 2**20:.2f}",
            )
        return table


def accuracy(epoch: Epoch, published: str | None) -> str:
    """An accuracy in percent, with the published figure of the same epoch if there is one."""
    percent = f"{100 * epoch.test_accuracy:.2f}"
    return percent if published is None else f"{percent} ({published})"


CAPTION = """\
accuracy: on the 10,000 test images; published: with recipe article, after epochs 1 and 10
images/s, step: training, median over the epochs
norm: the norm layers alone (in *-relu with their ReLU), forward and backward
peak: tensors alive at once in a step; data set and batch not counted"""

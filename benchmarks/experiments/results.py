"""The results of one experiment: a table with the published figures, judged claims, and JSON."""

import json
import math
import statistics
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

from rich import box
from rich.table import Table

from benchmarks import files
from benchmarks.experiments.experiment import Curve, Experiment, Length, Variant, Verdict, first_epoch

FORMAT = 1
"""Increase it when a field of the JSON file changes its meaning or its name."""

DEFAULTS = {"api": "torch", "norm": "fused", "normalize": "none", "quick": False}
"""Arguments that appear in the files' names if they differ from the default."""


@dataclass(frozen=True)
class Judged:
    """A claim with its verdict."""

    claim: str
    verdict: Verdict

    def __str__(self) -> str:
        return f"{'PASS' if self.verdict.holds else 'FAIL'}  {self.claim} ({self.verdict.measured})"


@dataclass
class Results:
    """All curves of one experiment, with the same seeds for every variant.

    watched: the name of the part that is evaluated after each epoch.
    """

    experiment: Experiment
    length: Length
    arguments: Mapping[str, Any]
    environment: Mapping[str, Any]
    watched: str = ""
    curves: dict[str, list[Curve]] = field(default_factory=dict)
    interrupted: bool = False

    def add(self, curves: Mapping[str, Curve]) -> None:
        """Adds the curves of one more seed, by the variant's id."""
        for id, curve in curves.items():
            self.curves.setdefault(id, []).append(curve)

    @property
    def seeds(self) -> int:
        """How many seeds are finished."""
        return min((len(curves) for curves in self.curves.values()), default=0)

    @property
    def stem(self) -> str:
        """The start of the files' names, such as circles-keras-zscore."""
        parts = [self.experiment.name]
        for name, default in DEFAULTS.items():
            if (value := self.arguments[name]) != default:
                parts.append(name if value is True else value)
        return "-".join([*parts, "interrupted"] if self.interrupted else parts)

    @property
    def conditions(self) -> str:
        """The conditions of the measurement, in two lines."""
        a, e = self.arguments, self.environment
        fused = f"fused_bn {e['fused_bn']} ({e['fused_bn_kernels']})"
        norm = fused if a["norm"] == "fused" else "the framework's norm"
        inputs = "" if a["normalize"] == "none" else f", inputs {a['normalize']}"
        examples = "" if self.length.examples is None else f", {self.length.examples:,} training examples"
        return (
            f"seeds: {self.seeds}, epochs: {self.length.epochs}{examples}{inputs}\n"
            f"{a['api']} API, torch {e['torch']}, {norm}"
        )

    def judged(self) -> list[Judged]:
        """The claims that this much training can decide. None before a seed is finished."""
        full = self.experiment.full
        shortened = self.length.epochs < full.epochs or self.length.examples != full.examples
        claims = [
            claim
            for claim in self.experiment.claims
            if self.seeds >= claim.needs_seeds and not (claim.needs_full and shortened)
        ]
        return [Judged(claim.text, claim.judge(self.curves)) for claim in claims]

    def write(self, path: Path) -> None:
        """Writes the JSON file: accuracies in [0, 1], seconds. A loss that is not finite is null.

        Numbers are rounded to 6 decimals. There are no line breaks, because they would be half of the file.
        """
        content = {
            "format": FORMAT,
            "experiment": self.experiment.name,
            "interrupted": self.interrupted,
            "arguments": self.arguments,
            "length": asdict(self.length),
            "environment": self.environment,
            "watched": self.watched,
            "variants": {
                variant.id: {
                    "description": variant.description,
                    "published": variant.published,
                    "curves": [_plain(asdict(curve)) for curve in self.curves[variant.id]],
                }
                for variant in self.experiment.variants
            },
            "claims": [{"claim": judged.claim, **asdict(judged.verdict)} for judged in self.judged()],
        }
        files.write_whole(path, json.dumps(content, allow_nan=False) + "\n")

    def table(self) -> Table:
        """One row per variant: mean and standard deviation over the seeds. Published figures follow it."""
        table = Table(
            caption="accuracies: mean ± standard deviation over the seeds\n"
            f"epoch 1: on the part {self.watched}; s: seconds a run",
            caption_justify="left",
            box=box.SIMPLE_HEAD,
            pad_edge=False,
            show_edge=False,  # makes it fit 80 columns
        )
        table.add_column("", no_wrap=True)
        for heading in (*self.columns(), "s"):
            table.add_column(heading, justify="right", no_wrap=True)
        for variant in self.experiment.variants:
            curves = self.curves[variant.id]
            seconds = statistics.median(curve.seconds for curve in curves)
            figures = [figure(accuracies(column, curves)) for column in self.columns()]
            table.add_row(variant.id, *figures, f"{seconds:.1f}")
            if variant.published:
                table.add_row("published", *self.published(variant), "", style="dim")
        return table

    def columns(self) -> list[str]:
        """The columns of accuracies: the watched part after the first epoch, and each part at the end."""
        return ["epoch 1", *next(iter(self.curves.values()))[0].final]

    def published(self, variant: Variant) -> list[str]:
        """The published figures by column; empty if there are none."""
        found = (variant.published.get(column) for column in self.columns())
        return ["" if accuracy is None else f"{accuracy:.3f}" for accuracy in found]


def accuracies(column: str, curves: Sequence[Curve]) -> list[float]:
    """A column's accuracies of all seeds, in [0, 1]."""
    return [first_epoch(curve) if column == "epoch 1" else curve.final[column] for curve in curves]


def figure(accuracies: Sequence[float]) -> str:
    """Such as "0.843 ± 0.006"."""
    spread = f" ± {statistics.stdev(accuracies):.3f}" if len(accuracies) > 1 else ""
    return f"{statistics.fmean(accuracies):.3f}{spread}"


def _plain(value: Any) -> Any:
    """Floats in a form that JSON has."""
    match value:
        case dict():
            return {name: _plain(inner) for name, inner in value.items()}
        case list():
            return [_plain(inner) for inner in value]
        case float():
            return round(value, 6) if math.isfinite(value) else None
    return value

"""What one experiment found: as a table beside the published figures, as judged claims and as JSON."""

import json
import math
import statistics
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

from rich import box
from rich.table import Table

from benchmarks.experiments.experiment import Curve, Experiment, Length, Variant, Verdict, first_epoch

FORMAT = 1
"""Goes up when a field of the JSON file changes its meaning or its name."""


@dataclass(frozen=True)
class Judged:
    """A claim with its verdict."""

    claim: str
    verdict: Verdict

    def __str__(self) -> str:
        return f"{'PASS' if self.verdict.holds else 'FAIL'}  {self.claim} ({self.verdict.measured})"


@dataclass
class Results:
    """All curves of one experiment, of the same seeds for every variant."""

    experiment: Experiment
    length: Length
    arguments: Mapping[str, Any]
    environment: Mapping[str, Any]
    curves: dict[str, list[Curve]] = field(default_factory=dict)
    interrupted: bool = False

    def add(self, curves: Mapping[str, Curve]) -> None:
        """Those of one more seed, by the variant's id."""
        for id, curve in curves.items():
            self.curves.setdefault(id, []).append(curve)

    @property
    def seeds(self) -> int:
        """How many are finished."""
        return min((len(curves) for curves in self.curves.values()), default=0)

    @property
    def stem(self) -> str:
        """Of the names of its files."""
        api = self.arguments["api"]
        return self.experiment.name if api == "torch" else f"{self.experiment.name}-{api}"

    @property
    def conditions(self) -> str:
        """In one line, what the figures were measured with."""
        a, e = self.arguments, self.environment
        own = {"torch": "torch.nn", "keras": "Keras"}[a["api"]]
        norm = (
            f"fused_bn {e['fused_bn']} ({e['fused_bn_kernels']})" if a["norm"] == "fused" else f"{own}'s norm"
        )
        inputs = "" if a["normalize"] == "none" else f"inputs {a['normalize']}, "
        examples = "" if self.length.examples is None else f"{self.length.examples:,} training examples, "
        return (
            f"seeds: {self.seeds}, epochs: {self.length.epochs}, {examples}{inputs}"
            f"{a['api']} API, torch {e['torch']}, {norm}"
        )

    def judged(self) -> list[Judged]:
        """The claims that mean something after so much training; none before a seed is finished."""
        shortened = self.length.epochs < self.experiment.full.epochs or self.length.examples != (
            self.experiment.full.examples
        )
        claims = [claim for claim in self.experiment.claims if not (claim.needs_full and shortened)]
        return [Judged(claim.text, claim.judge(self.curves)) for claim in claims] if self.seeds else []

    def write(self, path: Path) -> None:
        """Writes the JSON file: accuracies in [0, 1], seconds; a loss that is not finite is null.

        Rounded to 6 decimals, and without line breaks, which would be half of it.
        """
        content = {
            "format": FORMAT,
            "experiment": self.experiment.name,
            "interrupted": self.interrupted,
            "arguments": self.arguments,
            "length": asdict(self.length),
            "environment": self.environment,
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
        path.write_text(json.dumps(content, allow_nan=False) + "\n")

    def table(self) -> Table:
        """One row a variant: mean and standard deviation over the seeds, the published figure in brackets."""
        table = Table(
            caption="accuracies: mean ± standard deviation over the seeds (published)",
            caption_justify="left",
            box=box.SIMPLE_HEAD,
        )
        table.add_column("variant", no_wrap=True)
        table.add_column("")
        columns = self.columns()
        for heading in (*columns, "s a run"):
            table.add_column(heading, justify="right", no_wrap=True)
        for variant in self.experiment.variants:
            curves = self.curves[variant.id]
            table.add_row(
                variant.id,
                variant.description,
                *(figure(variant, column, curves) for column in columns),
                f"{statistics.median(curve.seconds for curve in curves):.1f}",
            )
        return table

    def columns(self) -> list[str]:
        """Of accuracies: after the first epoch, then at the end on each part."""
        first = next(iter(self.curves.values()))[0]
        return ["first epoch", *first.final]


def accuracies(column: str, curves: Sequence[Curve]) -> list[float]:
    """Of all seeds, in [0, 1]."""
    return [first_epoch(curve) if column == "first epoch" else curve.final[column] for curve in curves]


def figure(variant: Variant, column: str, curves: Sequence[Curve]) -> str:
    """Such as "0.843 ± 0.006 (0.846)"."""
    found = accuracies(column, curves)
    spread = f" ± {statistics.stdev(found):.3f}" if len(found) > 1 else ""
    published = f" ({variant.published[column]:.3f})" if column in variant.published else ""
    return f"{statistics.fmean(found):.3f}{spread}{published}"


def _plain(value: Any) -> Any:
    """With floats as JSON has them."""
    match value:
        case dict():
            return {name: _plain(inner) for name, inner in value.items()}
        case list():
            return [_plain(inner) for inner in value]
        case float():
            return round(value, 6) if math.isfinite(value) else None
    return value

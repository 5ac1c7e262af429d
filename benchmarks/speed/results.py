"""The results of a run, the required figures, and the JSON file."""

import json
import statistics
from collections.abc import Iterator
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

from benchmarks import files
from benchmarks.comparison import DIRECTIONS, Case

FORMAT = 1
"""Increase it when a field of the JSON file changes its meaning or its name."""

REQUIRED_MEAN = {"forward": 4.0, "forward+backward": 3.5}
REQUIRED_CELL = 1.5
REQUIRED_HOST = 0.7
REQUIRED_KEPT = 1.01
"""Bound of kept bytes, relative to nn.BatchNorm2d alone. The 0.01 allows 4 bytes per channel for the mean's
lower half."""
REQUIRED_PEAK = 1.0

Seconds = dict[str, list[float]]
"""Seconds per call in every round, by row."""


def speedup(seconds: Seconds, row: str = "ours") -> float:
    """How many times faster than eager `row` is: the median over the rounds of the ratio within a round."""
    return statistics.median(e / o for e, o in zip(seconds["eager"], seconds[row], strict=True))


def copies(seconds: Seconds, row: str) -> float:
    """The median time of `row` in units of the median time of a copy of the input."""
    return statistics.median(seconds[row]) / statistics.median(seconds["copy"])


@dataclass
class CaseResult:
    """One case: timings by direction, and memory by row. "batch_norm" is nn.BatchNorm2d alone."""

    case: Case
    timings: dict[str, Seconds] = field(default_factory=dict)
    kept_bytes: dict[str, int] = field(default_factory=dict)
    peak_bytes: dict[str, int] = field(default_factory=dict)
    wrong: str | None = None


@dataclass(frozen=True)
class Requirement:
    """A figure and its bound."""

    name: str
    measured: float
    bound: float
    at_least: bool = True

    @property
    def met(self) -> bool:
        return self.measured >= self.bound if self.at_least else self.measured <= self.bound

    def __str__(self) -> str:
        bound = f"required: at {'least' if self.at_least else 'most'} {self.bound:.2f}"
        return f"{self.name}: {self.measured:.2f} ({bound}{'' if self.met else ', MISSED'})"


@dataclass
class Results:
    """All results of a run. `results` has only cases with measurements."""

    arguments: dict[str, Any]
    environment: dict[str, Any]
    results: list[CaseResult] = field(default_factory=list)
    host: Seconds = field(default_factory=dict)
    interrupted: bool = False

    @property
    def conditions(self) -> str:
        """The conditions of the measurement, in one line."""
        e = self.environment
        kernels = e["fused_bn_capability"] or e["fused_bn_kernels"]
        return (
            f"{e['device']}, {e['threads']} threads, torch {e['torch']}, "
            f"fused_bn {e['fused_bn']} ({kernels}), {self.arguments['rounds']} rounds, {e['date'][:10]}"
        )

    @property
    def wrong(self) -> list[CaseResult]:
        return [result for result in self.results if result.wrong is not None]

    def speedups(self, direction: str) -> Iterator[tuple[float, str]]:
        """Our ratio to eager in every case of that direction, with the case's id."""
        for result in self.results:
            if direction in result.timings:
                yield speedup(result.timings[direction]), result.case.id

    def requirements(self) -> list[Requirement]:
        """The required figures, for the measured cases."""
        required = []
        cells = []
        for direction in DIRECTIONS:
            speedups = list(self.speedups(direction))
            cells += [(value, f"{id}, {direction}") for value, id in speedups]
            if speedups:
                mean = statistics.geometric_mean(value for value, _ in speedups)
                name = f"{direction}, times faster than eager, geometric mean of {len(speedups)} cases"
                required.append(Requirement(name, mean, REQUIRED_MEAN[direction]))
        if cells:
            value, id = min(cells)
            required.append(Requirement(f"the worst cell ({id}), times faster", value, REQUIRED_CELL))
        if self.host:
            name = "host time of a tiny call, ours / eager"
            required.append(Requirement(name, 1 / speedup(self.host), REQUIRED_HOST, at_least=False))
        for name, bound, column in (
            ("kept for backward", REQUIRED_KEPT, "kept_bytes"),
            ("peak of forward+backward", REQUIRED_PEAK, "peak_bytes"),
        ):
            memory = [getattr(result, column) for result in self.results]
            shares = [rows["ours"] / rows["batch_norm"] for rows in memory if rows]
            if shares:
                name += ", ours / nn.BatchNorm2d without ReLU, the largest"
                required.append(Requirement(name, max(shares), bound, at_least=False))
        return required

    def write(self, path: Path) -> None:
        """Writes the JSON file: times in seconds per call, one value per round; memory in bytes."""
        content = {
            "format": FORMAT,
            "interrupted": self.interrupted,
            "arguments": self.arguments,
            "environment": self.environment,
            "required": [{**asdict(figure), "met": figure.met} for figure in self.requirements()],
            "host": self.host,
            "cases": [
                {
                    "id": result.case.id,
                    **asdict(result),
                    "speedup": {direction: speedup(timing) for direction, timing in result.timings.items()},
                }
                for result in self.results
            ],
        }
        files.write_whole(path, json.dumps(content, indent=1) + "\n")

"""The stages in their order, how the time is shared out among them, and what came of each. Knows no torch."""

from collections.abc import Sequence
from dataclasses import dataclass

EXIT_SKIPPED = 77
"""What a stage exits with where this machine lacks what it needs: the convention of automake's tests."""


@dataclass(frozen=True)
class Stage:
    """`python -m benchmarks.gpu.<name>`; `least` is how many seconds the stages before it leave to it."""

    name: str
    least: float
    description: str


STAGES = (
    Stage("build", 100, "compiles the extension in place for this GPU's architecture, and runs the doctor"),
    Stage("suite", 60, "the tests that take a device, on the GPU"),
    Stage("sanitize", 40, "compute-sanitizer's tools on a small set of calls, where they work"),
    Stage("repeat", 15, "100 runs with the same bits, half of them beside another stream's work"),
    Stage("graph", 15, "1000 replays of CUDA graphs, with new inputs and beside eager calls"),
    Stage("table", 90, "time beside a copy, eager and torch.compile, from cold buffers"),
    Stage("lenet", 20, "training steps of LeNet-5, eager and in a CUDA graph, and host time of a call"),
)
NAMES = tuple(stage.name for stage in STAGES)

REPORT_SECONDS = 20.0
"""Kept back for the table and the plots."""


@dataclass(frozen=True)
class Outcome:
    """What came of a stage: ok, failed, timed out, skipped or not run."""

    name: str
    state: str
    seconds: float
    limit: float

    @property
    def bad(self) -> bool:
        return self.state not in ("ok", "skipped")

    def __str__(self) -> str:
        return f"{self.name:<9} {self.state:<9} {self.seconds:6.1f} s of {self.limit:.0f}"


def limit(stage: Stage, later: Sequence[Stage], left: float) -> float:
    """The seconds that a stage may take: all that is left but for the least of those after it."""
    return max(0.0, min(left, max(stage.least, left - sum(each.least for each in later))))


def state_of(exit_code: int | None) -> str:
    """In a word; None is a stage that was stopped at its limit."""
    return {None: "timed out", 0: "ok", EXIT_SKIPPED: "skipped"}.get(exit_code, "failed")

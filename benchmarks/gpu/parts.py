"""The calls and their parts: their order and time limits. Does not import torch."""

import json
import math
from dataclasses import dataclass
from pathlib import Path
from typing import Any

EXIT_FOUND = 9
"""The exit code that compute-sanitizer uses for an error that it finds."""
EXIT_AGAIN = 75
"""The device is lost to this process, as after an illegal address. A new process may continue."""
EXIT_SKIPPED = 77
"""This machine lacks what the part needs. automake's tests use the same code."""


@dataclass(frozen=True)
class Part:
    """A process, `python -m benchmarks.gpu.<module>`. A sanitizer's part has the tool's name.

    The process is ended after `seconds`, or after `patience` seconds without a new line. `patience` must
    exceed the time of the longest case.
    """

    name: str
    seconds: float
    description: str
    patience: float = math.inf
    module: str = ""
    sanitizer: bool = False


Step = tuple[tuple[Part, ...], ...]
"""Lanes that run side by side. The parts of a lane run one after the other."""

BUILD = Part("build", 900, "compiles the extension for this GPU, unless one is there that has kernels for it")
FIRST = (
    Part("correct", 30, "small calls by every kernel and exchange against float64", 25),
    Part("table", 90, "time beside a copy, eager and native PyTorch, from cold buffers", 25),
)
PLANS = (
    Part("forced", 80, "the times of plans that the planner did not choose, beside its predictions", 25),
    Part("counters", 40, "ncu's counters of the six kernels"),
)
TESTS = Part("tests", 75, "the tests that take a device, on the GPU", 60)
SANITIZERS = tuple(
    Part(tool, 75, f"compute-sanitizer's {tool} on eight small calls", 50, "correct", sanitizer=True)
    for tool in ("memcheck", "racecheck", "synccheck", "initcheck")
)
BITS = (
    Part("repeat", 30, "100 runs with the same bits, beside another stream's work", 25, "bits"),
    Part("graph", 30, "1000 replays with new inputs, beside eager calls that must agree", 25, "bits"),
)
MODELS = (
    Part("models", 30, "training steps of ResNet-50, eager and fused"),
    Part("compiled", 300, "torch.compile: the same steps, then rows of the table", module="models"),
)

CALLS: dict[str, tuple[Step, ...]] = {
    "first": ((FIRST,),),
    "plans": ((PLANS,),),
    # Nothing is timed in the first step, so its lanes may share the GPU.
    "suite": (((TESTS,), *((part,) for part in SANITIZERS), BITS), (MODELS,)),
}
PARTS = {part.name: part for call in CALLS.values() for step in call for lane in step for part in lane}


def lines_of(file: Path, part: str, since: int = 0) -> list[dict[str, Any]]:
    """A part's lines from byte `since` on. Incomplete lines are left out."""
    found = []
    with file.open("rb") as lines:
        lines.seek(since)
        for line in lines:
            try:
                read = json.loads(line)
            except ValueError:
                continue
            if read.get("part") == part:
                found.append(read)
    return found


def append(file: Path, part: str, **fields: Any) -> None:
    """Appends one line in one write, so that lines of several processes do not mix."""
    with file.open("ab", buffering=0) as lines:
        lines.write(json.dumps({"part": part, **fields}).encode() + b"\n")

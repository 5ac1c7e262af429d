"""Binds the launch planner (csrc/planner.cpp, csrc/cuda/planner) with all fields of its plans: planner.cpp.

It is compiled into build/simt when it is first used.
"""

import functools
from pathlib import Path
from typing import Any, Protocol

from tests.simt import build

HERE = Path(__file__).resolve().parent
ROOT = HERE.parent.parent
CSRC = ROOT / "csrc"
# No contraction, as in setup.py, so that predicted times have the extension's bits.
FLAGS = ("-std=c++17", "-fPIC", "-fvisibility=hidden", "-ffp-contract=off")


class Launch(Protocol):
    """csrc/cuda/planner/plan.h's Launch: a kernel's tiling (csrc/cuda/tiling.h) and grid."""

    N: int
    C: int
    S: int
    elements: int
    channels_last: bool
    vector: int
    mixed: bool
    walk: str
    fold: int
    rows: int
    row_vectors: int
    tile_vectors: int
    tile_channels: int
    tiles: int
    channel_length: int
    threads: int
    group: int
    groups: int
    interleaved: bool
    units: int
    pass_units: int
    pass_rows: int
    passes: int
    iterations: int
    grid: int
    shared_bytes: int


class LaunchPlan(Protocol):
    """csrc/cuda/planner/plan.h's Plan."""

    resident: bool
    exchange: str
    slots: int
    first: Launch | None
    apply: Launch | None
    launches: int
    blocks_per_multiprocessor: int
    partials_bytes: int
    read: int
    written: int
    l2_hits: int
    floor_time: float
    predicted_time: float


@functools.cache
def module() -> Any:
    flags = [*FLAGS, *build.python_flags()]
    files = (HERE / "planner.cpp", CSRC / "planner.cpp", *sorted(CSRC.glob("cuda/planner/*.cpp")))
    objects = [str(build.compiled(build.Source(file), flags, [CSRC])) for file in files]
    link = [build.COMPILER, "-shared", *objects]
    return build.load_module(build.made(build.CACHE / build.digest(*link) / "planner.so", link))


def plan(*arguments: Any, **more: Any) -> LaunchPlan:
    """Takes the arguments of planner.cpp. ValueError names the bad one."""
    made: LaunchPlan = module().plan(*arguments, **more)
    return made


@functools.cache
def device(name: str) -> dict[str, Any]:
    """The planner's facts of a model."""
    fields: dict[str, Any] = module().device_fields(name)
    return fields

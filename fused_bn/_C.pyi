from typing import Any, TypedDict

class BuildInfo(TypedDict):
    compiler: str
    cxx_standard: int
    torch: str
    build_type: str
    openmp: bool
    cpu_capabilities: list[str]
    cuda_version: str
    cuda_architectures: list[str]
    without_cuda: str

def build_info() -> BuildInfo: ...
def cuda_launches() -> int: ...
def cuda_force_plan(text: str) -> None: ...
def cuda_last_plan() -> str: ...
def active_cpu_capability() -> str: ...

class Launch:
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

class LaunchPlan:
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

def plan(
    N: int,  # noqa: N803
    C: int,  # noqa: N803
    S: int,  # noqa: N803
    layout: str,
    dtype: str,
    direction: str,
    residual: bool,
    alignment: int,
    device: str | dict[str, Any],
    part: str = "both",
    activation: str = "relu",
    forced: str = "",
) -> LaunchPlan: ...
def plan_devices() -> list[str]: ...
def plan_device_fields(name: str) -> dict[str, Any]: ...
def plan_has_mask(activation: str) -> bool: ...

from typing import TypedDict

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
def active_cpu_capability() -> str: ...

class LaunchPlan:
    """csrc/cuda/plan.h's Plan, its geometry and traffic included."""

    N: int
    C: int
    S: int
    elements: int
    slabs: int
    steps: int
    rows: int
    row_length: int
    row_vectors: int
    slab_columns: int
    slab_channels: int
    slab_vectors: int
    lanes: int
    threads: int
    group: int
    groups: int
    register_steps: int
    shared_steps: int
    grid: int
    shared_bytes: int
    shared_parts: list[tuple[str, int]]
    workspace_bytes: int
    words: int
    mask_bytes: int
    launches: int
    rounds: int
    read: int
    written: int
    retained: int
    retained_at_once: int
    l2_hits: int
    channels_last: bool
    whole: bool
    mapping: str
    exchange: str
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
    device: str | dict[str, float | str],
    exchange: str | None = None,
    activation: str = "relu",
) -> LaunchPlan: ...
def plan_devices() -> list[str]: ...
def plan_device_fields(name: str) -> dict[str, float]: ...
def plan_register_steps(dtype: str, direction: str, mapping: str, activation: str = "relu") -> int: ...
def plan_has_mask(activation: str) -> bool: ...
def plan_mask_bytes_set_aside(N: int, C: int, S: int, layout: str) -> int: ...  # noqa: N803
def plan_element_visits(plan: LaunchPlan) -> bytes: ...
def plan_mask_visits(plan: LaunchPlan) -> bytes: ...
def plan_mask_bits(plan: LaunchPlan) -> bytes: ...
def plan_partial_and_unaligned(plan: LaunchPlan) -> tuple[int, int]: ...
def plan_misattributed(plan: LaunchPlan) -> int: ...
def plan_block_values(plan: LaunchPlan) -> tuple[list[int], list[list[int]]]: ...
def plan_last_vector(plan: LaunchPlan) -> tuple[int, int]: ...
def plan_shared_bytes_with(plan: LaunchPlan, more_steps: int, dtype: str, direction: str) -> int: ...
def plan_quotient(divisor: int, dividends: list[int]) -> list[int]: ...

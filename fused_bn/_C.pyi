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
    part: str,
    activation: str,
    forced: str,
) -> dict[str, Any]: ...
def plan_devices() -> list[str]: ...

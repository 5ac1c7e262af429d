from typing import TypedDict

class BuildInfo(TypedDict):
    compiler: str
    cxx_standard: int
    torch: str
    build_type: str
    cpu_capabilities: list[str]
    cuda_version: str
    cuda_architectures: list[str]
    without_cuda: str

def build_info() -> BuildInfo: ...
def active_cpu_capability() -> str: ...

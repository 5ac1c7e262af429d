"""Compiles the emulated device, with g++ into build/cuda_device/. A second call compiles nothing."""

import importlib.metadata
from pathlib import Path

import torch

from tests.cuda import toolchain
from tests.simt import build as simt

HERE = Path(__file__).resolve().parent
FOLDER = simt.ROOT / "build" / "cuda_device"

RUNTIME = ("device", "graphs", "kernels", "launches", "memory", "names", "nccl", "races", "streams")


def cuda_headers() -> Path:
    found = toolchain.toolkit()
    if found is None:
        raise RuntimeError(toolchain.why_no_nvcc())
    return Path(found.home, "include")


def nccl_headers() -> Path:
    """Of the package that torch's CUDA build installs."""
    file = next(f for f in importlib.metadata.files("nvidia-nccl-cu13") or [] if f.name == "nccl.h")
    return Path(str(file.locate())).parent


def runtime() -> Path:
    """What stands in the place of libcudart: everything of CUDA that torch and the extension call."""
    flags = (f"-I{HERE}", f"-isystem{cuda_headers()}", f"-isystem{nccl_headers()}")
    sources = [simt.Source(HERE / f"{name}.cpp", optimise="1", flags=flags) for name in RUNTIME]
    kernels = [
        simt.Source(simt.HERE / "kernels_one_type.cpp", (f"SIMT_ELEMENT={element}",))
        for element in simt.ELEMENTS.values()
    ]
    return simt.build("libcuda_device", [*sources, *kernels], module=True)


def driver() -> Path:
    """What stands in the place of libcuda, under its name."""
    command = [simt.COMPILER, "-shared", "-fPIC", "-Wl,-soname,libcuda.so.1", f"-isystem{cuda_headers()}"]
    source = HERE / "driver.cpp"
    return simt.made(
        FOLDER / simt.digest(*command, source.read_text()) / "libcuda.so.1", [*command, str(source)]
    )


def aten() -> Path:
    """ATen's operators on CUDA tensors, for this interpreter's torch."""
    package = Path(torch.__file__).parent
    headers = (package / "include", package / "include/torch/csrc/api/include", cuda_headers())
    source = HERE / "aten.cpp"
    command = [
        *(simt.COMPILER, "-shared", "-fPIC", "-std=c++17", "-O1", "-w"),
        *(f"-isystem{path}" for path in headers),
        *(str(source), f"-L{package}/lib", "-ltorch_cuda", "-lc10_cuda", "-ltorch_cpu", "-lc10"),
    ]
    name = simt.digest(*command, source.read_text(), torch.__version__)
    return simt.made(FOLDER / name / "libcuda_device_aten.so", command)

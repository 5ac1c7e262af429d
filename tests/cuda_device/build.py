"""Compiles the emulated device, with g++ into build/cuda_device/. A second call compiles nothing."""

import importlib.metadata
from pathlib import Path

import torch

from tests.gates import toolchain
from tests.simt import build as simt

HERE = Path(__file__).resolve().parent
FOLDER = simt.ROOT / "build" / "cuda_device"

RUNTIME = ("device", "events", "graphs", "kernels", "launches", "memory", "names", "nccl", "races", "streams")


def cuda_headers() -> Path:
    found = toolchain.toolkit()
    if found is None:
        raise RuntimeError(toolchain.why_no_nvcc())
    return Path(found.home, "include")


def nccl_headers() -> Path:
    """Of the package that torch's CUDA build installs."""
    if torch.version.cuda is None:
        raise RuntimeError(f"torch {torch.__version__} was built without CUDA")
    package = f"nvidia-nccl-cu{torch.version.cuda.split('.')[0]}"
    file = next(f for f in importlib.metadata.files(package) or [] if f.name == "nccl.h")
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


def library(name: str, source: Path, *options: str) -> Path:
    """One that consists of one source."""
    common = ("-shared", "-fPIC", "-std=c++17", "-O1", "-Wall", f"-isystem{cuda_headers()}")
    command = [simt.COMPILER, *common, str(source), *options]
    texts = [file.read_text() for file in simt.included_files(source, [HERE])]
    return simt.made(FOLDER / simt.digest(simt.compiler_version(), *command, *texts) / name, command)


def driver() -> Path:
    """What stands in the place of libcuda, under its name."""
    return library("libcuda.so.1", HERE / "driver.cpp", "-Wl,-soname,libcuda.so.1")


def aten() -> Path:
    """ATen's operators on CUDA tensors, for this interpreter's torch."""
    package = Path(torch.__file__).parent
    headers = (package / "include", package / "include/torch/csrc/api/include")
    torchs = (f"-DTORCH_{torch.__version__.replace('.', '_').replace('+', '_')}", f"-L{package}/lib")
    libraries = ("-ltorch_cuda", "-lc10_cuda", "-ltorch_cpu", "-lc10")
    options = (*(f"-isystem{path}" for path in headers), *torchs, *libraries)
    return library("libcuda_device_aten.so", HERE / "aten.cpp", *options)

"""Says what is built, which device paths work on this machine, and what to do where one does not."""

import platform
from pathlib import Path
from typing import NamedTuple

import torch
from torch import Tensor, nn
from torch.torch_version import TorchVersion

import fused_bn
from fused_bn._extension import (
    DISABLE_VARIABLE,
    HOW_TO_BUILD,
    devices_with_kernels,
    extension,
    missing_reason,
)
from fused_bn._version import TESTED_TORCH

WORKAROUND = f"{DISABLE_VARIABLE}=1 runs the pure-PyTorch fallback instead"
THREADS = {
    True: "CPU threads: all that torch uses (OpenMP)",
    False: "CPU threads: one, because the compiler was not g++ (no OpenMP); CXX=g++ builds for all",
}

LARGEST = 30.0
TOLERANCE = 2 * 100 * 2.0**-24 * LARGEST
"""A channel of the step below has 100 values, so that on neither side more than about 100 roundings to fp32
lie between its data and a result; values and partial sums are of size `LARGEST` or less."""


class DevicePath(NamedTuple):
    """What came of one device: whether it failed, in words what works, and the remedy where needed."""

    device: str
    failed: bool
    state: str
    remedy: str = ""


def main() -> int:
    """Prints the report; 0 where the CPU path runs compiled kernels and no path gives wrong results."""
    for label, text in versions():
        print(f"{label:<10}{text}")
    print("\nA tiny forward and backward on each device, compared with nn.BatchNorm2d and ReLU:")
    paths = [cpu_path(), cuda_path()]
    for path in paths:
        print(f"{path.device:<10}{path.state}")
        if path.remedy:
            print(f"{'':<10}-> {path.remedy}")
    return int("cpu" not in devices_with_kernels or any(path.failed for path in paths))


def versions() -> list[tuple[str, str]]:
    """Labels and texts: what runs here, then what was built."""
    lines = [
        ("fused_bn", f"{fused_bn.__version__} in {Path(fused_bn.__file__).parent}"),
        ("torch", f"{torch.__version__}, CUDA {torch.version.cuda or 'not included'}"),
        ("", tested_torch(torch.__version__)),
        ("Python", f"{platform.python_version()} on {platform.platform()}"),
    ]
    if extension is None:
        return [*lines, ("built", "no extension that can be loaded")]
    info = extension.build_info()
    cpu = ", ".join(info["cpu_capabilities"])
    cuda = f"CUDA {info['cuda_version']} for {', '.join(info['cuda_architectures'])}"
    return [
        *lines,
        ("built", f"{info['build_type']}, by {info['compiler']} (C++{info['cxx_standard'] // 100 % 100})"),
        ("", f"for torch {info['torch']}"),
        ("", f"CPU kernels: {cpu}; active: {active_cpu_capability()}"),
        ("", THREADS[info["openmp"]]),
        ("", f"CUDA kernels: {cuda if info['cuda_version'] else 'none'}"),
    ]


def tested_torch(running: str) -> str:
    oldest, newest = map(TorchVersion, TESTED_TORCH)
    inside = oldest <= TorchVersion(running.split("+")[0]) <= newest
    return f"tested: {oldest} to {newest}{'' if inside else ', not this one'}"


def active_cpu_capability() -> str:
    assert extension is not None
    try:
        return str(extension.active_cpu_capability())
    except RuntimeError as error:  # the environment asks for one that is not there
        return f"none ({error})"


def cpu_path() -> DevicePath:
    error = disagreement("cpu")
    if error:
        return DevicePath("cpu", True, f"failed: {error}", remedy_for_extension() or WORKAROUND)
    if "cpu" in devices_with_kernels:
        return DevicePath("cpu", False, "ok, compiled kernels")
    return DevicePath("cpu", False, "ok, but only the slow pure-PyTorch fallback", remedy_for_extension())


def cuda_path() -> DevicePath:
    if torch.version.cuda is None:
        return DevicePath("cuda", False, "not here: this torch is a build without CUDA")
    if not torch.cuda.is_available():
        return DevicePath("cuda", False, "not here: torch finds no GPU, or no driver for it")
    gpu = f"{torch.cuda.get_device_name()}, sm_{''.join(map(str, torch.cuda.get_device_capability()))}"
    error = disagreement("cuda")
    if error:
        return DevicePath("cuda", True, f"failed on {gpu}: {error}", remedy_for_cuda())
    if "cuda" in devices_with_kernels:
        return DevicePath("cuda", False, f"ok, compiled kernels on {gpu}")
    return DevicePath(
        "cuda", False, f"ok, but only the slow pure-PyTorch fallback on {gpu}", remedy_for_cuda()
    )


def remedy_for_extension() -> str:
    """What to do about the extension as a whole; empty where it is loaded."""
    if extension is not None:
        return ""
    if DISABLE_VARIABLE in missing_reason:
        return f"{missing_reason}: unset it to use the compiled kernels"
    if missing_reason.startswith("built for torch"):
        return f"the extension is {missing_reason}: {HOW_TO_BUILD}"
    files = [path.name for path in Path(fused_bn.__file__).parent.glob("_C*.so")]
    if files:
        return (
            f"{', '.join(files)} does not load ({missing_reason}), which is what one built for another "
            f"Python, or for another CUDA than torch's, does: {HOW_TO_BUILD}"
        )
    return f"the extension is not built: {HOW_TO_BUILD}"


def remedy_for_cuda() -> str:
    """What to do where the GPU's path does not run compiled kernels, or not rightly."""
    if extension is None:
        return remedy_for_extension()
    info = extension.build_info()
    if info["without_cuda"]:
        return f"built without CUDA, because {info['without_cuda']}; then build again"
    major, minor = torch.cuda.get_device_capability()
    return (
        f"the kernels are built for {', '.join(info['cuda_architectures'])}, this GPU is {major}.{minor}: "
        f"where that does not fit, build again with TORCH_CUDA_ARCH_LIST={major}.{minor}"
    )


def disagreement(device: str) -> str:
    """Runs one training step here and compares all its results; empty where they agree with PyTorch's."""
    try:
        ours = training_step(fused_bn.BatchNorm2d(3, activation="relu"), nn.Identity(), device)
        theirs = training_step(nn.BatchNorm2d(3), nn.ReLU(), device)
        for name, expected in theirs.items():
            if not torch.allclose(ours[name], expected, rtol=0, atol=TOLERANCE):
                difference = (ours[name] - expected).abs().max().item()
                return f"{name} differs from nn.BatchNorm2d's by up to {difference:.3g}"
    except Exception as error:  # whatever it is, it belongs in the report
        return str(error).strip().split("\n")[0] or type(error).__name__
    return ""


def training_step(norm: nn.BatchNorm2d, activation: nn.Module, device: str) -> dict[str, Tensor]:
    norm = norm.to(device)
    generator = torch.Generator().manual_seed(0)
    input = torch.randn(4, 3, 5, 5, generator=generator).to(device).requires_grad_()
    output = activation(norm(input))
    output.backward(torch.randn(output.shape, generator=generator).to(device))
    results = {
        "output": output,
        "the input's gradient": input.grad,
        "the weight's gradient": norm.weight.grad,
        "the bias's gradient": norm.bias.grad,
        "running_mean": norm.running_mean,
        "running_var": norm.running_var,
    }
    return {name: tensor.detach() for name, tensor in results.items() if tensor is not None}

"""The conditions that measured numbers depend on, apart from the code."""

import os
import platform
from datetime import datetime, timezone
from pathlib import Path
from typing import Any

import torch

import fused_bn
from fused_bn._extension import devices_with_kernels, extension


def environment(device: torch.device) -> dict[str, Any]:
    """Versions, the device and its kernels, threads, and the date (UTC), as JSON values."""
    compiled = device.type in devices_with_kernels
    return {
        "date": datetime.now(timezone.utc).isoformat(timespec="seconds"),
        "fused_bn": fused_bn.__version__,
        "fused_bn_kernels": "compiled" if compiled else "pure-PyTorch fallback",
        "fused_bn_capability": _capability(device) if compiled else None,
        "torch": torch.__version__,
        "cuda": torch.version.cuda,
        "python": platform.python_version(),
        "platform": platform.platform(),
        "device": torch.cuda.get_device_name(device) if device.type == "cuda" else _processor(),
        "threads": torch.get_num_threads(),
        "omp_wait_policy": os.environ.get("OMP_WAIT_POLICY"),
    }


def _capability(device: torch.device) -> str:
    """The instruction set of the CPU kernels, or the CUDA architectures of the build."""
    assert extension is not None
    if device.type == "cpu":
        return str(extension.active_cpu_capability())
    return ", ".join(extension.build_info()["cuda_architectures"])


def _processor() -> str:
    """The processor's name, as Linux or Python reports it."""
    try:
        lines = Path("/proc/cpuinfo").read_text().splitlines()
        return next(line.split(":", 1)[1].strip() for line in lines if line.startswith("model name"))
    except (OSError, StopIteration):
        return platform.processor() or platform.machine()

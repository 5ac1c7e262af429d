"""The environment in which a process, and every process that it starts, has emulated CUDA devices."""

import os
from pathlib import Path

from tests.cuda_device import build
from tests.simt.build import digest

AUTOLOAD = {
    "cuda_device_autoload.py": (build.HERE / "autoload.py").read_text(),
    "cuda_device-1.dist-info/METADATA": "Metadata-Version: 2.1\nName: cuda_device\nVersion: 1\n",
    "cuda_device-1.dist-info/entry_points.txt": "[torch.backends]\ncuda_device = cuda_device_autoload:load\n",
}
"""On PYTHONPATH these are an installed distribution, whose entry point torch calls when it is imported."""


def autoload() -> Path:
    folder = build.FOLDER / digest(*AUTOLOAD.values())
    for name, text in AUTOLOAD.items():
        path = folder / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text)
    return folder


def emulated(environment: dict[str, str], **settings: str) -> dict[str, str]:
    """`environment` with the devices and these settings, which the README lists."""
    libraries = (build.runtime(), build.driver())
    python_path = [str(autoload()), *filter(None, [environment.get("PYTHONPATH")])]
    return {
        **environment,
        "LD_PRELOAD": " ".join(map(str, libraries)),
        "PYTHONPATH": os.pathsep.join(python_path),
        "CUDA_DEVICE_ATEN": str(build.aten()),
        "PYTORCH_NVML_BASED_CUDA_CHECK": "0",
        "OMP_WAIT_POLICY": "PASSIVE",
        **settings,
    }

"""The environment in which a process, and every process that it starts, has emulated CUDA devices."""

import os
import subprocess
import sys
import tempfile
from collections.abc import Mapping
from pathlib import Path
from types import MappingProxyType

from tests.cuda_device import build
from tests.simt.build import ROOT, digest

AUTOLOAD = {
    "cuda_device_autoload.py": (build.HERE / "autoload.py").read_text(),
    "cuda_device-1.dist-info/METADATA": "Metadata-Version: 2.1\nName: cuda_device\nVersion: 1\n",
    "cuda_device-1.dist-info/entry_points.txt": "[torch.backends]\ncuda_device = cuda_device_autoload:load\n",
}
"""On PYTHONPATH these are an installed distribution, whose entry point torch calls when it is imported."""


def autoload() -> Path:
    folder = build.FOLDER / digest(*AUTOLOAD.values())
    if not folder.exists():
        build.FOLDER.mkdir(parents=True, exist_ok=True)
        unfinished = Path(tempfile.mkdtemp(dir=build.FOLDER))
        for name, text in AUTOLOAD.items():
            path = unfinished / name
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_text(text)
        unfinished.rename(folder)
    return folder


def paths(*entries: str | None) -> str:
    return os.pathsep.join(entry for entry in entries if entry)


def emulated(environment: Mapping[str, str]) -> dict[str, str]:
    """`environment` with emulated devices, as its variables describe them: README.md lists these."""
    libraries = map(str, (build.runtime(), build.driver()))
    return {
        **environment,
        "LD_PRELOAD": " ".join([*libraries, environment.get("LD_PRELOAD", "")]).strip(),
        "PYTHONPATH": paths(str(autoload()), environment.get("PYTHONPATH")),
        "CUDA_DEVICE_ATEN": str(build.aten()),
        "PYTORCH_NVML_BASED_CUDA_CHECK": "0",
        "OMP_WAIT_POLICY": "PASSIVE",
    }


def in_python(
    *arguments: str, settings: Mapping[str, str] = MappingProxyType({}), package: Path | None = None
) -> subprocess.CompletedProcess[str]:
    """What a Python process did that can import these tests, with devices as this process has them.

    Args:
        settings: Further environment variables.
        package: A folder whose packages are imported instead of the installed ones.
    """
    path = paths(str(package or ""), os.environ.get("PYTHONPATH"), str(ROOT))
    environment = {**os.environ, **settings, "PYTHONPATH": path}
    command = [sys.executable, *arguments]
    return subprocess.run(
        command, cwd=ROOT, env=environment, capture_output=True, text=True, check=False, timeout=600
    )

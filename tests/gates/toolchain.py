"""Finds nvcc and nvdisasm. `python -m tests.gates.toolchain` fails if one of them is missing."""

import functools
import importlib.metadata
import os
import shutil
import subprocess
import sys
from pathlib import Path

import torch

import setup

PACKAGE = "nvidia-cuda-nvdisasm"  # its version is in .ci/requirements-cuda.txt


@functools.cache
def toolkit() -> setup.Toolkit | None:
    """The toolkit that a build would use."""
    return setup.find_toolkit(os.environ, torch.version.cuda)


def nvcc() -> Path:
    found = toolkit()
    assert found is not None
    return Path(found.home, "bin", "nvcc")


@functools.cache
def nvdisasm() -> Path | None:
    """nvdisasm of the Python package, whose version is fixed, else of PATH or the toolkit."""
    try:
        files = importlib.metadata.files(PACKAGE) or []
    except importlib.metadata.PackageNotFoundError:
        files = []
    packaged = [Path(str(file.locate())) for file in files if file.name == "nvdisasm"]
    found = toolkit()
    directories = [os.environ.get("PATH", ""), *([f"{found.home}/bin"] if found else [])]
    elsewhere = shutil.which("nvdisasm", path=os.pathsep.join(directories))
    return next((path for path in packaged if path.exists()), Path(elsewhere) if elsewhere else None)


@functools.cache
def version(tool: Path) -> str:
    return subprocess.run([str(tool), "--version"], capture_output=True, text=True, check=True).stdout


def why_no_nvcc() -> str:
    return "" if toolkit() else "no nvcc on PATH or in CUDA_HOME"


def why_no_nvdisasm() -> str:
    return "" if nvdisasm() else f"no nvdisasm: `pip install -r .ci/requirements-cuda.txt` brings {PACKAGE}"


if __name__ == "__main__":
    sys.exit(why_no_nvcc() or why_no_nvdisasm() or 0)

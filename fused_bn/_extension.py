"""Loads the compiled extension, which registers the `fused_bn::` operators; says so where it cannot."""

import importlib.util
import mmap
import os
import re
import warnings
from pathlib import Path
from types import ModuleType

import torch

DISABLE_VARIABLE = "FUSED_BN_DISABLE_EXTENSION"

HOW_TO_BUILD = (
    "build it with `pip install --no-build-isolation .` in a checkout of fused_bn "
    "(it needs a compiler of C++20, or of C++17 for torch before 2.14), with the same torch that runs it"
)


def torch_that_built(library: Path) -> str:
    """Reads the version that csrc/module.cpp wrote into the file, without loading it.

    torch's C++ interface may change with each version: 2.9.1 moved entries of a virtual table of 2.9.0. What
    loads may still crash later.
    """
    with library.open("rb") as file, mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ) as content:
        found = re.search(rb"fused_bn built for torch ([^\0]+)\0", content)
        return found[1].decode() if found else "of unknown version"


def _load() -> tuple[ModuleType | None, str]:
    """Returns the extension module, or None and the reason."""
    if os.environ.get(DISABLE_VARIABLE, "0") not in ("", "0"):
        return None, f"{DISABLE_VARIABLE} is set"
    found = importlib.util.find_spec("fused_bn._C")
    if found is None or found.origin is None:
        return None, "no fused_bn._C for this Python"
    running = torch.__version__.split("+")[0]
    try:
        built_for = torch_that_built(Path(found.origin))
        if built_for != running:
            return None, f"built for torch {built_for}, this is {running}"
        return importlib.import_module("fused_bn._C"), ""
    except (ImportError, OSError, ValueError) as error:  # ValueError: an empty file
        return None, str(error)


extension, missing_reason = _load()

if extension is None:
    warnings.warn(
        "fused_bn runs on its slow pure-PyTorch fallback, because the compiled extension could not be "
        f"loaded ({missing_reason}); {HOW_TO_BUILD}.",
        RuntimeWarning,
        stacklevel=2,
    )


def _devices_with_kernels() -> frozenset[str]:
    """The device types that have kernels; the others use the fallback."""
    if extension is None:
        return frozenset()
    return frozenset({"cpu", "meta", *["cuda"] * bool(extension.build_info()["cuda_version"])})


devices_with_kernels = _devices_with_kernels()

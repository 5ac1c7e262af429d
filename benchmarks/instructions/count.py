"""Counts instructions with torch.utils.benchmark's Timer under valgrind's callgrind."""

import os
import platform
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from shutil import which

import torch
from torch.utils.benchmark import Timer

from benchmarks.history import ROOT
from benchmarks.instructions.calls import BLOCKS, COUNTED
from benchmarks.timing import without_garbage_collection
from fused_bn._extension import devices_with_kernels, extension

NUMBER = 100
"""A count is the mean over so many calls."""
TIMER_WARM_UP = 10
"""Timer calls its statement so often before it counts. `turns` relies on it to count the right calls."""

TOOLS = ("valgrind", "callgrind_control", "callgrind_annotate")

ENVIRONMENT = {
    "PYTHONHASHSEED": "0",  # fixes the order in sets, and so the paths through hash tables
    "OMP_NUM_THREADS": "1",
    # The instruction set that all processors have. valgrind does not know AVX-512.
    "FUSED_BN_CPU_CAPABILITY": "default",
    "ATEN_CPU_CAPABILITY": "default",
}


def missing() -> str | None:
    """The reason why this machine cannot count, or None."""
    if not torch._C._valgrind_supported_platform():
        return f"torch has no calls to valgrind for {platform.machine()}"
    tools = [tool for tool in TOOLS if which(tool) is None]
    if tools:
        return f"{', '.join(tools)}: not installed; Debian's package valgrind has them"
    if "cpu" not in devices_with_kernels:
        return "the compiled extension is not loaded"
    with _environment():
        found = which("python")
    if found is None or os.path.realpath(found) != os.path.realpath(sys.executable):
        return f"Timer starts `python`, and beside {sys.executable} there is none"
    return None


def key() -> str:
    """What counts depend on besides the code: torch, Python, their compilers and the architecture."""
    assert extension is not None
    info = extension.build_info()
    version = ".".join(platform.python_version_tuple()[:2])
    return (
        f"torch {torch.__version__}, python {version} by {platform.python_compiler()}, "
        f"{platform.machine()}, {info['build_type']} by {info['compiler']}"
    )


def count() -> dict[str, int]:
    """Counts instructions per call for COUNTED. This takes a minute, mostly to import torch under valgrind.

    One process counts everything, so that torch is imported once. Each repeat of Timer runs the next block's
    turns. Raises OSError with valgrind's text if it fails.
    """
    setup = f"from benchmarks.instructions.calls import turns; turn = turns({TIMER_WARM_UP}, {NUMBER})"
    with _environment(), without_garbage_collection():  # `turns` turns it off in this process, too
        timer = Timer("next(turn)()", setup, num_threads=1)
        found = timer.collect_callgrind(
            NUMBER, repeats=len(BLOCKS), collect_baseline=False, retain_out_file=False
        )
    counts = [(name, stats.counts() // NUMBER) for name, stats in zip(BLOCKS, found, strict=True)]
    return {name: min(count for block, count in counts if block == name) for name in COUNTED}


@contextmanager
def _environment() -> Iterator[None]:
    """The environment of Timer's process: this interpreter as `python`, this checkout, no randomness."""
    before = dict(os.environ)
    paths = {"PATH": str(Path(sys.executable).parent), "PYTHONPATH": str(ROOT)}
    for name, first in paths.items():
        os.environ[name] = os.pathsep.join(filter(None, [first, before.get(name)]))
    os.environ.update(ENVIRONMENT)
    try:
        yield
    finally:
        os.environ.clear()
        os.environ.update(before)

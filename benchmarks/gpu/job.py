"""What the stages' processes share: their arguments, the device, the time left, readings and failures."""

import argparse
import contextlib
import json
import os
import subprocess
import time
import traceback
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import torch

from benchmarks.gpu.stages import EXIT_SKIPPED

MARGIN_SECONDS = 3.0
"""Before the limit at which a stage is stopped: for its last readings and its end."""


class SkippedError(Exception):
    """This machine lacks what the stage needs; that is no failure."""


class Job:
    """One stage at work. `readings` is written by `save`, as often as there is something to lose."""

    def __init__(self, readings: Path | None, seconds: float, smoke: bool) -> None:
        self.smoke = smoke
        self.readings: dict[str, Any] = {}
        self.failures: list[str] = []
        self._file = readings
        self._deadline = time.monotonic() + seconds - MARGIN_SECONDS

    @property
    def device(self) -> torch.device:
        """The GPU; a smoke run does with the CPU."""
        if torch.cuda.is_available():
            return torch.device("cuda", torch.cuda.current_device())
        if self.smoke:
            return torch.device("cpu")
        raise RuntimeError("torch sees no CUDA device; --smoke tries the stages out on the CPU")

    @property
    def left(self) -> float:
        """Seconds until the stage should have ended."""
        return self._deadline - time.monotonic()

    def fail(self, text: str) -> None:
        """Notes a failure and goes on."""
        self.failures.append(text)
        print(f"FAILED: {text}", flush=True)

    def save(self) -> None:
        if self._file is None:
            return
        content = {**self.readings, "failures": self.failures}
        new = self._file.with_suffix(".new")
        new.write_text(json.dumps(content))
        os.replace(new, self._file)


def main(work: Callable[[Job], None], argv: Sequence[str] | None = None) -> int:
    """A stage's `main`: runs `work` and returns 0, 1 where something failed, or EXIT_SKIPPED."""
    parser = argparse.ArgumentParser(description="One stage of `python -m benchmarks.gpu`, alone.")
    parser.add_argument("--readings", type=Path, help="file for the readings, as JSON")
    parser.add_argument("--seconds", type=float, default=600, help="for all of it")
    parser.add_argument("--smoke", action="store_true", help="tiny sizes, also on the CPU")
    args = parser.parse_args(argv)
    job = Job(args.readings, args.seconds, args.smoke)
    try:
        work(job)
    except SkippedError as reason:
        job.readings["skipped"] = str(reason)
        print(f"skipped: {reason}", flush=True)
        job.save()
        return EXIT_SKIPPED
    except Exception as error:  # whatever it is, what was read before is to be kept
        traceback.print_exc()
        job.fail(f"{type(error).__name__}: {str(error).splitlines()[0] if str(error) else ''}")
    job.save()
    return int(bool(job.failures))


def require_kernels(job: Job) -> torch.device:
    """The device, with its environment noted; raises where fused_bn would compute with torch's own calls."""
    from benchmarks.environment import environment
    from fused_bn._extension import devices_with_kernels

    device = job.device
    if device.type not in devices_with_kernels:
        raise RuntimeError(f"the extension is not built with kernels for {device.type}: run the stage build")
    job.readings["environment"] = {**environment(device), **_hardware(device), "revision": _revision()}
    return device


def _hardware(device: torch.device) -> dict[str, Any]:
    if device.type != "cuda":
        return {}
    properties = torch.cuda.get_device_properties(device)
    return {
        "capability": f"{properties.major}.{properties.minor}",
        "driver": _output("nvidia-smi", "--query-gpu=driver_version", "--format=csv,noheader"),
        "cudnn": torch.backends.cudnn.version(),
        "multiprocessors": properties.multi_processor_count,
        "l2_bytes": properties.L2_cache_size,
        "memory_bytes": properties.total_memory,
    }


def _revision() -> str | None:
    """The commit, with a + where tracked files differ from it; None outside a checkout."""
    head = _output("git", "rev-parse", "--short=12", "HEAD")
    return head and head + "+" * bool(_output("git", "status", "--porcelain", "--untracked-files=no"))


def _output(*command: str) -> str | None:
    """What `command` prints, its first line; None where it cannot run."""
    with contextlib.suppress(OSError, subprocess.SubprocessError):
        found = subprocess.run(command, capture_output=True, text=True, check=True, timeout=20)
        return next(iter(found.stdout.splitlines()), None)
    return None

"""What the parts' processes share: arguments, the device, the time left, and the output lines."""

import argparse
import contextlib
import json
import subprocess
import sys
import time
import traceback
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any, TypeVar

import torch

from benchmarks.gpu.parts import EXIT_AGAIN, EXIT_SKIPPED, append, lines_of
from benchmarks.timing import synchronize

T = TypeVar("T")

MARGIN_SECONDS = 2.0
"""No case starts in the last seconds before the part's time limit."""


class SkippedError(Exception):
    """This machine lacks what the part needs. That is no failure."""


class Job:
    """A running part. Without a file it only prints its lines."""

    def __init__(
        self,
        part: str,
        file: Path | None = None,
        since: int = 0,
        seconds: float = 600,
        smoke: bool = False,
        build: bool = False,
    ) -> None:
        self.part, self.smoke, self.build = part, smoke, build
        self.failed = False
        self._file = file
        self._deadline = time.monotonic() + seconds - MARGIN_SECONDS
        lines = lines_of(file, part, since) if file else []
        self._begun = {line["begun"] for line in lines if "begun" in line}

    @property
    def device(self) -> torch.device:
        """The GPU. A smoke run may use the CPU."""
        if torch.cuda.is_available():
            return torch.device("cuda", torch.cuda.current_device())
        if self.smoke:
            return torch.device("cpu")
        raise RuntimeError("torch sees no CUDA device; --smoke tries everything out on the CPU")

    @property
    def left(self) -> float:
        """Seconds until the part should have ended."""
        return self._deadline - time.monotonic()

    def write(self, **fields: Any) -> None:
        print(json.dumps(fields), flush=True)
        if self._file is not None:
            append(self._file, self.part, **fields)

    def fail(self, text: str) -> None:
        """Records a failure and goes on."""
        self.failed = True
        self.write(failed=text)

    def each(self, cases: Mapping[str, T], work: Callable[[T], dict[str, Any]]) -> None:
        """Writes the result of `work` for every case that no earlier process of this part has started."""
        for name, case in cases.items():
            if name in self._begun:
                continue
            if self.left < 0:
                self.fail(f"no time left from {name} on")
                return
            self.write(begun=name)
            start = time.monotonic()
            try:
                result = work(case)
            except Exception as error:  # a case's failure must not cost the others
                traceback.print_exc()
                self.fail(f"{name}: {error_text(error)}")
                self._leave_a_lost_device()
            else:
                self.write(case=name, **result, took=round(time.monotonic() - start, 2))

    def _leave_a_lost_device(self) -> None:
        try:
            synchronize(self.device)
        except Exception:
            sys.exit(EXIT_AGAIN)


def error_text(error: Exception) -> str:
    """An error in one line."""
    return f"{type(error).__name__}: {next(iter(str(error).splitlines()), '')}"


def main(work: Callable[[Job], None], argv: Sequence[str] | None = None) -> int:
    """A part's `main`: runs `work` and returns 0, 1 if something failed, or EXIT_SKIPPED."""
    parser = argparse.ArgumentParser(description="One part of `python -m benchmarks.gpu`, alone.")
    parser.add_argument("--part", default=Path(sys.argv[0]).stem, help="its name in the lines it writes")
    parser.add_argument("--file", type=Path, help="file for the lines")
    parser.add_argument("--since", type=int, default=0, help="byte from which on its lines are of this run")
    parser.add_argument("--seconds", type=float, default=600, help="for all of it")
    parser.add_argument("--smoke", action="store_true", help="tiny sizes, also on the CPU")
    parser.add_argument("--build", action="store_true", help="of the part build: compiles anew")
    job = Job(**vars(parser.parse_args(argv)))
    try:
        work(job)
    except SkippedError as reason:
        job.write(skipped=str(reason))
        return EXIT_SKIPPED
    except Exception as error:  # the output file must record any error
        traceback.print_exc()
        job.fail(error_text(error))
    return int(job.failed)


def require_kernels(job: Job) -> torch.device:
    """The device. Records its environment. Raises an error if fused_bn would use torch's own calls."""
    from benchmarks.environment import environment
    from benchmarks.history import current_commit
    from fused_bn._extension import devices_with_kernels

    device = job.device
    if device.type not in devices_with_kernels:
        raise RuntimeError(f"the extension is not built with kernels for {device.type}")
    job.write(environment={**environment(device), **_hardware(device), "revision": current_commit()})
    return device


def _hardware(device: torch.device) -> dict[str, Any]:
    if device.type != "cuda":
        return {}
    properties = torch.cuda.get_device_properties(device)
    driver = ["nvidia-smi", "--query-gpu=driver_version", "--format=csv,noheader"]
    version = ""
    with contextlib.suppress(OSError):
        version = subprocess.run(driver, capture_output=True, text=True, check=False).stdout.strip()
    return {
        "capability": f"{properties.major}.{properties.minor}",
        "driver": version,
        "cudnn": torch.backends.cudnn.version(),
        "multiprocessors": properties.multi_processor_count,
        "l2_bytes": properties.L2_cache_size,
        "memory_bytes": properties.total_memory,
    }

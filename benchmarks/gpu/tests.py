"""Part tests: every test that takes a device, on the GPU. A line a failure as soon as it is known."""

import importlib.util
import os
import sys
import time
from collections import Counter

import pytest

from benchmarks.gpu.driver import ROOT
from benchmarks.gpu.job import Job, main, require_kernels

MOST_WORKERS = 14
"""Processes of pytest-xdist, where it is installed: each takes half a gigabyte of the GPU for itself."""
IGNORED = ("tests/simt", "tests/cuda", "tests/test_keras*")
"""The kernels' source on the CPU, what nvcc makes of it, and a library that GPU machines may lack."""
MOST_FAILURES = 300
"""Told one by one; a device that is lost fails thousands."""
COUNT_SECONDS = 3.0
"""Between two lines of counts."""


class Outcomes:
    """A pytest plugin that keeps the counts, and tells the failures to the job."""

    def __init__(self, job: Job) -> None:
        self.job = job
        self.counts: Counter[str] = Counter()
        self._told = time.monotonic()

    def pytest_runtest_logreport(self, report: pytest.TestReport) -> None:
        if report.failed:
            self.counts["failed"] += 1
            if self.counts["failed"] <= MOST_FAILURES:
                crash = getattr(report.longrepr, "reprcrash", None)
                message = str(crash.message if crash else report.longrepr)[:300].replace("\n", " ")
                self.job.fail(f"{report.nodeid}: {message}")
        elif report.skipped or report.when == "call":
            self.counts["skipped" if report.skipped else "passed"] += 1
        if time.monotonic() > self._told + COUNT_SECONDS:
            self.tell()

    def tell(self) -> None:
        self._told = time.monotonic()
        self.job.write(counts=self.counts)


def options(device: str, smoke: bool = False) -> list[str]:
    """The tests whose names hold the device, as the fixture `device` puts it there."""
    how = ["-q", "--tb=short", "-p", "no:cacheprovider", "-k", device]
    if smoke:
        return [str(ROOT / "tests/test_determinism.py"), *how]
    workers = min(MOST_WORKERS, len(os.sched_getaffinity(0)) - 2)
    if importlib.util.find_spec("xdist") and workers > 1:
        how += ["-n", str(workers)]
    return [str(ROOT / "tests"), *(f"--ignore-glob={ROOT / path}" for path in IGNORED), *how]


def work(job: Job) -> None:
    device = require_kernels(job)
    # Of workers beside each other torch's threads would outnumber the cores. Sets of strings must have the
    # same order in all of them.
    os.environ.update(OMP_NUM_THREADS="1", PYTHONHASHSEED="0")
    outcomes = Outcomes(job)
    code = pytest.main(options(device.type, job.smoke), plugins=[outcomes])
    outcomes.tell()
    if code != 0 or not outcomes.counts["passed"]:
        job.fail(f"pytest ended with exit code {int(code)}, {outcomes.counts['passed']} passed")


if __name__ == "__main__":
    sys.exit(main(work))

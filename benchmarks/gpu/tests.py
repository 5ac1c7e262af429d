"""Part tests: runs every test that takes a device on the GPU. A failure becomes a line at once."""

import importlib.util
import os
import sys
import time
from collections import Counter

import pytest

from benchmarks.gpu.driver import ROOT
from benchmarks.gpu.job import Job, main, require_kernels

MOST_WORKERS = 14
"""Processes of pytest-xdist, if it is installed. Each uses half a gigabyte of the GPU."""
IGNORED = ("tests/simt", "tests/gates", "tests/modules/test_keras*")
"""Left out: tests of the kernels' source on the CPU, of what nvcc makes of it, and of an optional library."""
MOST_FAILURES = 300
"""How many failures are reported one by one. A lost device makes thousands of tests fail."""
COUNT_SECONDS = 3.0
"""Seconds between two lines of counts."""


class Outcomes:
    """A pytest plugin that counts results and reports failures to the job."""

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
    """The tests whose ids contain the device, as the fixture `device` puts it there."""
    how = ["-q", "--tb=short", "-p", "no:cacheprovider", "-k", device]
    if smoke:
        return [str(ROOT / "tests/ops/test_determinism.py"), *how]
    workers = min(MOST_WORKERS, len(os.sched_getaffinity(0)) - 2)
    if importlib.util.find_spec("xdist") and workers > 1:
        how += ["-n", str(workers)]
    return [str(ROOT / "tests"), *(f"--ignore-glob={ROOT / path}" for path in IGNORED), *how]


def work(job: Job) -> None:
    device = require_kernels(job)
    # Several workers with all of torch's threads would exceed the number of cores. All workers need the same
    # order of sets of strings.
    os.environ.update(OMP_NUM_THREADS="1", PYTHONHASHSEED="0")
    outcomes = Outcomes(job)
    code = pytest.main(options(device.type, job.smoke), plugins=[outcomes])
    outcomes.tell()
    if code != 0 or not outcomes.counts["passed"]:
        job.fail(f"pytest ended with exit code {int(code)}, {outcomes.counts['passed']} passed")


if __name__ == "__main__":
    sys.exit(main(work))

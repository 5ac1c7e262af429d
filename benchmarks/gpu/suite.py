"""Stage suite: every test that takes a device, on the GPU."""

import importlib.util
import os
import subprocess
import sys
import tempfile
from pathlib import Path
from xml.etree import ElementTree

from benchmarks.gpu.driver import ROOT
from benchmarks.gpu.job import Job, main, require_kernels

MOST_WORKERS = 8
"""Processes of pytest-xdist, where it is installed: each takes half a gigabyte of the GPU for itself."""
WITHOUT_GPU = ("tests/simt", "tests/cuda")
"""The kernels' source on the CPU, and what nvcc makes of it: long, and the same on every machine."""


def command(device: str, report: Path, smoke: bool = False) -> list[str]:
    """pytest on the tests whose names hold the device, as the fixture `device` puts it there."""
    options = ["-q", "--maxfail=20", "--tb=short", "-p", "no:cacheprovider", f"--junitxml={report}"]
    if smoke:
        return [sys.executable, "-m", "pytest", "tests/test_determinism.py", "-k", device, *options]
    workers = min(MOST_WORKERS, len(os.sched_getaffinity(0)) // 2)
    if importlib.util.find_spec("xdist") and workers > 1:
        options += ["-n", str(workers)]
    ignored = [f"--ignore={path}" for path in WITHOUT_GPU]
    return [sys.executable, "-m", "pytest", "tests", *ignored, "-k", device, *options]


def summary(report: Path) -> dict[str, object]:
    """The counts, and the names of the tests that failed, of a JUnit file."""
    counts = {"passed": 0, "failed": 0, "skipped": 0}
    failed = []
    for test in ElementTree.parse(report).iter("testcase"):
        outcomes = {child.tag for child in test}
        outcome = (
            "failed" if outcomes & {"failure", "error"} else "skipped" if "skipped" in outcomes else "passed"
        )
        counts[outcome] += 1
        if outcome == "failed":
            failed.append(f"{test.get('classname')}.{test.get('name')}")
    return {**counts, "failed_tests": failed}


def work(job: Job) -> None:
    device = require_kernels(job)
    with tempfile.TemporaryDirectory() as directory:
        report = Path(directory) / "junit.xml"
        # Workers beside each other: torch's threads would outnumber the cores.
        environment = {**os.environ, "OMP_NUM_THREADS": "2"}
        code = subprocess.run(
            command(device.type, report, job.smoke), cwd=ROOT, env=environment, check=False
        ).returncode
        found = summary(report) if report.exists() else {}
    job.readings.update(found)
    print({name: count for name, count in found.items() if name != "failed_tests"}, flush=True)
    if code != 0 or not found.get("passed"):
        job.fail(f"pytest ended with exit code {code}, {found.get('passed', 0)} passed")


if __name__ == "__main__":
    sys.exit(main(work))

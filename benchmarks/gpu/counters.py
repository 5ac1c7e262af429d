"""Part counters: ncu's counters of the six kernels, launched by resident and by streamed plans."""

import csv
import shutil
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import Any

import torch

from benchmarks.gpu import rows
from benchmarks.gpu.driver import ROOT
from benchmarks.gpu.job import Job, SkippedError, main, require_kernels
from benchmarks.gpu.planned import forced
from benchmarks.gpu.table import SMOKE_CASES, case
from benchmarks.timing import synchronize

CASES = {
    "channels last": case((256, 1024, 14, 14), "cl", "bfloat16"),
    "channels first": case((32, 256, 56, 56), "cf"),
    "smoke": SMOKE_CASES[0],
}
PLANS = ("resident", "streamed")
METRICS = {
    "gpu__time_duration.sum": "ns",
    "dram__bytes_read.sum": "bytes read",
    "dram__bytes_write.sum": "bytes written",
    "sm__inst_issued.avg.pct_of_peak_sustained_active": "issue slots busy, %",
    "smsp__inst_executed.sum": "instructions of warps",
    "sm__warps_active.avg.pct_of_peak_sustained_active": "occupancy, %",
    "launch__registers_per_thread": "registers",
}


def launch(name: str, device: torch.device) -> None:
    """The calls that ncu measures: forward and backward by each plan, after a warm-up that it skips."""
    tensors = rows.tensors_on(device, CASES[name], seed=0)
    profiler = torch.cuda.cudart() if device.type == "cuda" else None
    for plan in PLANS:
        with forced(plan):
            for warm in (True, False):
                synchronize(device)
                if profiler and not warm:
                    profiler.cudaProfilerStart()
                rows.call(rows.ours, CASES[name], tensors, "backward")()
                synchronize(device)
                if profiler and not warm:
                    profiler.cudaProfilerStop()


def command(ncu: str, name: str, log: Path) -> list[str]:
    return [
        *(ncu, "--csv", "--print-units", "base", "--log-file", str(log), "--metrics", ",".join(METRICS)),
        *("--clock-control", "none", "--profile-from-start", "off"),
        *("--kernel-name-base", "demangled", "--kernel-name", "regex:fused_bn::cuda::"),
        *(sys.executable, "-m", "benchmarks.gpu.counters", "--launch", name),
    ]


def parsed(text: str) -> list[dict[str, Any]]:
    """One dict per kernel, in launch order. The name ends before the first bracket."""
    lines = text.splitlines()
    first = next((number for number, line in enumerate(lines) if line.startswith('"ID"')), len(lines))
    kernels: dict[str, dict[str, Any]] = {}
    for row in csv.DictReader(line for line in lines[first:] if line.startswith('"')):
        name = row["Kernel Name"].partition("(")[0]
        kernel = kernels.setdefault(row["ID"], {"kernel": name, "grid": row["Grid Size"]})
        if row["Metric Name"] in METRICS:
            kernel[METRICS[row["Metric Name"]]] = float(row["Metric Value"].replace(",", ""))
    return list(kernels.values())


def count(name: str, ncu: str, job: Job) -> dict[str, Any]:
    with tempfile.TemporaryDirectory() as directory:
        log = Path(directory) / "ncu.csv"
        done = subprocess.run(command(ncu, name, log), cwd=ROOT, check=False)
        text = log.read_text(errors="replace") if log.exists() else ""
    kernels = parsed(text)
    if done.returncode != 0 or not kernels:
        print(text[-4000:], flush=True)
        job.fail(f"{name}: ncu ended with exit code {done.returncode} and {len(kernels)} kernels")
    return {"kernels": kernels}


def work(job: Job) -> None:
    device = require_kernels(job)
    if job.smoke:
        launch("smoke", device)
    ncu = shutil.which("ncu")
    if ncu is None or device.type != "cuda":
        raise SkippedError("ncu is not on PATH" if ncu is None else "ncu needs a GPU")
    names = ["smoke"] if job.smoke else ["channels last", "channels first"]
    job.each({name: name for name in names}, lambda name: count(name, ncu, job))


if __name__ == "__main__":
    if sys.argv[1:2] == ["--launch"]:
        launch(sys.argv[2], torch.device("cuda"))
    else:
        sys.exit(main(work))

"""Stage build: the extension in place, with CUDA, for the architecture of the GPU that is here."""

import os
import subprocess
import sys
import time

import torch

from benchmarks.gpu.driver import ROOT
from benchmarks.gpu.job import Job, main


def settings(device: torch.device) -> dict[str, str]:
    """The variables that steer setup.py (its first lines describe them)."""
    jobs = str(len(os.sched_getaffinity(0)))
    if device.type != "cuda":
        return {"FUSED_BN_CPU_ONLY": "1", "MAX_JOBS": jobs}
    major, minor = torch.cuda.get_device_capability(device)
    return {"FORCE_CUDA": "1", "TORCH_CUDA_ARCH_LIST": f"{major}.{minor}", "MAX_JOBS": jobs}


def work(job: Job) -> None:
    chosen = settings(job.device)
    print(" ".join(f"{name}={value}" for name, value in chosen.items()), flush=True)
    job.readings["settings"] = chosen
    environment = {**os.environ, **chosen}
    if not job.smoke:  # which leaves what is built as it is
        start = time.monotonic()
        # --force: an extension built for other settings, but after the sources, must not pass as this one.
        build = [sys.executable, "setup.py", "build_ext", "--inplace", "--force"]
        subprocess.run(build, cwd=ROOT, env=environment, check=True)
        job.readings["seconds"] = time.monotonic() - start
        job.save()
    doctor = [sys.executable, "-m", "fused_bn"]
    result = subprocess.run(doctor, cwd=ROOT, env=environment, capture_output=True, text=True, check=False)
    print(result.stdout, result.stderr, flush=True)
    job.readings["doctor"] = result.stdout.splitlines()
    if result.returncode != 0:
        job.fail("the doctor (python -m fused_bn) found something wrong")
    elif job.device.type == "cuda" and "ok, compiled kernels on " not in result.stdout:
        job.fail("the doctor (python -m fused_bn) found no compiled kernels for the GPU")


if __name__ == "__main__":
    sys.exit(main(work))

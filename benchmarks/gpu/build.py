"""Part build: the extension in place, with CUDA, for the architecture of the GPU that is here.

One that has kernels for the device, and may have been built elsewhere, is taken as it is without --build.
"""

import os
import subprocess
import sys

import torch

from benchmarks.gpu.driver import ROOT
from benchmarks.gpu.job import Job, main, require_kernels


def settings(device: torch.device) -> dict[str, str]:
    """The variables that steer setup.py (its first lines describe them)."""
    major, minor = torch.cuda.get_device_capability(device)
    jobs = str(len(os.sched_getaffinity(0)))
    return {"FORCE_CUDA": "1", "TORCH_CUDA_ARCH_LIST": f"{major}.{minor}", "MAX_JOBS": jobs}


def compile_it(job: Job) -> None:
    chosen = settings(job.device)
    job.write(settings=chosen)
    # --force: an extension built for other settings, but after the sources, must not pass as this one.
    command = [sys.executable, "setup.py", "build_ext", "--inplace", "--force"]
    subprocess.run(command, cwd=ROOT, env={**os.environ, **chosen}, check=True)
    # In a process of its own: this one may have imported what was there before.
    doctor = [sys.executable, "-m", "fused_bn"]
    told = subprocess.run(doctor, cwd=ROOT, capture_output=True, text=True, check=False).stdout
    job.write(doctor=told.splitlines())
    if "ok, compiled kernels on " not in told:
        job.fail("the doctor (python -m fused_bn) found no compiled kernels for the GPU")


def work(job: Job) -> None:
    from fused_bn._extension import devices_with_kernels

    if not job.smoke and (job.build or job.device.type not in devices_with_kernels):
        compile_it(job)
    else:
        require_kernels(job)


if __name__ == "__main__":
    sys.exit(main(work))

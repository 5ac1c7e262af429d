"""Part build: builds the extension in place, with CUDA, for this machine's GPU.

Without --build it keeps an extension that has kernels for the device, even if that was built elsewhere.
"""

import os
import subprocess
import sys

import torch

from benchmarks.gpu.driver import ROOT
from benchmarks.gpu.job import Job, main, require_kernels


def settings(device: torch.device) -> dict[str, str]:
    """The variables that steer setup.py. Its first lines describe them."""
    major, minor = torch.cuda.get_device_capability(device)
    jobs = str(len(os.sched_getaffinity(0)))
    return {"FORCE_CUDA": "1", "TORCH_CUDA_ARCH_LIST": f"{major}.{minor}", "MAX_JOBS": jobs}


def compile_it(job: Job) -> None:
    chosen = settings(job.device)
    job.write(settings=chosen)
    # --force: an extension with other settings may be newer than the sources.
    command = [sys.executable, "setup.py", "build_ext", "--inplace", "--force"]
    subprocess.run(command, cwd=ROOT, env={**os.environ, **chosen}, check=True)
    # In a process of its own, because this one may have imported the old extension.
    doctor = [sys.executable, "-m", "fused_bn"]
    printed = subprocess.run(doctor, cwd=ROOT, capture_output=True, text=True, check=False).stdout
    job.write(doctor=printed.splitlines())
    if "ok, compiled kernels on " not in printed:
        job.fail("the doctor (python -m fused_bn) found no compiled kernels for the GPU")


def work(job: Job) -> None:
    from fused_bn._extension import devices_with_kernels

    if not job.smoke and (job.build or job.device.type not in devices_with_kernels):
        compile_it(job)
    else:
        require_kernels(job)


if __name__ == "__main__":
    sys.exit(main(work))

"""Stage repeat: the same call gives the same bits, run after run, whatever else the GPU does."""

import sys
from collections.abc import Callable

import torch

from benchmarks.gpu.calls import LAYOUTS, Case, Tensors, differences, plans
from benchmarks.gpu.captured import another_stream, beside
from benchmarks.gpu.job import Job, main, require_kernels
from benchmarks.gpu.tables import in_short
from benchmarks.timing import synchronize

RUNS = 100
SMOKE_RUNS = 3
LOAD_SIZE = 2048
"""Of the square matrices multiplied beside: each product fills the GPU for a tenth of a millisecond or so."""

LENET = ((64, 6, 28, 28), (64, 16, 10, 10))
RESNET = ((32, 64, 112, 112), (32, 256, 56, 56), (32, 512, 28, 28), (32, 1024, 14, 14), (32, 2048, 7, 7))
ODD = ((8, 65, 33, 31), (16, 3, 64, 64), (5, 17, 9, 7))

CASES = [
    *(Case(shape, layout) for shape in LENET for layout in LAYOUTS),
    *(Case(shape, "channels_last", "bfloat16") for shape in RESNET),
    *(Case(shape, "contiguous", "float32") for shape in RESNET),
    *(Case(shape, layout, dtype) for shape in ODD for layout in LAYOUTS for dtype in ("bfloat16", "float32")),
    *(Case((8, 64, 28, 28), layout, dtype) for layout in LAYOUTS for dtype in ("float16", "float64")),
]
SMOKE_CASES = [Case((4, 6, 9, 7)), Case((4, 6, 9, 7), "channels_last", "bfloat16")]


class Load:
    """Work on another stream: products of matrices, and fused_bn's own kernels on other tensors."""

    def __init__(self, device: torch.device, smoke: bool) -> None:
        size = 16 if smoke else LOAD_SIZE
        self.matrix = torch.full((size, size), 1e-3, device=device)
        self.product = torch.empty_like(self.matrix)
        shape = (4, 6, 9, 7) if smoke else (32, 128, 28, 28)
        self.tensors = Tensors(Case(shape, "channels_last", "bfloat16"), device, seed=1)
        self.stream = another_stream(device)

    def products(self) -> None:
        with beside(self.stream):
            for _ in range(4):
                torch.mm(self.matrix, self.matrix, out=self.product)

    def norms(self) -> None:
        with beside(self.stream):
            for _ in range(4):
                self.tensors.both()


def differing(case: Case, device: torch.device, runs: int, loads: list[Callable[[], None]]) -> list[str]:
    """Which run differed from the first in what; each run has fresh memory and one of `loads` beside it."""
    start = Tensors(case, device)
    first = start.twin()
    expected = {**first.both(), **first.updated()}
    synchronize(device)
    found = []
    kept = []
    for run in range(1, runs):
        loads[run % len(loads)]()
        kept.append(torch.empty(1000 * (run % 7) + 1, device=device))  # so that addresses differ
        own = start.twin()
        wrong = differences({**own.both(), **own.updated()}, expected)
        if wrong:
            found.append(f"run {run}: {', '.join(wrong)}")
    synchronize(device)
    return found


def work(job: Job) -> None:
    device = require_kernels(job)
    load = Load(device, job.smoke)
    loads: list[Callable[[], None]] = [lambda: None, load.products, lambda: None, load.norms]
    runs = SMOKE_RUNS if job.smoke else RUNS
    job.readings.update(runs=runs, cases=[])
    for case in SMOKE_CASES if job.smoke else CASES:
        if job.left < 1:
            job.fail(f"no time left from {case} on")
            break
        planned = plans(case, device)
        wrong = differing(case, device, runs, loads)
        job.readings["cases"].append({"case": str(case), "plans": planned, "differing": wrong})
        texts = " | ".join(in_short(plan) for plan in planned.values())
        print(f"{case}: {texts}: {len(wrong)} of {runs - 1} differ", flush=True)
        if wrong:
            job.fail(f"{case}: {wrong[0]}; {len(wrong)} runs in all")
        job.save()


if __name__ == "__main__":
    sys.exit(main(work))

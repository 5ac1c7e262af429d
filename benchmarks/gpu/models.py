"""Parts models and compiled: training steps of ResNet-50 in bfloat16, channels last; one line per row.

models times eager and fused models. compiled times torch.compile's, then its rows in the table. Each takes
seconds to a minute to compile, and is written as soon as it is timed.
"""

import copy
import sys
from functools import partial
from random import Random
from typing import Any

import torch

from benchmarks import timing
from benchmarks.gpu import rows, table
from benchmarks.gpu.job import Job, main, require_kernels
from benchmarks.resnet.comparison import Case, Comparison
from benchmarks.resnet.model import ResNet50
from tests.cases import Case as Layer

ROUNDS, SMOKE_ROUNDS = 5, 1
STEPS_A_TURN = 4
CASE = Case(256, 224, "channels_last", "bfloat16")
SMOKE_CASE = Case(2, 32, "channels_last", "bfloat16")


def comparison(job: Job) -> Comparison:
    make = partial(ResNet50, depths=(1, 1), width=8) if job.smoke else ResNet50
    return Comparison(SMOKE_CASE if job.smoke else CASE, job.device, make=make)


def measure(comparison: Comparison, job: Job, *left_out: str) -> None:
    """Checks all losses, then times all rows in turns. Writes one line per row."""
    comparison.check()
    models = [row for row in comparison.models if row not in left_out]
    peaks = {row: comparison.peak_activations(row) for row in models}
    steps = {row: comparison.step(row) for row in models}

    def read(row: str) -> float:
        steps[row]()  # not timed: warms up caches and memory after the other rows
        return timing.seconds(steps[row], STEPS_A_TURN, comparison.device)

    rounds = range(SMOKE_ROUNDS if job.smoke else ROUNDS)
    with timing.without_garbage_collection():
        times = timing.in_turns(steps, rounds, Random(0), read)
    for row, seconds in times.items():
        ms = [microseconds / 1000 for microseconds in table.summary(seconds)]
        rate = round(1000 * comparison.case.batch / ms[1], 1)
        job.write(model=row, ms=ms, images_per_second=rate, peak_bytes=peaks[row])


def compile_and_measure(item: str | Layer, job: Job) -> dict[str, Any]:
    table.free(job.device)
    backend = "aot_eager" if job.smoke else "inductor"
    if not isinstance(item, str):
        functions = {"compile": rows.compiled(backend), "ours": rows.ours}
        return table.measure(item, functions, job.device, job)
    compared = comparison(job)
    models = compared.models
    compiled: Any = torch.compile(copy.deepcopy(models[item]), dynamic=False, backend=backend)
    compared.models = {"eager": models["eager"], f"{item}, compiled": compiled}
    measure(compared, job, "eager")
    return {}


def work(job: Job) -> None:
    require_kernels(job)
    if job.part == "models":
        measure(comparison(job), job)
        return
    items: dict[str, str | Layer] = {f"ResNet-50, {row}": row for row in ("eager", "fused")[job.smoke :]}
    items |= table.named(table.SMOKE_CASES[:1] if job.smoke else table.CASES)
    job.each(items, lambda item: compile_and_measure(item, job))


if __name__ == "__main__":
    sys.exit(main(work))

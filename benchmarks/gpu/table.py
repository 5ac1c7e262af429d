"""Stage table: our kernels beside a copy, eager PyTorch and torch.compile, forward and backward apart.

By replays of CUDA graphs, each of which runs through so many input sets that none is found in L2; for
LeNet's layers also by plain calls of the modules, where the host counts. Results are compared first.
"""

import gc
import math
import random
import sys
from typing import Any

import torch
from torch import Tensor

from benchmarks import contest, timing
from benchmarks.gpu import rows
from benchmarks.gpu.bandwidth import bandwidths
from benchmarks.gpu.calls import Case, Tensors, plans
from benchmarks.gpu.captured import Captured, own_stream
from benchmarks.gpu.job import Job, main, require_kernels
from benchmarks.gpu.rows import DIRECTIONS, RESULTS, Call, Row
from benchmarks.gpu.tables import in_short

ROUNDS, SMOKE_ROUNDS = 15, 2
SLOT_SECONDS, SMOKE_SLOT_SECONDS = 0.01, 0.001
TIMES_L2 = 4
FEWEST_SETS, MOST_SETS = 2, 512

LENET = [Case(shape, layout) for shape in ((64, 6, 28, 28), (64, 16, 10, 10)) for layout in contest.LAYOUTS]
CASES = [
    *(
        Case((256, *shape), "channels_last", "bfloat16")
        for shape in ((64, 112, 112), (256, 56, 56), (512, 28, 28), (1024, 14, 14), (2048, 7, 7))
    ),
    *(Case((32, *shape)) for shape in ((64, 112, 112), (256, 56, 56), (512, 28, 28), (2048, 7, 7))),
    *LENET,
]
SMOKE_CASES = [Case((4, 6, 9, 7)), Case((4, 8, 5, 5), "channels_last", "bfloat16")]


def sets_beyond_l2(tensor_bytes: int, l2_bytes: int) -> int:
    """How many sets of a tensor read and a tensor written exceed L2 TIMES_L2 times; two at least."""
    wanted = math.ceil(TIMES_L2 * l2_bytes / (2 * tensor_bytes))
    return min(max(wanted, FEWEST_SETS), MOST_SETS)


class Table:
    """The stage at work on one device."""

    def __init__(self, job: Job, device: torch.device) -> None:
        self.job = job
        self.device = device
        self.order = random.Random(0)
        self.rounds = SMOKE_ROUNDS if job.smoke else ROUNDS
        self.slot_seconds = SMOKE_SLOT_SECONDS if job.smoke else SLOT_SECONDS
        self.l2_bytes = torch.cuda.get_device_properties(device).L2_cache_size if device.type == "cuda" else 0

    def measure(self, case: Case) -> dict[str, Any]:
        """Everything that is read of one case; its memory is free again afterwards."""
        tensor_bytes = math.prod(case.shape) * getattr(torch, case.dtype).itemsize
        count = sets_beyond_l2(tensor_bytes, self.l2_bytes)
        sets = [Tensors(case, self.device, seed) for seed in range(count)]
        for tensors in sets:
            rows.without_doubtful_gradients(tensors)
        backend = rows.eager_backend(sets[0])
        reading: dict[str, Any] = {
            "case": str(case),
            "shape": case.shape,
            "layout": case.layout,
            "dtype": case.dtype,
            "tensor_bytes": tensor_bytes,
            "sets": count,
            "eager_backend": backend,
            "plans": plans(case, self.device),
            "wrong": [],
            "seconds": {},
        }
        competitors = self._competitors(backend)
        for direction in DIRECTIONS:
            with own_stream(self.device):
                reading["seconds"][direction] = self._direction(
                    direction, competitors, sets, reading["wrong"]
                )
        return reading

    def _competitors(self, backend: str) -> dict[str, Row]:
        competitors: dict[str, Row] = {"copy": rows.Copy(), "eager": rows.Torch()}
        if backend != "Native":
            competitors["native"] = rows.Torch(cudnn=False)
        if not self.job.smoke:
            competitors["compile"] = rows.compiled()
        return {**competitors, "ours": rows.Ours()}

    def _direction(
        self, direction: str, competitors: dict[str, Row], sets: list[Tensors], wrong: list[str]
    ) -> dict[str, list[float]]:
        """Seconds a call by row; rows that cannot run or are wrong are noted and left out."""
        expected = [rows.Torch().call(direction, tensors)() for tensors in (sets[0], sets[-1])]
        slots = {}
        for name, row in competitors.items():
            try:
                captured = Captured(_all(row, direction, sets), self.device, warm_up=2)
                if name != "copy":
                    self._check(name, direction, captured, sets, expected)
            except Exception as error:  # a row's failure must not cost the others
                wrong.append(f"{name}, {direction}: {error}")
            else:
                slots[name] = captured.replay
        del expected
        times = timing.interleaved(slots, self.rounds, self.device, self.order, self.slot_seconds)
        return {name: [value / len(sets) for value in values] for name, values in times.items()}

    def _check(
        self,
        name: str,
        direction: str,
        captured: "Captured[list[tuple[Tensor, ...]]]",
        sets: list[Tensors],
        expected: list[tuple[Tensor, ...]],
    ) -> None:
        """What a replay leaves in the first and the last set, over NaN, against eager's."""
        count = len(RESULTS[direction])
        for position in (0, -1):
            for result in captured.result[position][:count]:
                result.detach().fill_(math.nan)
        captured.replay()
        timing.synchronize(self.device)
        for position, right in zip((0, -1), expected, strict=True):
            rows.compare(name, direction, sets[position], captured.result[position][:count], right)


def _all(row: Row, direction: str, sets: list[Tensors]) -> "_Calls":
    return _Calls([row.call(direction, tensors) for tensors in sets])


class _Calls:
    """One call on each set in turn; all results stay, so that each set has memory of its own to write to."""

    def __init__(self, calls: list[Call]) -> None:
        self.calls = calls

    def __call__(self) -> list[tuple[Tensor, ...]]:
        return [call() for call in self.calls]


def host_included(case: Case, job: Job, device: torch.device) -> dict[str, dict[str, list[float]]]:
    """Seconds a call of the modules, from the host's call to the device's end, by direction and row."""
    competition = contest.Contest(
        contest.Case(case.shape, case.layout, case.dtype), device, compile=not job.smoke
    )
    competition.check()
    rounds, slot = (SMOKE_ROUNDS, SMOKE_SLOT_SECONDS) if job.smoke else (ROUNDS, SLOT_SECONDS)
    order = random.Random(0)
    return {
        direction: timing.interleaved(competition.slots(direction), rounds, device, order, slot)
        for direction in contest.DIRECTIONS
    }


def free(device: torch.device) -> None:
    """What a case held goes back, graphs' pools included."""
    gc.collect()
    if device.type == "cuda":
        torch.cuda.empty_cache()


def work(job: Job) -> None:
    device = require_kernels(job)
    job.readings.update(bandwidth=bandwidths(device, job.smoke), cases=[], host={})
    free(device)
    print({kind: f"{value:.0f} GB/s" for kind, value in job.readings["bandwidth"].items()}, flush=True)
    table = Table(job, device)
    longest = 0.0
    for case in SMOKE_CASES if job.smoke else CASES:
        before = job.left
        if before < longest:
            job.fail(f"no time left for {case}")
            continue
        try:
            reading = table.measure(case)
            _tell(reading, job)
            if case in LENET:
                job.readings["host"][str(case)] = host_included(case, job, device)
        except Exception as error:  # a case's failure must not cost the others
            job.fail(f"{case}: {error}")
        free(device)
        longest = max(longest, before - job.left)
        job.save()


def _tell(reading: dict[str, Any], job: Job) -> None:
    """Keeps a case's reading and prints a line a direction."""
    job.readings["cases"].append(reading)
    for direction, seconds in reading["seconds"].items():
        medians = {row: sorted(values)[len(values) // 2] for row, values in seconds.items()}
        times = ", ".join(f"{row} {1e6 * value:.1f}" for row, value in medians.items())
        print(
            f"{reading['case']}, {direction}: {times} us; {in_short(reading['plans'][direction])}", flush=True
        )
    for text in reading["wrong"]:
        job.fail(f"{reading['case']}, {text}")


if __name__ == "__main__":
    sys.exit(main(work))

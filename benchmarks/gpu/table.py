"""Part table: our kernels, a copy and PyTorch's kernels, with separate forward and backward.

Times are read from replays of CUDA graphs. A graph runs through so many input sets that L2 holds none of
them. Results are compared with eager's before timing. A line has one case: least, median and most
microseconds.
"""

import gc
import math
import random
import statistics
import sys
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

import torch
from torch import Tensor

from benchmarks import timing
from benchmarks.gpu import rows
from benchmarks.gpu.captured import Captured, own_stream
from benchmarks.gpu.job import Job, error_text, main, require_kernels
from benchmarks.gpu.planned import last_plan, predicted
from benchmarks.gpu.rows import Call, Function
from tests.cases import Case

ROUNDS, SMOKE_ROUNDS = 7, 2
SLOT_SECONDS, SMOKE_SLOT_SECONDS = 0.01, 0.001
TIMES_L2 = 4
FEWEST_SETS, MOST_SETS = 2, 512
SETS = 96
"""The most sets in the table, as in the readings of the first kernels."""


def case(
    shape: tuple[int, ...], layout: str, dtype: str = "float32", residual: bool = False, training: bool = True
) -> Case:
    name = {"cf": "contiguous", "cl": "channels_last"}[layout]
    parameters = torch.float64 if dtype == "float64" else torch.float32
    return Case(shape, name, getattr(torch, dtype), parameters, residual=residual, training=training)


LENET = ((64, 6, 28, 28), (64, 16, 10, 10))
CASES = (
    *(case(shape, layout) for layout in ("cf", "cl") for shape in LENET),
    case((256, 256, 56, 56), "cl", "bfloat16"),
    case((256, 1024, 14, 14), "cl", "bfloat16"),
    case((32, 256, 56, 56), "cf"),
    case((256, 64, 112, 112), "cl", "bfloat16"),
    case((256, 512, 28, 28), "cl", "bfloat16"),
    case((256, 2048, 7, 7), "cl", "bfloat16"),
    case((32, 64, 112, 112), "cf"),
    case((32, 512, 28, 28), "cf"),
    case((32, 2048, 7, 7), "cf"),
    case((256, 256, 56, 56), "cl", "bfloat16", residual=True),
    case((256, 1024, 14, 14), "cl", "bfloat16", residual=True),
    case((32, 256, 56, 56), "cf", residual=True),
    case((256, 256, 56, 56), "cl", "bfloat16", training=False),
    case((32, 256, 56, 56), "cf", training=False),
    case((256, 256, 56, 56), "cl", "float16"),
    case((256, 1024, 14, 14), "cf", "float16"),
    case((64, 24, 112, 112), "cl", "bfloat16"),
    case((64, 40, 56, 56), "cl", "bfloat16"),
    case((64, 1280, 7, 7), "cl", "bfloat16"),
    case((16, 64, 32, 32), "cf"),
    case((8, 3, 224, 224), "cf"),
    case((32, 65, 33, 31), "cf"),
    case((128, 128, 28, 28), "cl"),
    case((4, 512, 64, 64), "cl", "bfloat16"),
    case((2, 32, 512, 512), "cf"),
    case((4096, 1024, 1, 1), "cl", "bfloat16"),
)
"""The thirty cases of the first readings. Means are taken over them."""
MORE_CASES = (
    case((256, 256, 56, 56), "cf", "bfloat16"),
    case((128, 512, 28, 28), "cf", "bfloat16"),
    case((32, 256, 56, 56), "cl"),
    case((256, 2048, 7, 7), "cl", "bfloat16", residual=True),
    case((32, 2048, 7, 7), "cf", residual=True),
    *(case(shape, layout, training=False) for layout in ("cf", "cl") for shape in LENET),
)
SMOKE_CASES = (
    case((4, 6, 9, 7), "cf"),
    case((4, 8, 5, 5), "cl", "bfloat16", residual=True),
    case((4, 8, 5, 5), "cl", training=False),
)


def sets_beyond_l2(tensor_bytes: int, l2_bytes: int, most: int = MOST_SETS) -> int:
    """The number of sets, from two to `most`, whose inputs and outputs take TIMES_L2 times the size of L2."""
    wanted = math.ceil(TIMES_L2 * l2_bytes / (2 * tensor_bytes))
    return min(max(wanted, FEWEST_SETS), most)


class Bench:
    """One case's tensors, in enough sets that caches are cold."""

    def __init__(self, case: Case, device: torch.device, smoke: bool) -> None:
        self.case, self.device, self.smoke = case, device, smoke
        self.tensor_bytes = math.prod(case.shape) * case.dtype.itemsize
        l2_bytes = torch.cuda.get_device_properties(device).L2_cache_size if device.type == "cuda" else 0
        count = sets_beyond_l2(self.tensor_bytes, l2_bytes, SETS)
        self.sets = [rows.tensors_on(device, case, seed) for seed in range(count)]

    def described(self) -> dict[str, Any]:
        kind = "residual" if self.case.residual else "plain" if self.case.training else "evaluation"
        return {
            "shape": self.case.shape,
            "dtype": str(self.case.dtype).removeprefix("torch."),
            "layout": "cl" if self.case.layout == "channels_last" else "cf",
            "kind": kind,
            "sets": len(self.sets),
            "tensor_bytes": self.tensor_bytes,
        }


class TimedRows:
    """One direction of a bench: captures the rows, compares them with eager, and times them in turns.

    Make and use it within `own_stream`.
    """

    def __init__(self, bench: Bench, direction: str) -> None:
        self.bench, self.direction = bench, direction
        self.slots: dict[str, Captured[list[tuple[Tensor, ...]]]] = {}
        self.expected = [call() for call in self.calls(rows.eager, (0, -1))]
        self._capture("copy", [rows.copy_of(tensors) for tensors in bench.sets])

    def calls(self, function: Function, positions: Sequence[int] | None = None) -> list[Call]:
        sets = self.bench.sets if positions is None else [self.bench.sets[i] for i in positions]
        return [rows.call(function, self.bench.case, tensors, self.direction) for tensors in sets]

    def add(self, name: str, calls: list[Call]) -> None:
        """Captures a row. Raises its errors, and WrongResultError if a replay's results are not eager's."""
        captured = self._capture(name, calls)
        try:
            for i in (0, -1):
                for result in captured.result[i]:
                    result.detach().fill_(math.nan)
            captured.replay()
            timing.synchronize(self.bench.device)
            for i in (0, -1):
                rows.compare(name, self.direction, self.bench.case, captured.result[i], self.expected[i])
        except Exception:
            del self.slots[name]
            raise

    def _capture(self, name: str, calls: list[Call]) -> "Captured[list[tuple[Tensor, ...]]]":
        """One call on each set in turn. All results stay alive, so each set has its own memory."""
        self.slots[name] = Captured(lambda: [call() for call in calls], self.bench.device, warm_up=2)
        return self.slots[name]

    def microseconds(self, rounds: int = ROUNDS) -> dict[str, list[float]]:
        """A call's least, median and most microseconds, by row."""
        smoke = self.bench.smoke
        times = timing.interleaved(
            {name: captured.replay for name, captured in self.slots.items()},
            SMOKE_ROUNDS if smoke else rounds,
            self.bench.device,
            random.Random(0),
            SMOKE_SLOT_SECONDS if smoke else SLOT_SECONDS,
        )
        return {name: summary(values, len(self.bench.sets)) for name, values in times.items()}

    def floor(self, times: Mapping[str, list[float]]) -> float:
        """The time to move the mandatory tensors at the speed of the copy, which moves two."""
        return round(times["copy"][1] * rows.tensors_moved(self.bench.case, self.direction) / 2, 3)


def summary(seconds: Sequence[float], sets: int = 1) -> list[float]:
    """Least, median and most, in microseconds per set."""
    return [round(1e6 * of(seconds) / sets, 3) for of in (min, statistics.median, max)]


def measure(case: Case, functions: Mapping[str, Function], device: torch.device, job: Job) -> dict[str, Any]:
    """All readings of one case. Frees its memory afterwards."""
    bench = Bench(case, device, job.smoke)
    found: dict[str, Any] = {**bench.described(), "eager_backend": rows.eager_backend(case, bench.sets[0])}
    found.update(us={}, floor={}, plan={}, predicted={}, mean=case in CASES)
    for direction in rows.directions(case):
        with own_stream(device):
            timed = TimedRows(bench, direction)
            for name, function in functions.items():
                if name == "native" and found["eager_backend"] == "Native":
                    continue
                try:
                    timed.add(name, timed.calls(function))
                except Exception as error:  # a row's failure must not cost the others
                    job.fail(f"{case}, {name}: {error_text(error)}")
                if name == "ours":
                    found["plan"][direction] = last_plan()
            found["us"][direction] = times = timed.microseconds()
            found["floor"][direction] = timed.floor(times)
        found["predicted"][direction] = predicted(case, device, direction)
    return found


def named(cases: Iterable[Case]) -> dict[str, Case]:
    return {str(case): case for case in cases}


def free(device: torch.device) -> None:
    """Frees a case's memory, including the pools of graphs."""
    gc.collect()
    if device.type == "cuda":
        torch.cuda.empty_cache()


def work(job: Job) -> None:
    device = require_kernels(job)
    functions = {"eager": rows.eager, "native": rows.native, "ours": rows.ours}

    def line(case: Case) -> dict[str, Any]:
        free(device)
        return measure(case, functions, device, job)

    job.each(named(SMOKE_CASES if job.smoke else CASES + MORE_CASES), line)


if __name__ == "__main__":
    sys.exit(main(work))

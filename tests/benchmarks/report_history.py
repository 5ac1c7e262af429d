"""Fabricated recorded runs with all of the grid's cells. A simple model of a machine gives the times."""

import math
import random
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

import pytest

from benchmarks import history
from benchmarks.grid.cells import STEPS, Cell, cells
from benchmarks.grid.steps import STEP_CELLS
from benchmarks.history import Accuracy, Instructions, Record, RowSpeed, Run, Speed

DATE = "2026-12-01T10:00:00+00:00"
CPU_NAME = "AMD EPYC 9B45 64-Core Processor"
GPU_NAME = "NVIDIA H200"
COPIES = {"forward": 1.0, "backward": 1.5, "forward+backward": 2.5, "evaluation": 1.0}
"""The mandatory traffic, in copies of the input."""
ULPS = {"output": 0.6, "grad_input": 0.8, "grad_weight": 2.0, "grad_bias": 1.5, "mean": 0.5, "variance": 0.7}
DATA = {
    ("N(0, 1)", "float32"): 1.0,
    ("1e4 +- 1e-2", "float32"): 4e5,
    ("1e6 +- 1", "float32"): 2e4,
    ("first element 1e6", "float32"): 3.0,
    ("constant 12345.678", "float32"): 9e6,
    ("5 +- 0.1", "bfloat16"): 1.2,
}
"""How many times larger eager's error is."""
COUNTS = {
    "forward": 92_000,
    "forward+backward": 314_000,
    "evaluation": 84_000,
    "functional": 74_000,
    "eager forward": 174_000,
    "eager forward+backward": 431_000,
    "eager evaluation": 139_000,
}


def environment(date: str, device: str = CPU_NAME, **fields: Any) -> dict[str, Any]:
    """An environment as benchmarks.environment makes it."""
    cuda = device == GPU_NAME
    return {
        "date": date,
        "fused_bn": "0.1.0",
        "fused_bn_kernels": "compiled",
        "fused_bn_capability": "9.0" if cuda else "avx512_bf16",
        "torch": "2.13.0",
        "cuda": "13.0" if cuda else None,
        "python": "3.11.9",
        "platform": "Linux-6.1.0-x86_64-with-glibc2.36",
        "device": device,
        "threads": 2,
        "omp_wait_policy": None,
    } | fields


def speeds(
    seed: int, gain: float = 1.0, *, cuda: bool = False, chosen: Callable[[Cell], bool] = lambda _: True
) -> Iterator[Speed]:
    """The grid's cells on a CPU that copies 40 GB/s or a GPU that copies 4 TB/s. Ours is `gain` times faster.

    A GPU also has replays of graphs.
    """
    chance = random.Random(seed)
    overhead, bandwidth = (3e-6, 4e12) if cuda else (5e-6, 40e9)
    for cell in cells():
        noise = [math.exp(chance.gauss(0, 0.25)) for _ in range(3)]
        if not chosen(cell):
            continue
        floor = cell.bytes / bandwidth
        ours = overhead + 1.5 * floor * noise[0] / gain
        slow = 1.5 if cuda else 3.5
        eager = 2.5 * overhead + slow * floor * noise[1]
        if cell.case.layout == "channels_last" and cell.case.shape[1] == 6:
            eager *= 1 if cuda else 12
        compiled = (1.2 * ours if cuda else 3.0 * eager) * noise[2] + overhead
        seconds = {"copy": 1.2e-6 + cell.case.tensor_bytes * 2 / bandwidth, "eager": eager}
        seconds |= {"compile": compiled, "ours": ours}
        tensors = {"copy": 0.0, "eager": 2.0, "compile": 1.0 + chance.random(), "ours": 1.0}
        rows = {
            name: RowSpeed(value, eager / value, floor / value, int(cell.case.tensor_bytes * tensors[name]))
            for name, value in seconds.items()
        }
        yield Speed(cell.family, cell.case.id, cell.direction, cell.bytes, floor, rows)
        if cuda:
            yield replayed(cell, floor, rows, overhead)


def replayed(cell: Cell, floor: float, rows: dict[str, RowSpeed], overhead: float) -> Speed:
    """The same cells as replays of graphs: without the host's time, and without memory."""
    seconds = {name: max(row.seconds - overhead, 1e-6) for name, row in rows.items()}
    eager = seconds["eager"]
    found = {name: RowSpeed(value, eager / value, floor / value, None) for name, value in seconds.items()}
    return Speed(cell.family, cell.case.id, cell.direction, cell.bytes, floor, found, graph=True)


def steps() -> Iterator[Speed]:
    """Whole training steps, which have neither bytes nor a floor. ResNet-50's are not compiled."""
    rows_of = {
        "LeNet-5": {"eager": (3.5e-3, 5_100_000), "compile": (3.6e-3, 5_000_000), "ours": (3e-3, 4_700_000)},
        "ResNet-50": {
            "eager": (0.61, 740_000_000),
            "ours": (0.62, 560_000_000),
            "ours, kept": (0.6, 744_000_000),
        },
    }
    for step in STEP_CELLS:
        times = rows_of[step.network]
        eager = times["eager"][0]
        rows = {name: RowSpeed(value, eager / value, 0.0, peak) for name, (value, peak) in times.items()}
        yield Speed(STEPS, step.case.id, step.cell.direction, 0, 0.0, rows)


def accuracies(seed: int) -> Iterator[Accuracy]:
    """All kinds of data, dtypes and quantities. Ours has no error for a constant."""
    chance = random.Random(seed)
    for layout in ("contiguous", "channels_last"):
        for (data, dtype), times in DATA.items():
            for quantity, ulps in ULPS.items():
                ours = 0.0 if "constant" in data else ulps * (1 + chance.random())
                eager = ulps * times * (1 + chance.random())
                rows = {"eager": eager, "compile": 1.3 * eager, "ours": ours}
                yield Accuracy(f"{data}, {layout}", dtype, quantity, rows)


def instructions(gain: float = 1.0) -> Iterator[Instructions]:
    """Instructions of tiny calls. Ours take `gain` times fewer."""
    for call, count in COUNTS.items():
        yield Instructions(call, count if call.startswith("eager") else int(count / gain))


def whole(seed: int, gain: float = 1.0, *, cuda: bool = False) -> list[Record]:
    """All records of a run."""
    return [*speeds(seed, gain, cuda=cuda), *steps(), *accuracies(seed), *instructions(gain)]


def record(
    directory: Path, commit: str, records: Sequence[Record], date: str, device: str = CPU_NAME, **fields: Any
) -> Path:
    """Appends a run with that commit."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(history, "current_commit", lambda: commit)
        return history.append(records, environment(date, device, **fields), directory)


def several_runs(directory: Path, count: int = 6) -> Path:
    """Runs of one CPU on successive days, each faster than the last. The second is a quick run."""
    for number in range(count):
        records = whole(number, 1 + 0.12 * number)
        if number == 1:
            records = list(speeds(number, chosen=lambda cell: cell.quick))
        record(directory, f"{0xA3F19C04B2 + number:x}", records, f"2026-12-{1 + number:02}T10:00:00+00:00")
    return directory


def speed(
    ratio: float,
    case: str = "8x4x2x2 contiguous float32",
    direction: str = "forward",
    *,
    compiled: float | None = None,
    family: str = "lenet",
    peaks: tuple[int | None, int | None] = (None, None),
    graph: bool = False,
) -> Speed:
    """A cell of 2 kB with a floor of 1 us, eager's time of 8 us, and peaks of eager and ours."""
    rows = {"eager": RowSpeed(8e-6, 1.0, 1 / 8, peaks[0])}
    if compiled is not None:
        rows["compile"] = RowSpeed(8e-6 / compiled, compiled, compiled / 8, None)
    rows["ours"] = RowSpeed(8e-6 / ratio, ratio, ratio / 8, peaks[1])
    floor, traffic = (0.0, 0) if family == "steps" else (1e-6, 2000)
    return Speed(family, case, direction, traffic, floor, rows, graph)


def run_of(*records: Record, commit: str = "a1", date: str = DATE) -> Run:
    """A run that is in no file."""
    return Run(f"{date} {commit}", commit, environment(date), list(records))


def without(row: str, records: list[Record]) -> list[Record]:
    """The same cells without one row."""
    for each in records:
        if isinstance(each, Speed):
            del each.rows[row]
    return records


def quick(seed: int, *, cuda: bool = False) -> list[Record]:
    """The records of the grid's quick part."""
    return list(speeds(seed, cuda=cuda, chosen=lambda cell: cell.quick))

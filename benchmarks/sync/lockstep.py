"""Processes of this machine that take timed steps at the same time."""

import gc
import random
import tempfile
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import distributed, nn
from torch.multiprocessing.spawn import spawn
from tqdm import tqdm  # type: ignore[import-untyped]

from benchmarks import timing
from benchmarks.comparison import WrongResultError
from benchmarks.lenet import processes
from benchmarks.sync.comparison import Comparison
from benchmarks.sync.traffic import Traffic

PROCESSES = 2
THREADS = 1
"""Threads of each process."""
CPU = torch.device("cpu")


@dataclass(frozen=True)
class Findings:
    """One run: seconds per step by row, one value per round, and the messages of a step's norms by row."""

    times: dict[str, list[float]]
    traffic: dict[str, dict[str, Traffic]]
    norms: int


def run(
    batch: int, size: int, layout: str, rounds: int, seed: int, make: Callable[[], nn.Module]
) -> Findings:
    """Checks, then times all rows in PROCESSES processes of THREADS threads, over gloo.

    Args:
        make: makes the model; picklable.

    Raises:
        WrongResultError: before timing, if rows do not agree.
    """
    with tempfile.TemporaryDirectory() as folder:
        spawn(_process, (folder, batch, size, layout, rounds, seed, make), PROCESSES)
        found: Findings | WrongResultError = torch.load(Path(folder) / "found", weights_only=False)
    if isinstance(found, WrongResultError):
        raise found
    return found


def _process(rank: int, folder: str, *work: Any) -> None:
    torch.set_num_threads(THREADS)
    store = f"file://{folder}/store"
    distributed.init_process_group("gloo", init_method=store, rank=rank, world_size=PROCESSES)
    found: Findings | WrongResultError
    try:
        found = _measured(*work)
    except WrongResultError as error:
        found = WrongResultError(*error.args)  # without the traceback, which keeps the models alive
    gc.collect()  # parallel models must be freed before their process group
    distributed.barrier()
    processes.leave()
    if rank == 0:
        torch.save(found, Path(folder) / "found")


def _measured(
    batch: int, size: int, layout: str, rounds: int, seed: int, make: Callable[[], nn.Module]
) -> Findings:
    comparison = Comparison(batch, size, layout, make)
    comparison.check()
    traffic = {row: comparison.traffic(row) for row in comparison.models}
    steps = {row: comparison.step(row) for row in comparison.models}

    def read(row: str) -> float:
        steps[row]()  # not timed: warms up caches and memory after the other rows
        distributed.barrier()
        return _of_the_slowest(timing.seconds(steps[row], 1, CPU))

    quiet = distributed.get_rank() != 0
    bar = tqdm(range(rounds), desc="rounds", dynamic_ncols=True, disable=quiet)
    order = random.Random(seed)  # the same in all processes
    with timing.without_garbage_collection():
        times = timing.in_turns(steps, bar, order, read)
    return Findings(times, traffic, comparison.norms)


def _of_the_slowest(seconds: float) -> float:
    """The largest value of all processes, because a step ends when all have ended."""
    value = torch.tensor(seconds, dtype=torch.float64)
    distributed.all_reduce(value, distributed.ReduceOp.MAX)
    return value.item()

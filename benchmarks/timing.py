"""Timing on a machine with other load: long readings, interleaved in random order."""

import gc
import math
import random
import statistics
import time
from collections.abc import Callable, Collection, Iterable, Iterator, Mapping
from contextlib import contextmanager

import torch

SLOT_SECONDS = 0.05
"""The shortest reading: about ten thousand times the blur of clock and scheduler."""


def synchronize(device: torch.device) -> None:
    """Waits until `device` has finished its work. Does nothing for the CPU."""
    if device.type == "cuda":
        torch.cuda.synchronize(device)


def interleaved(
    slots: Mapping[str, Callable[[], object]],
    rounds: int,
    device: torch.device,
    order: random.Random,
    slot_seconds: float | None = None,
) -> dict[str, list[float]]:
    """Seconds per call of every slot, one value per round. A reading lasts `slot_seconds` or SLOT_SECONDS.

    Every slot has one turn per round, in random order. A disturbance that is longer than a round affects all
    slots equally, so ratios within a round do not show it. Each turn starts with an untimed call: after other
    turns a virtual machine may have to get memory back from its host, at a tenth of memory's speed.
    """
    lasting = SLOT_SECONDS if slot_seconds is None else slot_seconds
    with without_garbage_collection():
        calls = {name: calls_lasting(lasting, slot, device) for name, slot in slots.items()}

        def read(name: str) -> float:
            slots[name]()
            return seconds(slots[name], calls[name], device)

        return in_turns(slots, range(rounds), order, read)


def in_turns(
    names: Collection[str], rounds: Iterable[object], order: random.Random, read: Callable[[str], float]
) -> dict[str, list[float]]:
    """The results of `read` for every name, one value per round. Each round has a random order."""
    times: dict[str, list[float]] = {name: [] for name in names}
    for _ in rounds:
        for name in order.sample(list(names), len(names)):
            times[name].append(read(name))
    return times


def ratio(above: Iterable[float], below: Iterable[float]) -> float:
    """The median over the rounds of the ratio within a round, which ignores disturbances of a whole round."""
    return statistics.median(one / other for one, other in zip(above, below, strict=True))


def calls_lasting(slot_seconds: float, call: Callable[[], object], device: torch.device) -> int:
    """The number of calls in a row that last this long. Finding it out is the warm-up."""
    calls = 1
    call()
    while (each := seconds(call, calls, device)) * calls < slot_seconds:
        wanted = 1.1 * slot_seconds / each if each > 0 else math.inf
        calls = max(calls + 1, math.ceil(min(wanted, 10 * calls)))
    return calls


def seconds(call: Callable[[], object], calls: int, device: torch.device) -> float:
    """Seconds per call, the mean of `calls` in a row: by the wall clock, or by events on CUDA."""
    if device.type == "cuda":
        return _seconds_by_events(call, calls, device)
    start = time.perf_counter()
    for _ in range(calls):
        call()
    return (time.perf_counter() - start) / calls


def _seconds_by_events(call: Callable[[], object], calls: int, device: torch.device) -> float:
    with torch.cuda.device(device):
        start, end = (torch.cuda.Event(enable_timing=True) for _ in range(2))
        torch.cuda.synchronize()
        start.record()
        for _ in range(calls):
            call()
        end.record()
        end.synchronize()
    return 1e-3 * start.elapsed_time(end) / calls


@contextmanager
def without_garbage_collection() -> Iterator[None]:
    """Runs Python's garbage collector before the `with` block and turns it off inside."""
    was_enabled = gc.isenabled()
    gc.collect()
    gc.disable()
    try:
        yield
    finally:
        if was_enabled:
            gc.enable()

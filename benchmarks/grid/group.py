"""One cell measured: all its rows in turns, checked before and after, and the numbers that a reader wants."""

import math
import random
import statistics
from collections.abc import Callable, Mapping, Sequence
from contextlib import nullcontext
from dataclasses import dataclass, field
from types import MappingProxyType

import torch
from torch import Tensor

from benchmarks import timing
from benchmarks.comparison import Comparison, Slot, WrongResultError
from benchmarks.gpu.captured import own_stream
from benchmarks.grid.cells import Cell
from benchmarks.grid.cold import ColdSlot, sets_of, wipe
from benchmarks.history import RowSpeed, Speed
from benchmarks.memory import peak_bytes

Readings = dict[str, list[float]]
"""Seconds a call by row, one value a round."""


Runnable = Slot | ColdSlot


class NeverExecutedError(Exception):
    """A row that was to be timed did not run as often as it was read."""


@dataclass
class Measured:
    """What was read of one group; `errors` says of the rows that are not in `readings` why.

    The device is named with how the calls were made: "cpu", "cuda", "cuda graph".
    """

    cell: Cell
    device: str
    readings: Readings = field(default_factory=dict)
    peaks: dict[str, int] = field(default_factory=dict)
    errors: dict[str, str] = field(default_factory=dict)

    @property
    def group(self) -> str:
        return f"{self.cell.id} {self.device}"

    @property
    def floor_seconds(self) -> float:
        """How long a copy takes to move the cell's bytes; 0 where nothing is copied."""
        if "copy" not in self.readings:
            return 0.0
        return statistics.median(self.readings["copy"]) * self.cell.bytes / (2 * self.cell.case.tensor_bytes)

    def row(self, row: str) -> RowSpeed:
        """Medians; the ratio to eager is the median over the rounds of the ratio within a round."""
        seconds = statistics.median(self.readings[row])
        ratio = timing.ratio(self.readings["eager"], self.readings[row])
        return RowSpeed(seconds, ratio, self.floor_seconds / seconds, self.peaks.get(row))

    def record(self) -> Speed:
        """For the history, whose files are of one device each."""
        cell = self.cell
        rows = {row: self.row(row) for row in self.readings}
        graph = self.device.endswith(" graph")
        return Speed(
            cell.family, cell.case.id, cell.direction, cell.bytes, self.floor_seconds, rows, graph=graph
        )


@dataclass(frozen=True)
class Effort:
    """How long to measure."""

    rounds: int
    slot_seconds: float
    seed: int = 0


FULL = Effort(rounds=7, slot_seconds=0.03)
QUICK = Effort(rounds=5, slot_seconds=0.02)


def measure(
    cell: Cell,
    comparison: Comparison,
    effort: Effort,
    cold: bool = False,
    failures: Mapping[str, str] = MappingProxyType({}),
) -> Measured:
    """All rows in turns. `cold`: by replays of CUDA graphs over more memory than the caches hold.

    A row that raises or is wrong, or did so before (`failures`), is in `errors` and not timed. Where that is
    eager's, where a row is wrong after it was timed or did not run, the whole group raises.
    """
    device = comparison.device
    measured = Measured(cell, f"{device} graph" if cold else str(device), errors=dict(failures))
    # Autograd keeps the stream of a first forward: for a capture all of them must be on the capturing one.
    with own_stream(device) if cold else nullcontext():
        sets = sets_of(comparison) if cold else [comparison]
        slots = [each.slots(cell.direction) for each in sets]
        checks = [Check(cell.direction, sets[i], slots[i]["eager"]) for i in (0, -1)]
        rows: dict[str, Runnable] = {}
        for row in slots[0]:
            if row in measured.errors:
                continue
            try:
                made: Runnable = ColdSlot([each[row] for each in slots], device) if cold else slots[0][row]
                _check(row, made, checks)
            except Exception as error:
                if row in ("copy", "eager"):
                    raise
                measured.errors[row] = told(error)
            else:
                rows[row] = made
        readings = read(rows, effort, device)
        for row, made in rows.items():
            _check(row, made, checks)
    measured.readings = {row: [value / len(sets) for value in values] for row, values in readings.items()}
    if not cold:
        measured.peaks = {row: _peak(slot, comparison) for row, slot in rows.items()}
    comparison.clear_gradients()
    return measured


def told(error: Exception) -> str:
    """An error as a text, which holds no tensor alive as its traceback does."""
    return f"{type(error).__name__}: {error}"


class Check:
    """What a slot must return on one set of tensors: what eager's did."""

    def __init__(self, direction: str, comparison: Comparison, eager: Slot) -> None:
        self.direction, self.comparison = direction, comparison
        results = eager()
        self.expected = tuple(result.detach().clone() for result in results)
        wipe(results)

    def __call__(self, row: str, results: tuple[Tensor, ...]) -> None:
        """Leaves NaN in the results, or the next row might be handed memory that holds the right ones."""
        try:
            if row != "copy":
                self.comparison.check_results(row, self.direction, results, self.expected)
            elif not torch.equal(results[0], self.comparison.input):
                raise WrongResultError("copy: is not the input")
        finally:
            wipe(results)

    def poison(self) -> None:
        """Leaves NaN where the allocator will put results: a kernel that never ran leaves them there."""
        wipe([torch.empty_like(result) for result in self.expected])


def _check(row: str, made: Runnable, checks: Sequence[Check]) -> None:
    """Of a slot that replays: what it writes over NaN in the first and the last set."""
    if isinstance(made, ColdSlot):
        for position, check in zip((0, -1), checks, strict=True):
            check(row, made.over_nan(position))
        return
    if row == "copy":
        wipe(made())
    checks[0].poison()
    checks[0](row, made())


def _peak(slot: Runnable, comparison: Comparison) -> int:
    comparison.clear_gradients()
    peak = peak_bytes(slot, comparison.device)
    comparison.clear_gradients()
    return peak


def read(slots: Mapping[str, Callable[[], object]], effort: Effort, device: torch.device) -> Readings:
    """Interleaved readings; raises NeverExecutedError unless every row ran at least once a reading."""
    counted = {row: _Counted(slot) for row, slot in slots.items()}
    order = random.Random(effort.seed)
    readings = timing.interleaved(counted, effort.rounds, device, order, effort.slot_seconds)
    for row, slot in counted.items():
        values = readings.get(row, [])
        if len(values) != effort.rounds or slot.calls < 2 * effort.rounds:
            raise NeverExecutedError(f"{row}: {len(values)} readings of {slot.calls} calls")
        if not all(math.isfinite(value) and value > 0 for value in values):
            raise NeverExecutedError(f"{row}: a reading of {min(values)} s")
    return readings


class _Counted:
    """A slot that knows how often it ran, for some 50 ns a call."""

    __slots__ = ("call", "calls")

    def __init__(self, call: Callable[[], object]) -> None:
        self.call, self.calls = call, 0

    def __call__(self) -> object:
        self.calls += 1
        return self.call()

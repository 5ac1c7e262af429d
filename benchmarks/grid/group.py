"""Measures one cell: times all its rows in turns, checks them before and after, and computes the figures."""

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
"""Seconds per call by row, one value per round."""


Runnable = Slot | ColdSlot


class NeverExecutedError(Exception):
    """A timed row ran less often than it was read."""


@dataclass
class Measured:
    """The readings of one group. `errors` says why a row is not in `readings`.

    The device's name includes how calls were made: "cpu", "cuda", "cuda graph".
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
        """The time that a copy takes to move the cell's bytes. 0 if no copy was timed."""
        if "copy" not in self.readings:
            return 0.0
        return statistics.median(self.readings["copy"]) * self.cell.bytes / (2 * self.cell.case.tensor_bytes)

    def row(self, row: str) -> RowSpeed:
        """Medians. The ratio to eager is the median over the rounds of the ratio within a round."""
        seconds = statistics.median(self.readings[row])
        ratio = timing.ratio(self.readings["eager"], self.readings[row])
        return RowSpeed(seconds, ratio, self.floor_seconds / seconds, self.peaks.get(row))

    def record(self) -> Speed:
        """The record for the history, whose files have one device each."""
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
    """Times all rows in turns. `cold` uses replays of CUDA graphs over more memory than the caches hold.

    A row that raises or is wrong, now or before (`failures`), goes to `errors` and is not timed. The whole
    group raises if eager fails, or if a row is wrong or did not run after it was timed.
    """
    device = comparison.device
    measured = Measured(cell, f"{device} graph" if cold else str(device), errors=dict(failures))
    # Autograd keeps the stream of the first forward. A capture needs all forwards on the capturing stream.
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
                measured.errors[row] = error_text(error)
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


def error_text(error: Exception) -> str:
    """An error as text. Unlike its traceback, the text keeps no tensor alive."""
    return f"{type(error).__name__}: {error}"


class Check:
    """The results that a slot must return on one set of tensors: eager's."""

    def __init__(self, direction: str, comparison: Comparison, eager: Slot) -> None:
        self.direction, self.comparison = direction, comparison
        results = eager()
        self.expected = tuple(result.detach().clone() for result in results)
        wipe(results)

    def __call__(self, row: str, results: tuple[Tensor, ...]) -> None:
        """Fills the results with NaN. The next row may get the memory with these right results."""
        try:
            if row != "copy":
                self.comparison.check_results(row, self.direction, results, self.expected)
            elif not torch.equal(results[0], self.comparison.input):
                raise WrongResultError("copy: is not the input")
        finally:
            wipe(results)

    def poison(self) -> None:
        """Fills the memory of future results with NaN. A kernel that never runs leaves them there."""
        wipe([torch.empty_like(result) for result in self.expected])


def _check(row: str, made: Runnable, checks: Sequence[Check]) -> None:
    """Checks the first and the last set of a replayed slot, after filling its results with NaN."""
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
    """Interleaved readings. Raises NeverExecutedError unless every row ran at least once per reading."""
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
    """A slot that counts its runs. Counting costs about 50 ns per call."""

    __slots__ = ("call", "calls")

    def __init__(self, call: Callable[[], object]) -> None:
        self.call, self.calls = call, 0

    def __call__(self) -> object:
        self.calls += 1
        return self.call()

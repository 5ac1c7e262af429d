"""One group per cell of the grid and device, one test per row. The first test reads all of a group's rows.

python -m pytest benchmarks -m quick       # the small cells, in two minutes
python -m pytest benchmarks                # all of it, with accuracy and instruction counts
"""

import gc
from collections.abc import Callable
from typing import Any

import pytest
import torch
from pytest_benchmark.fixture import BenchmarkFixture

from benchmarks.comparison import Case, Comparison
from benchmarks.grid import group, peers, steps
from benchmarks.grid.cells import Cell, cells
from benchmarks.grid.group import Measured
from benchmarks.grid.replay import ReplayClock
from benchmarks.grid.steps import STEP_CELLS, StepCell

CLOCK = ReplayClock()
pytestmark = pytest.mark.benchmark(timer=CLOCK)

WAYS = ["cpu", *(["cuda", "cuda graph"] if torch.cuda.is_available() else [])]
ROWS = ["copy", "eager", "compile", "ours"]
if torch.cuda.is_available():
    ROWS += [peer.row for peer in peers.PEERS]
STEP_ROWS = ["eager", "compile", "ours", "ours, kept"]


class Once:
    """Remembers a measurement's result or error, so that a group is measured only once."""

    def __init__(self) -> None:
        self._outcomes: dict[Any, Measured | str] = {}

    def of(self, key: Any, measure: Callable[[], Measured]) -> Measured:
        if key not in self._outcomes:
            try:
                self._outcomes[key] = measure()
            except Exception as error:
                self._outcomes[key] = group.error_text(error)
        outcome = self._outcomes[key]
        if isinstance(outcome, str):
            pytest.fail(outcome)
        return outcome


class Comparisons:
    """Holds one comparison at a time: a case's directions follow each other, and a large one takes 1 GB."""

    def __init__(self) -> None:
        self._held: dict[Any, tuple[Comparison, dict[str, str]]] = {}

    def of(self, case: Case, device: str) -> tuple[Comparison, dict[str, str]]:
        """The case's comparison without the rows that differ from eager, and the errors of these rows."""
        if (case, device) not in self._held:
            self._held.clear()
            gc.collect()
            place = torch.device(device)
            comparison = Comparison(case, place, compile=True, peers=peers.installed(case, place))
            failures = {row: group.error_text(error) for row, error in comparison.failures().items()}
            self._held[case, device] = comparison, failures
        return self._held[case, device]

    def drop(self) -> None:
        self._held.clear()


ONCE, COMPARISONS = Once(), Comparisons()


def measured_cell(cell: Cell, way: str, quick: bool) -> Measured:
    """The first row's test measures all rows of a group."""
    device, _, graph = way.partition(" ")

    def measure() -> Measured:
        comparison, failures = COMPARISONS.of(cell.case, device)
        effort = group.QUICK if quick else group.FULL
        return group.measure(cell, comparison, effort, cold=graph != "", failures=failures)

    return ONCE.of((cell, way, quick), measure)


def measured_steps(cell: StepCell, device: str, quick: bool) -> Measured:
    """The same for training steps. On the CPU ResNet-50 is not compiled, which would take minutes."""
    place = torch.device(device)
    compile = cell.network == "LeNet-5" or place.type == "cuda"

    def measure() -> Measured:
        COMPARISONS.drop()
        return steps.measure(cell, place, group.QUICK if quick else group.FULL, compile)

    return ONCE.of((cell, device, quick), measure)


def report(benchmark: BenchmarkFixture, measured: Measured, row: str) -> None:
    """Gives a row's readings to pytest-benchmark. Fails if the row has an error."""
    if row in measured.errors:
        pytest.fail(f"{row}: {measured.errors[row]}")
    if row not in measured.readings:
        pytest.skip(f"no {row} here")
    numbers = measured.row(row)
    benchmark.group = measured.group
    benchmark.extra_info.update(
        ratio_to_eager=numbers.ratio, share_of_floor=numbers.share_of_floor, peak_bytes=numbers.peak_bytes
    )
    CLOCK.play(benchmark, measured.readings[row])


@pytest.mark.parametrize("row", ROWS)
@pytest.mark.parametrize(
    "cell",
    [
        pytest.param(cell, id=cell.id.replace(" ", "-"), marks=[pytest.mark.quick] * cell.quick)
        for cell in cells()
    ],
)
@pytest.mark.parametrize("way", WAYS)
def test_cell(
    benchmark: BenchmarkFixture, groups: dict[str, Measured], quick: bool, way: str, cell: Cell, row: str
) -> None:
    measured = measured_cell(cell, way, quick)
    groups[measured.group] = measured
    report(benchmark, measured, row)


@pytest.mark.parametrize("row", STEP_ROWS)
@pytest.mark.parametrize(
    "cell",
    [
        pytest.param(cell, id=cell.cell.id.replace(" ", "-"), marks=[pytest.mark.quick] * cell.quick)
        for cell in STEP_CELLS
    ],
)
@pytest.mark.parametrize("device", [way for way in WAYS if " " not in way])
def test_steps(
    benchmark: BenchmarkFixture,
    groups: dict[str, Measured],
    quick: bool,
    device: str,
    cell: StepCell,
    row: str,
) -> None:
    measured = measured_steps(cell, device, quick)
    groups[measured.group] = measured
    report(benchmark, measured, row)

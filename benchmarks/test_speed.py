"""The grid of `python -m benchmarks.speed` under pytest-benchmark: a group a case and direction, a row each.

    python -m pytest benchmarks -m quick                      # proves that it runs
    python -m pytest benchmarks --benchmark-columns=median    # the whole grid

The rows of a group run one after the other: on a machine that others disturb, believe the ratios of
`python -m benchmarks.speed`, which interleaves them.
"""

import functools

import pytest
import torch
from pytest_benchmark.fixture import BenchmarkFixture

from benchmarks import timing
from benchmarks.contest import DIRECTIONS, SHAPES, Case, Contest, grid

ROUNDS = 11
QUICK_SHAPE = SHAPES[1]  # the smallest
DEVICES = ["cpu", *(["cuda"] if torch.cuda.is_available() else [])]

CASES = [
    pytest.param(case, id=case.id.replace(" ", "-"), marks=[pytest.mark.quick] * (case.shape == QUICK_SHAPE))
    for case in grid()
]


@functools.lru_cache(maxsize=1)  # one case at a time is held: the large ones take 500 MB
def checked_contest(case: Case, device: str) -> Contest:
    """The case's tensors and modules; raises WrongResultError where ours are not eager's results."""
    contest = Contest(case, torch.device(device))
    contest.check()
    return contest


@pytest.mark.parametrize("row", ["copy", "eager", "ours"])
@pytest.mark.parametrize("direction", DIRECTIONS)
@pytest.mark.parametrize("case", CASES)
@pytest.mark.parametrize("device", DEVICES)
def test_speed(benchmark: BenchmarkFixture, device: str, case: Case, direction: str, row: str) -> None:
    place = torch.device(device)
    slot = checked_contest(case, device).slots(direction)[row]

    def work() -> None:
        slot()
        timing.synchronize(place)

    calls = timing.calls_lasting(timing.SLOT_SECONDS, work, place)
    benchmark.group = f"{case.id} {direction} {device}"
    with timing.without_garbage_collection():
        benchmark.pedantic(work, rounds=ROUNDS, iterations=calls)

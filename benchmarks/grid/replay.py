"""Readings that were taken elsewhere, given to pytest-benchmark as if its own clock had taken them."""

from collections.abc import Sequence

from pytest_benchmark.fixture import BenchmarkFixture


class ReplayClock:
    """A timer for pytest-benchmark, which moves only as `play` says.

    pytest-benchmark times one test after the other, and so all readings of a row at once; rows that are to
    be compared must be read in turns. Its statistics, JSON files and comparisons get those readings.
    """

    __name__ = "interleaved"

    def __init__(self) -> None:
        self.now = 0.0

    def __call__(self) -> float:
        return self.now

    def play(self, benchmark: BenchmarkFixture, readings: Sequence[float]) -> None:
        """One round a reading, in seconds."""
        coming = iter(readings)

        def advance() -> None:
            self.now += next(coming)

        benchmark.pedantic(advance, rounds=len(readings))

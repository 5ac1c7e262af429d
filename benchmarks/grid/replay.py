"""Gives readings to pytest-benchmark as if its own clock had taken them."""

from collections.abc import Sequence

from pytest_benchmark.fixture import BenchmarkFixture


class ReplayClock:
    """A timer for pytest-benchmark, which moves only as `play` says.

    pytest-benchmark takes all readings of a test at once. Rows that are compared must be read in turns, so
    the readings are taken elsewhere and replayed. Its statistics and JSON files then have our readings.
    """

    __name__ = "interleaved"

    def __init__(self) -> None:
        self.now = 0.0

    def __call__(self) -> float:
        return self.now

    def play(self, benchmark: BenchmarkFixture, readings: Sequence[float]) -> None:
        """One round per reading, in seconds."""
        coming = iter(readings)

        def advance() -> None:
            self.now += next(coming)

        benchmark.pedantic(advance, rounds=len(readings))

"""What the readings come to: medians, GB/s, shares of the floor, ratios and their means. Knows no torch."""

import statistics
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any

MANDATORY = {"forward": 2, "backward": 3}
"""Tensors that must be read or written: x and y; x, dy and dx."""
DIRECTIONS = tuple(MANDATORY)
OURS = "ours"

Seconds = dict[str, list[float]]
"""By row, the seconds a call of every round."""


def ratio(seconds: Seconds, row: str, under: str = OURS) -> float | None:
    """How many times as long `row` takes: the median over the rounds of the ratio within a round."""
    if row not in seconds or under not in seconds:
        return None
    return statistics.median(a / b for a, b in zip(seconds[row], seconds[under], strict=True))


def geometric_mean(values: Iterable[float | None]) -> float | None:
    """Of those that are there; None where none is."""
    there = [value for value in values if value is not None]
    return statistics.geometric_mean(there) if there else None


@dataclass(frozen=True)
class Figures:
    """One case in one direction. Times are in microseconds."""

    case: str
    direction: str
    medians: dict[str, float]
    ratios: dict[str, float]
    floor: float
    predicted: float
    plan: dict[str, Any]
    mandatory_bytes: int
    eager_backend: str

    @property
    def ours(self) -> float | None:
        return self.medians.get(OURS)

    @property
    def share(self) -> float | None:
        """Of our time, what the floor makes up: 1 where nothing is left to win."""
        return None if self.ours is None else self.floor / self.ours

    @property
    def gigabytes_per_second(self) -> float | None:
        """Of the mandatory traffic, whatever was really moved."""
        return None if self.ours is None else 1e-3 * self.mandatory_bytes / self.ours


def figures(readings: dict[str, Any]) -> Iterator[Figures]:
    """Of the stage table's readings, forward and then backward of each case."""
    bandwidth = readings["bandwidth"]["copy"]
    for case in readings["cases"]:
        for direction in DIRECTIONS:
            seconds = case["seconds"].get(direction)
            if not seconds:
                continue
            ratios = {row: ratio(seconds, row) for row in seconds}
            plan = case["plans"][direction]
            size = MANDATORY[direction] * case["tensor_bytes"]
            yield Figures(
                case["case"],
                direction,
                {row: 1e6 * statistics.median(values) for row, values in seconds.items()},
                {row: value for row, value in ratios.items() if value is not None},
                1e-3 * size / bandwidth,
                plan["predicted_time"],
                plan,
                size,
                case["eager_backend"],
            )


def step_ratio(all_figures: Sequence[Figures], case: str, row: str) -> float | None:
    """Forward and backward together: how many times as long `row` takes, by medians."""
    of_case = [each for each in all_figures if each.case == case]
    if len(of_case) != len(DIRECTIONS) or not all({row, OURS} <= set(each.medians) for each in of_case):
        return None
    return sum(each.medians[row] for each in of_case) / sum(each.medians[OURS] for each in of_case)


def mean_ratios(all_figures: Sequence[Figures], row: str) -> dict[str, float | None]:
    """Geometric means over the cases, by direction and for both together."""
    means = {
        direction: geometric_mean(each.ratios.get(row) for each in all_figures if each.direction == direction)
        for direction in DIRECTIONS
    }
    cases = dict.fromkeys(each.case for each in all_figures)
    means["forward + backward"] = geometric_mean(step_ratio(all_figures, case, row) for case in cases)
    return means

"""Turns readings into verdicts: the ratio of two revisions, its confidence interval, and one word.

These are pure functions on numbers. A launch is one start of all processes. Addresses and pages are chosen at
the start and bias all rounds of a launch alike, so a difference must repeat over launches, not rounds.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass, replace
from enum import Enum

import numpy as np
from numpy.typing import NDArray

Array = NDArray[np.float64]

CONFIDENCE = 0.98
"""Confidence of an interval. A slowdown must be seen twice, each time in new processes: see `judge`."""

LEAST = 0.05
"""A smaller difference counts as none: code that only moves in memory can change speed by as much."""

RULED_OUT = 0.15
"""The verdict "same" excludes a difference of this size."""

RESAMPLES = 2000


class Verdict(str, Enum):
    """Head against base. UNSTABLE: the readings show neither a difference nor its absence."""

    FASTER = "faster"
    SAME = "same"
    SLOWER = "slower"
    UNSTABLE = "unstable"
    NO_DATA = "no data"


@dataclass(frozen=True)
class Launch:
    """Seconds a call, one value a round; `twin` is the A/A control: base again, in a process of its own."""

    base: Sequence[float]
    twin: Sequence[float]
    head: Sequence[float]


@dataclass(frozen=True)
class Interval:
    """A ratio of times, with the ends of its confidence interval."""

    low: float
    ratio: float
    high: float

    @property
    def noise(self) -> float:
        """How far the ratio is from 1 in either direction: 0.05 for 1.05 and for 1 / 1.05."""
        return math.exp(abs(math.log(self.ratio))) - 1


@dataclass(frozen=True)
class Judgement:
    """The result of all passes over a cell together."""

    base: float
    """Seconds per call, the median."""
    head: float
    head_to_base: Interval
    twin_to_base: Interval
    verdict: Verdict

    @property
    def noise(self) -> float:
        return self.twin_to_base.noise


def judge(passes: Sequence[Sequence[Launch]], seed: int = 0) -> Judgement:
    """Judges a cell by one or more passes of at least two launches each.

    All launches together must show a difference. If there are several passes, the last one must also show it
    alone, because the earlier ones selected the cell for being conspicuous.
    """
    pooled = [launch for launches in passes for launch in launches]
    together = _judge(pooled, seed)
    claims = together.verdict in (Verdict.SLOWER, Verdict.FASTER)
    if len(passes) > 1 and claims and _judge(passes[-1], seed).verdict is not together.verdict:
        return replace(together, verdict=Verdict.UNSTABLE)
    return together


def ambiguous(verdict: Verdict, passes: int) -> bool:
    """Whether to measure a cell again: it is unstable, or slower in its first pass only."""
    return verdict is Verdict.UNSTABLE or (verdict is Verdict.SLOWER and passes < 2)


def _judge(launches: Sequence[Launch], seed: int) -> Judgement:
    base, control, head = (
        np.log([getattr(launch, role) for launch in launches]) for role in ("base", "twin", "head")
    )
    generator = np.random.default_rng(seed)
    noise = interval(control - base, generator)
    found = interval(head - (base + control) / 2, generator)
    return Judgement(
        base=math.exp(float(np.median([base, control]))),
        head=math.exp(float(np.median(head))),
        head_to_base=found,
        twin_to_base=noise,
        verdict=verdict(found, noise),
    )


def verdict(found: Interval, noise: Interval) -> Verdict:
    """Head against base; `noise` is the A/A control against base."""
    bound = 1 + max(LEAST, noise.noise)
    if found.low > bound:
        return Verdict.SLOWER
    if found.high < 1 / bound:
        return Verdict.FASTER
    excluded = 1 + RULED_OUT
    return Verdict.SAME if 1 / excluded < found.low and found.high < excluded else Verdict.UNSTABLE


def interval(logs: Array, generator: np.random.Generator) -> Interval:
    """The interval of log ratios of shape (launches, rounds): the mean of the launches' medians.

    The bootstrap draws launches, and rounds within each (Davison and Hinkley, Bootstrap Methods, 3.8). It
    underestimates the variance over L launches by the factor (L - 1) / L, so deviations are widened by sqrt(L
    / (L - 1)).
    """
    launches, rounds = logs.shape
    if launches < 2:
        raise ValueError(f"an interval needs two launches or more, not {launches}")
    drawn = generator.integers(launches, size=(RESAMPLES, launches, 1))
    within = generator.integers(rounds, size=(RESAMPLES, launches, rounds))
    means = np.median(logs[drawn, within], axis=2).mean(axis=1)
    middle = float(np.median(logs, axis=1).mean())
    tail = (1 - CONFIDENCE) / 2
    low, high = middle + math.sqrt(launches / (launches - 1)) * (
        np.quantile(means, [tail, 1 - tail]) - middle
    )
    return Interval(math.exp(min(low, middle)), math.exp(middle), math.exp(max(high, middle)))

"""What readings say: the ratio of two revisions, how sure it is, and in one word what came of it.

Pure functions on numbers. A launch is one start of all processes: whatever is dealt out at a start
(addresses, pages) biases all its rounds alike, so that a claim must be repeated over launches, not rounds.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass, replace
from enum import Enum

import numpy as np
from numpy.typing import NDArray

Array = NDArray[np.float64]

CONFIDENCE = 0.98
"""Of an interval. A slowdown must be seen twice, in processes of its own each time: see `judge`."""

LEAST = 0.05
"""A difference below that is none: code that only moves in memory may be as much faster or slower."""

RULED_OUT = 0.15
"""The difference that "same" excludes."""

RESAMPLES = 2000


class Verdict(str, Enum):
    """Of head against base; UNSTABLE where neither a difference nor its absence can be claimed."""

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
        """How far from one the ratio is, whichever way: 0.05 for 1.05 and for 1 / 1.05."""
        return math.exp(abs(math.log(self.ratio))) - 1


@dataclass(frozen=True)
class Judgement:
    """What all passes over a cell say together."""

    base: float
    """Seconds a call, the median."""
    head: float
    head_to_base: Interval
    twin_to_base: Interval
    verdict: Verdict

    @property
    def noise(self) -> float:
        return self.twin_to_base.noise


def judge(passes: Sequence[Sequence[Launch]], seed: int = 0) -> Judgement:
    """Of one or more passes over a cell, each of two launches or more.

    All launches together must be sure of a difference. Where there was more than one pass, the last one must
    be so alone: the earlier ones chose the cell for being conspicuous.
    """
    pooled = [launch for launches in passes for launch in launches]
    together = _judge(pooled, seed)
    claims = together.verdict in (Verdict.SLOWER, Verdict.FASTER)
    if len(passes) > 1 and claims and _judge(passes[-1], seed).verdict is not together.verdict:
        return replace(together, verdict=Verdict.UNSTABLE)
    return together


def ambiguous(verdict: Verdict, passes: int) -> bool:
    """Whether a cell is to be measured again before anybody is told: not a slowdown that was seen twice."""
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
    """Of logarithms of ratios, (launches, rounds): the mean of the launches' medians over their rounds.

    The bootstrap draws launches, and rounds within each (Davison and Hinkley, Bootstrap Methods, 3.8).
    Deviations are widened by sqrt(L / (L - 1)): L drawn launches vary by so much less than L new ones would.
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

"""The statistics of `python -m benchmarks.compare`, on readings whose true ratio is known."""

import math
from dataclasses import replace

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from benchmarks.compare import verdicts
from benchmarks.compare.verdicts import Interval, Launch, Verdict, ambiguous, judge

ROUND, LAUNCH = 0.03, 0.02
"""Standard deviations of a ratio's logarithm within a launch and between launches, as measured on two cores
with other load. The means over the quick cells were 0.03 and 0.02."""


def launches(
    slowdown: float, seed: int, count: int = 4, rounds: int = 8, launch: float = LAUNCH
) -> list[Launch]:
    """Readings of a head that takes `slowdown` times as long, on a machine that becomes slower meanwhile."""
    generator = np.random.default_rng(seed)
    found = []
    for _ in range(count):
        drift = np.cumsum(generator.normal(0, 0.05, rounds))
        seconds = []
        for factor in (1.0, 1.0, slowdown):
            # A ratio has two such deviations.
            own = generator.normal(0, launch / math.sqrt(2))
            noise = generator.normal(0, ROUND / math.sqrt(2), rounds)
            seconds.append(list(1e-4 * factor * np.exp(drift + own + noise)))
        found.append(Launch(*seconds))
    return found


def final(slowdown: float, seed: int, **how: float) -> Verdict:
    """The job's verdict: ambiguous cells are measured again, at most twice."""
    passes: list[list[Launch]] = []
    for number in range(3):
        passes.append(launches(slowdown, 1000 * seed + number, **how))  # type: ignore[arg-type]
        verdict = judge(passes).verdict
        if not ambiguous(verdict, len(passes)):
            break
    return verdict


def test_a_fifth_slower_is_caught_ten_times_of_ten() -> None:
    assert [final(1.2, seed) for seed in range(10)] == [Verdict.SLOWER] * 10


def test_nothing_raises_an_alarm_in_ten_runs_of_32_cells() -> None:
    found = [final(1.0, seed) for seed in range(320)]
    assert Verdict.SLOWER not in found
    assert found.count(Verdict.SAME) >= 316


def test_a_fifth_faster() -> None:
    assert final(1 / 1.2, 0) is Verdict.FASTER


def test_a_cell_whose_launches_disagree_is_unstable() -> None:
    """The deviations of the noisiest measured cell allow no claim."""
    found = [judge([launches(1.0, seed, launch=0.2)]).verdict for seed in range(20)]
    assert set(found) <= {Verdict.UNSTABLE, Verdict.SAME}
    assert Verdict.UNSTABLE in found


def test_the_drift_of_the_machine_is_no_difference() -> None:
    """The machine is ten times slower in the second half. Ratios are taken within a round."""
    rounds = [1.0] * 4 + [10.0] * 4
    judgement = judge([[Launch(rounds, rounds, [1.01 * value for value in rounds])] * 2])
    assert judgement.head_to_base.ratio == pytest.approx(1.01)
    assert judgement.head_to_base.high < 1.02
    assert judgement.verdict is Verdict.SAME


def test_a_bias_of_the_launch_does_not_shrink_with_rounds() -> None:
    """Two launches that are 20 % apart: 1000 rounds in each tell no more than 10."""
    few, many = (
        judge([[Launch([1.0] * rounds, [1.0] * rounds, [head] * rounds) for head in (1.0, 1.2)]])
        for rounds in (10, 1000)
    )
    assert few.head_to_base == many.head_to_base
    assert few.verdict is Verdict.UNSTABLE


@pytest.mark.parametrize(
    ("found", "noise", "expected"),
    [
        (Interval(1.06, 1.10, 1.14), 1.0, Verdict.SLOWER),
        (Interval(1.06, 1.10, 1.14), 1.08, Verdict.SAME),  # within base's own noise
        (Interval(1.06, 1.10, 1.14), 1 / 1.08, Verdict.SAME),
        (Interval(1.04, 1.10, 1.14), 1.0, Verdict.SAME),
        (Interval(1.04, 1.10, 1.16), 1.0, Verdict.UNSTABLE),
        (Interval(0.86, 0.95, 1.05), 1.0, Verdict.UNSTABLE),
        (Interval(0.80, 0.90, 0.94), 1.0, Verdict.FASTER),
        (Interval(0.80, 0.90, 0.94), 1.08, Verdict.UNSTABLE),
    ],
)
def test_verdict(found: Interval, noise: float, expected: Verdict) -> None:
    assert verdicts.verdict(found, Interval(noise, noise, noise)) is expected


def test_noise_is_the_same_in_both_directions() -> None:
    assert Interval(1, 1.25, 2).noise == pytest.approx(0.25)
    assert Interval(0.5, 0.8, 1).noise == pytest.approx(0.25)


def test_a_slowdown_must_be_seen_by_new_processes_alone() -> None:
    slow, same = launches(1.3, 0), launches(1.0, 1)
    assert judge([slow]).verdict is Verdict.SLOWER
    assert judge([slow, slow, slow, same]).head_to_base.low > 1.05  # all together show a difference
    assert judge([slow, slow, slow, same]).verdict is Verdict.UNSTABLE
    assert judge([slow, launches(1.3, 2)]).verdict is Verdict.SLOWER


def test_what_is_measured_again() -> None:
    assert ambiguous(Verdict.SLOWER, 1)
    assert not ambiguous(Verdict.SLOWER, 2)
    assert ambiguous(Verdict.UNSTABLE, 2)
    assert not any(ambiguous(v, 1) for v in (Verdict.SAME, Verdict.FASTER, Verdict.NO_DATA))


def test_one_launch_has_no_interval() -> None:
    with pytest.raises(ValueError, match="two launches or more, not 1"):
        judge([launches(1.0, 0, count=1)])


@given(st.floats(1e-3, 1e3), st.floats(0.5, 2), st.integers(0, 1000))
def test_units_do_not_matter(unit: float, slowdown: float, seed: int) -> None:
    given = launches(slowdown, seed)
    scaled = [
        Launch(*([unit * value for value in role] for role in (each.base, each.twin, each.head)))
        for each in given
    ]
    first, second = judge([given]), judge([scaled])
    # Logarithms of size 10: each sum and difference rounds by 1e-15.
    for name in ("low", "ratio", "high"):
        assert getattr(second.head_to_base, name) == pytest.approx(
            getattr(first.head_to_base, name), rel=1e-12
        )
    assert second.base == pytest.approx(unit * first.base)
    assert first.head_to_base.low <= first.head_to_base.ratio <= first.head_to_base.high


def test_base_is_both_of_its_processes() -> None:
    [one, *_] = launches(1.0, 0)
    swapped = replace(one, base=one.twin, twin=one.base)
    assert judge([[one, one]]).head_to_base == judge([[swapped, swapped]]).head_to_base

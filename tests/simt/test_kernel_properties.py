"""Random shapes, options, devices and launches of the kernels, beyond the grid."""

from dataclasses import replace
from math import prod
from typing import Any

import pytest
from hypothesis import assume, given, settings
from hypothesis import strategies as st

from fused_bn._activations import ACTIVATIONS
from tests.cases import Case, make_tensors
from tests.ops.test_properties import cases
from tests.simt.grid import PLANS, forced, possible
from tests.simt.harness import Launch, assert_right, device, run

pytestmark = pytest.mark.needs_extension


def devices() -> st.SearchStrategy[Any]:
    small = st.builds(
        device,
        st.sampled_from((1, 2, 3, 5, 8)),
        st.sampled_from((65536, 98304, 232448)),
        st.sampled_from((1, 2, 8)),
    )
    return st.one_of(st.sampled_from(("t4", "a100", "h200")), small)


@st.composite
def launches(draw: st.DrawFn, case: Case) -> Launch:
    plan = draw(st.sampled_from((None, *PLANS)))
    group, groups = (draw(st.sampled_from((None, *sizes))) for sizes in ((2, 3, 5), (1, 2)))
    launch = Launch(
        device=draw(devices()),
        forced="" if plan is None else forced(plan, group=group, groups=groups),
        alignment=draw(st.sampled_from((16, 16, case.dtype.itemsize))),
        seed=draw(st.integers(0, 2**20)),
    )
    return launch if possible(case, launch) else replace(launch, forced="")


@st.composite
def trials(draw: st.DrawFn) -> tuple[Case, Launch, int]:
    case = draw(cases())
    assume(prod(case.shape) // case.channels > 1)
    activation = draw(st.sampled_from(tuple(ACTIVATIONS)))
    case = replace(case, activation=activation, residual=draw(st.booleans()))
    launch = draw(launches(case))
    # Few threads, so that an example takes a fraction of a second.
    plans = [launch.plan(case, direction) for direction in ("forward", "backward")]
    assume(all(part.grid <= 64 for plan in plans for part in (plan.first, plan.apply) if part is not None))
    return case, launch, draw(st.integers(0, 2**20))


def check(trial: tuple[Case, Launch, int]) -> None:
    case, launch, seed = trial
    tensors = make_tensors(case, seed=seed)
    assert_right(case, tensors, run(case, tensors, launch))


@settings(max_examples=50)
@given(trial=trials())
def test_any_launch_gives_the_right_results(trial: tuple[Case, Launch, int]) -> None:
    check(trial)


@pytest.mark.kernels_full
@settings(max_examples=1500)
@given(trial=trials())
def test_any_of_many_launches_gives_the_right_results(trial: tuple[Case, Launch, int]) -> None:
    check(trial)

"""Random shapes, options, devices and launches of the kernels: what the grid did not think of."""

from dataclasses import replace
from math import prod
from typing import Any

import pytest
from hypothesis import assume, given, settings
from hypothesis import strategies as st

from fused_bn._activations import ACTIVATIONS
from tests.cases import Case, make_tensors
from tests.simt.grid import EXCHANGES, possible
from tests.simt.harness import Launch, assert_right, run
from tests.test_properties import cases

pytestmark = pytest.mark.needs_extension


def devices() -> st.SearchStrategy[Any]:
    fields = st.fixed_dictionaries(
        {
            "architecture": st.just(90),
            "multiprocessors": st.sampled_from((1, 2, 3, 5, 8)),
            "shared_per_block": st.sampled_from((65536, 98304, 232448)),
            "max_cluster": st.sampled_from((1, 2, 8)),
        }
    )
    return st.one_of(st.sampled_from(("t4", "a100", "h200")), fields.map(lambda d: tuple(d.items())))


@st.composite
def launches(draw: st.DrawFn, case: Case) -> Launch:
    launch = Launch(
        device=draw(devices()),
        exchange=draw(st.sampled_from((None, *EXCHANGES))),
        alignment=draw(st.sampled_from((16, 16, case.dtype.itemsize))),
        register_steps=draw(st.sampled_from((None, None, 0, 1))),
        shared_steps=draw(st.sampled_from((None, None, 0, 1))),
        seed=draw(st.integers(0, 2**20)),
    )
    if draw(st.booleans()) and launch.exchange not in (None, "none"):
        sizes = (2, 4) if launch.exchange == "cluster" else (1, 2, 3, 5)
        return replace(launch, group=draw(st.sampled_from(sizes)), groups=draw(st.sampled_from((1, 2))))
    return launch if possible(case, launch) else replace(launch, exchange=None)


@st.composite
def trials(draw: st.DrawFn) -> tuple[Case, Launch, int]:
    case = draw(cases())
    assume(prod(case.shape) // case.channels > 1)
    activation = draw(st.sampled_from(tuple(ACTIVATIONS)))
    case = replace(case, activation=activation, residual=draw(st.booleans()))
    launch = draw(launches(case))
    # So few threads that an example takes no longer than a fraction of a second.
    assume(launch.plan(case, "backward").grid <= 16)
    assume(launch.plan(case, "forward" if case.training else "evaluation").grid <= 64)
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

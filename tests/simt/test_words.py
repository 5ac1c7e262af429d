"""The words of an exchange outlive launches: they are never cleared, and all plans share them."""

import random
from collections.abc import Iterator

import pytest
import torch

from tests.cases import HAS_EXTENSION, Case, make_tensors
from tests.simt.grid import possible, small
from tests.simt.harness import Launch, Run, Scratch

pytestmark = pytest.mark.needs_extension

RESULTS = ("output", "statistics", "grad_input", "grad_weight", "grad_bias")

SMALL = Case((32, 64), momentum=None)


def launches() -> Iterator[tuple[Case, Launch]]:
    """Plans that use other words for other channels, and some that use none."""
    rows, columns = Case((4, 3, 4096)), Case((37, 1032))
    for case, launch in (
        (rows, small("words", group=4)),
        (rows, small("words", group=5, groups=1)),
        (rows, small("streamed", group=3)),
        (columns, small("words", group=3, tile=64, groups=2)),
        (columns, small("words", group=9, tile=256, groups=1)),
        (columns, small("words", group=2, tile=32)),
        (columns, small("cluster", group=2)),
        (columns, small("streamed", group=2)),
        (SMALL, small("words", group=2, tile=16, groups=3)),
    ):
        if HAS_EXTENSION and possible(case, launch):
            yield case, launch


def go(run: Run) -> list[torch.Tensor]:
    for name in RESULTS:
        getattr(run, name).fill_(float("nan"))
    run.forward()
    run.backward()
    return [getattr(run, name).clone() for name in RESULTS]


def assert_repeats(run: Run, expected: list[torch.Tensor]) -> None:
    for name, tensor, before in zip(RESULTS, go(run), expected, strict=True):
        assert torch.equal(tensor, before), name


def test_a_thousand_launches() -> None:
    """Launches with the same words, one after the other, like a graph's replays."""
    run = Run(SMALL, make_tensors(SMALL), small("words", group=2, tile=32, groups=1))
    assert run.configurations[0].epochs == 2
    expected = go(run)
    for _ in range(500):
        assert_repeats(run, expected)
    assert run.scratch.epoch == 501 * 4


def test_plans_take_turns() -> None:
    """No plan takes for its own what another one has left in the same words."""
    alone = [Run(case, make_tensors(case), launch) for case, launch in launches()]
    scratch = Scratch(alone[0].module, [c for run in alone for c in run.configurations])
    together = [Run(case, make_tensors(case), launch, scratch=scratch) for case, launch in launches()]
    expected = [go(run) for run in alone]
    order = random.Random(0)
    for _ in range(40):
        i = order.randrange(len(together))
        assert_repeats(together[i], expected[i])


@pytest.mark.parametrize("epoch", range(-6, 1))
def test_epochs_begin_anew(epoch: int) -> None:
    """Epochs wrap after 2^32, and words may be unused."""
    case, launch = Case((37, 1032)), small("words", group=3, tile=64, groups=2)
    run = Run(case, make_tensors(case), launch)
    expected = go(run)
    again = Run(case, make_tensors(case), launch)
    again.scratch.tensors["epoch"][0] = epoch
    for _ in range(3):
        assert_repeats(again, expected)

"""The same launch gives the same bits in any order of threads and blocks."""

from collections.abc import Iterator
from dataclasses import replace

import pytest
import torch

from tests.cases import DTYPES, HAS_EXTENSION, Case, make_tensors
from tests.simt.grid import PLANS, Trial, possible, small
from tests.simt.harness import Outcome, Run, run
from tests.simt.memory import in_memory_order

pytestmark = pytest.mark.needs_extension

SEEDS = (0, 1, 2, 3)
"""0 is the order of the indices."""


def trials() -> Iterator[Trial]:
    shapes = (((4, 3, 4096), "contiguous"), ((37, 1032), "contiguous"), ((25, 5, 7, 3), "channels_last"))
    for shape, layout in shapes if HAS_EXTENSION else ():
        for i, plan in enumerate(PLANS):
            case = Case(shape, layout, *DTYPES[(0, 2, 4)[i % 3]], residual=i % 2 == 1, momentum=None)
            launch = small(plan, group=3, groups=2)
            if possible(case, launch):
                yield Trial(case, launch)


TRIALS = list(trials())


def assert_same_bits(found: Outcome, expected: Outcome) -> None:
    for name, tensor in found.tensors().items():
        bits, others = (in_memory_order(t).view(torch.uint8) for t in (tensor, expected.tensors()[name]))
        assert torch.equal(bits, others), name


@pytest.mark.parametrize("trial", TRIALS, ids=str)
def test_order_of_threads_and_blocks_changes_no_bit(trial: Trial) -> None:
    """Protects the order of additions, which must depend on the plan only."""
    tensors = make_tensors(trial.case)
    expected = run(trial.case, tensors, replace(trial.launch, seed=0, workers=1))
    for seed in SEEDS:
        for workers in (1, 2):
            launch = replace(trial.launch, seed=seed, workers=workers)
            assert_same_bits(run(trial.case, tensors, launch), expected)


@pytest.mark.parametrize("trial", TRIALS, ids=str)
def test_a_launch_leaves_the_scratch_as_the_next_one_needs_it(trial: Trial) -> None:
    """Protects replays of a graph, which do not clear words, counters and partial sums."""
    both = Run(trial.case, make_tensors(trial.case), trial.launch)
    names = ("output", "statistics", "grad_input", "grad_weight", "grad_bias")
    before: list[torch.Tensor] = []
    for turn in range(3):
        both.forward()
        both.backward()
        bits = [getattr(both, name).clone() for name in names]
        assert turn == 0 or all(map(torch.equal, bits, before))
        before = bits
    assert both.tracked is not None
    assert int(both.tracked) == 2 + 3


@pytest.mark.parametrize("unwanted", ["grad_input", "grad_residual", "grad_weight", "grad_bias"])
@pytest.mark.parametrize("trial", TRIALS[:5], ids=str)
def test_a_gradient_that_nobody_wants_is_not_written(trial: Trial, unwanted: str) -> None:
    """Protects callers that pass no memory for it; the other results stay as they are, bit for bit."""
    case = replace(trial.case, residual=True)
    tensors = make_tensors(case)
    everything = run(case, tensors, trial.launch)
    less = run(case, tensors, trial.launch, without=[unwanted])
    setattr(less.result, unwanted, getattr(everything.result, unwanted))
    assert_same_bits(less, everything)


@pytest.mark.parametrize("trial", TRIALS, ids=str)
def test_parameters_that_do_not_lie_side_by_side(trial: Trial) -> None:
    """Protects strided per-channel vectors, such as a column of a matrix."""
    tensors = make_tensors(trial.case)
    expected = run(trial.case, tensors, trial.launch)
    for name in ("weight", "bias", "running_mean", "running_var"):
        dense = getattr(tensors, name)
        apart = torch.stack([dense, dense + 1], dim=1)[:, 0]
        assert apart.stride() == (2,)
        setattr(tensors, name, apart)
    found = run(trial.case, tensors, trial.launch)
    for name in ("output", "grad_input", "grad_weight", "grad_bias", "running_mean", "running_var"):
        assert torch.equal(getattr(found.result, name), getattr(expected.result, name)), name


@pytest.mark.parametrize("other", ["cluster", "words", "streamed"])
def test_backward_reads_what_any_forward_saved(other: str) -> None:
    """Protects the mask and the statistics between plans of different devices and alignments."""
    case = Case((2, 3, 4104), residual=True)
    tensors = make_tensors(case)
    forward, backward = small("cluster"), small(other)
    expected = run(case, tensors, forward, backward)
    for alignment in (16, 4):
        elements = small("streamed", alignment=4)
        found = run(case, tensors, forward, elements if alignment == 4 else backward)
        assert torch.equal(found.result.output, expected.result.output)
        for name in ("grad_residual", "passed"):
            assert torch.equal(found.tensors()[name], expected.tensors()[name]), name

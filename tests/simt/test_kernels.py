"""The CUDA kernels against the fp64 reference, for everything that the planner can select."""

import pytest

from tests.cases import make_tensors
from tests.simt.coverage import demanded, exercised
from tests.simt.grid import Trial, trials
from tests.simt.harness import Configuration, assert_right, kernels, run

pytestmark = pytest.mark.needs_extension

TRIALS = trials()


def parameters() -> list[object]:
    full = pytest.mark.kernels_full
    return [pytest.param(each, marks=() if each.quick else full, id=str(each)) for each in TRIALS]


@pytest.mark.parametrize("trial", parameters())
def test_results_are_right(trial: Trial) -> None:
    """Outputs, gradients, statistics, running buffers, counter and mask are right; nothing else is written.

    Tensors and shared memory start as NaN and end at a guard page. Threads and blocks run in random order.
    """
    tensors = make_tensors(trial.case)
    assert_right(trial.case, tensors, run(trial.case, tensors, trial.launch))


def configurations(trial: Trial) -> list[Configuration]:
    return [Configuration(kernels(), trial.case, trial.launch, d) for d in ("forward", "backward")]


def test_the_grid_leaves_nothing_out() -> None:
    """The grid covers each instance of a kernel, and all combinations of kinds of tiles, plans and blocks."""
    found = set().union(*(exercised(launch) for trial in TRIALS for launch in configurations(trial)))
    missing = (set(demanded()) | kernels().instances()) - found
    assert not missing, "\n".join(sorted(missing))


def test_the_quick_part_runs_every_instance() -> None:
    quick = (trial for trial in TRIALS if trial.quick)
    ran = {name for trial in quick for launch in configurations(trial) for name in launch.instances}
    assert ran == kernels().instances()

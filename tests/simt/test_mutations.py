"""Every planted fault is caught, and by the check that is there for it."""

from pathlib import Path

import pytest

from tests.simt import build
from tests.simt.mutations import MUTATIONS, RACE, Mutation
from tests.simt.test_races import build_watched
from tests.simt.watched import DATA_RACE, run_watched

pytestmark = pytest.mark.needs_extension


def mutants() -> list[object]:
    full = pytest.mark.kernels_full
    return [pytest.param(each, marks=() if each.quick else full, id=each.name) for each in MUTATIONS]


@pytest.mark.parametrize("mutation", mutants())
def test_fault_is_caught(mutation: Mutation, tmp_path: Path) -> None:
    mutation.plant(tmp_path)
    races = mutation.caught_by == RACE
    if races:
        module = build_watched(tmp_path, optimise="0")
    else:
        module = build.build_kernels(elements=("f32",), overlay=tmp_path, optimise="0")
    done = run_watched(module, [1, 2], mutation.trials, thread_sanitizer=races, halt=True)
    assert done.returncode == (DATA_RACE if races else 1), done.stderr
    assert mutation.caught_by in done.stderr


def test_the_same_launches_are_right_without_a_fault() -> None:
    """Without a fault no check reports one."""
    module = build.build_kernels(elements=("f32",), optimise="0")
    done = run_watched(module, [1, 2], thread_sanitizer=False)
    assert done.returncode == 0, done.stderr

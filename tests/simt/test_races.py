"""ThreadSanitizer finds no race in the kernels. Values alone do not show races."""

from pathlib import Path

import pytest

from tests.simt import build
from tests.simt.watched import run_watched

pytestmark = pytest.mark.needs_extension


@pytest.fixture(scope="module")
def watched_kernels() -> Path:
    return build_watched()


def build_watched(overlay: Path | None = None, optimise: str = "2") -> Path:
    """Single precision alone: what threads and blocks do with each other is the same for all types."""
    try:
        return build.build_kernels(
            thread_sanitizer=True, elements=("f32",), overlay=overlay, optimise=optimise
        )
    except build.CompileError as error:
        if "tsan" not in str(error):
            raise
        pytest.skip("the compiler comes without ThreadSanitizer")


@pytest.mark.parametrize(
    ("seeds", "trials"),
    [
        pytest.param([1], [1, 3, 6], id="quick"),
        pytest.param([0, 1, 2], [], id="all", marks=pytest.mark.kernels_full),
    ],
)
def test_thread_sanitizer_has_nothing_to_report(
    watched_kernels: Path, seeds: list[int], trials: list[int]
) -> None:
    """Among threads of a block and blocks of a group or cluster, for each exchange and order."""
    done = run_watched(watched_kernels, seeds, trials, thread_sanitizer=True)
    assert done.returncode == 0, done.stderr

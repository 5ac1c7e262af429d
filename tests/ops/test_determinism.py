"""The same input gives the same bits: on every run, with any number of threads, in any process."""

import hashlib
import subprocess
import sys
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from itertools import product

import pytest
import torch

from tests.cases import DTYPES, Case, Result, layouts, make_tensors, run_fused, same_bits

pytestmark = pytest.mark.needs_extension

SHAPES = (
    (64, 6, 28, 28),  # LeNet: fewer channels than threads, so N and S are split
    (64, 16, 10, 10),
    (2, 6, 65537),  # one long row per channel: rows are split
    (4099, 50),  # tall: rows are divided between threads
    (1, 65, 100, 100),  # N = 1
    (2, 2048, 7, 7),  # more channels than threads
    (5, 17, 3, 5),  # too small to split
    (1, 1, 300, 301),  # one channel, one sample
)
CASES = [
    Case(shape, layout, dtype, parameter_dtype, training=training)
    for shape in SHAPES
    for layout in layouts(shape)
    for (dtype, parameter_dtype), training in product((DTYPES[0], DTYPES[1], DTYPES[2]), (True, False))
]
NAMES = ("output", "grad_input", "grad_weight", "grad_bias", "running_mean", "running_var")


@pytest.fixture(autouse=True)
def _threads() -> Iterator[None]:
    """Restores the number of threads after a test."""
    before = torch.get_num_threads()
    yield
    torch.set_num_threads(before)


def assert_same(left: Result, right: Result, when: str) -> None:
    for name in NAMES:
        assert same_bits(getattr(left, name), getattr(right, name)), f"{name}, {when}"


@pytest.mark.parametrize("case", CASES, ids=str)
def test_bits_do_not_depend_on_the_number_of_threads(case: Case) -> None:
    """Outputs, gradients and buffers for 1, 2, 3 and 7 threads: only sizes decide how work is split."""
    tensors = make_tensors(case)
    torch.set_num_threads(1)
    expected = run_fused(case, tensors)
    for threads in (2, 3, 7):
        torch.set_num_threads(threads)
        assert_same(run_fused(case, tensors), expected, f"{threads} threads")


@pytest.mark.skipif(not torch.set_flush_denormal(False), reason="this processor flushes no subnormals")
def test_threads_flush_subnormals_where_the_caller_does() -> None:
    """torch.set_flush_denormal affects one thread. Other threads kept values that it flushed."""
    case = Case((2, 6, 65537), training=False, activation="none", eps=0.0)
    tensors = make_tensors(case)
    tensors.input.mul_(1e-40)
    for name, value in (("weight", 1.0), ("bias", 0.0), ("running_mean", 0.0), ("running_var", 1.0)):
        getattr(tensors, name).fill_(value)
    torch.set_flush_denormal(True)
    try:
        for threads in (1, 3):
            torch.set_num_threads(threads)
            assert not run_fused(case, tensors).output.any()
    finally:
        torch.set_flush_denormal(False)
    assert run_fused(case, tensors).output.any()


@pytest.mark.parametrize("case", CASES[::3], ids=str)
def test_repeated_runs_give_the_same_bits(case: Case, device: str) -> None:
    """Each call uses new memory, with allocations between calls, so that addresses differ."""
    tensors = make_tensors(case, device)
    expected = run_fused(case, tensors)
    kept = []
    for repeat in range(5):
        kept.append(torch.empty(1000 * repeat + 1, device=device))
        assert_same(run_fused(case, tensors), expected, f"run {repeat}")


def test_bits_do_not_depend_on_what_else_runs_in_the_process() -> None:
    """The same call from a pool of two Python threads at once."""
    case = Case((64, 6, 28, 28))
    tensors = make_tensors(case)
    expected = run_fused(case, tensors)
    with ThreadPoolExecutor(2) as pool:
        for result in pool.map(lambda _: run_fused(case, tensors), range(8)):
            assert_same(result, expected, "concurrently")


def digest() -> str:
    """A hash of all results of forward and backward, over a few cases."""
    found = hashlib.sha256()
    for case in CASES[::5]:
        result = run_fused(case, make_tensors(case))
        for name in NAMES:
            value: torch.Tensor = getattr(result, name)
            found.update(value.contiguous().view(torch.uint8).numpy().tobytes())
    return found.hexdigest()


def test_bits_do_not_depend_on_the_process() -> None:
    """A new process with one thread computes the same. No address, seed or timing matters."""
    imported = "import torch; from tests.ops.test_determinism import digest"
    code = f"{imported}; torch.set_num_threads(1); print(digest())"
    other = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert other.stdout.strip() == digest()

"""Fixtures and markers for all tests, the suite's devices, and hypothesis' profiles."""

import os

# The OpenMP runtime reads this when torch is first imported. While a compiler ran on the same two cores, the
# core tests took 51 s with threads that spin and 12 s with threads that sleep.
os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")
# Keras reads this when it is first imported.
os.environ["KERAS_BACKEND"] = "torch"

from collections.abc import Iterator

import hypothesis
import pytest
import torch

import fused_bn
from tests.cases import DEVICES, EMULATED, HAS_EXTENSION, why_no_cuda
from tests.docs import browser as browsers

# The same examples in every run. `--hypothesis-profile explore` draws new ones.
hypothesis.settings.register_profile("repeatable", deadline=None, max_examples=60, derandomize=True)
hypothesis.settings.register_profile("explore", deadline=None, max_examples=2000)
hypothesis.settings.load_profile("repeatable")


MARKERS = (
    "core: repeated for each CPU instruction set and for the fallback",
    "needs_extension: tests the compiled operators themselves",
    "cuda: runs on a CUDA device; every test whose device is cuda has it",
    "real_gpu(reason): is skipped on an emulated CUDA device",
)


def pytest_configure(config: pytest.Config) -> None:
    for marker in MARKERS:
        config.addinivalue_line("markers", marker)


def pytest_report_header() -> list[str]:
    why = why_no_cuda()
    return [
        f"fused_bn: {'compiled extension' if HAS_EXTENSION else 'pure-PyTorch fallback'}, "
        f"devices {', '.join(DEVICES)}{f' (no cuda: {why})' if why else ''}"
    ]


@pytest.hookimpl(tryfirst=True)
def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    why = why_no_cuda()
    for item in items:
        if "cuda" in getattr(getattr(item, "callspec", None), "params", {}).values():
            item.add_marker("cuda")
        if item.get_closest_marker("cuda") and why:
            item.add_marker(pytest.mark.skip(reason=why))
        if item.get_closest_marker("needs_extension") and not HAS_EXTENSION:
            item.add_marker(pytest.mark.skip(reason="the compiled extension is not loaded"))
        real = item.get_closest_marker("real_gpu")
        if real is not None and EMULATED:
            item.add_marker(pytest.mark.skip(reason=f"needs a real GPU: {real.args[0]}"))


@pytest.fixture(params=DEVICES)
def device(request: pytest.FixtureRequest) -> str:
    """All devices with kernels here. The header of pytest's report says why CUDA is missing."""
    name: str = request.param
    return name


@pytest.fixture(autouse=True)
def _a_device_has_no_work_left(request: pytest.FixtureRequest) -> Iterator[None]:
    """What goes wrong on a device is an error of the test that queued it."""
    yield
    if request.node.get_closest_marker("cuda") and torch.cuda.is_initialized():
        for index in range(torch.cuda.device_count() if EMULATED else 1):
            torch.cuda.synchronize(index)


@pytest.fixture
def keeps_fused() -> Iterator[None]:
    """Compiles and exports evaluation with our operators, so that its bits equal eager mode's."""
    with fused_bn.fused_in_export():
        yield


@pytest.fixture
def fresh_compiler() -> Iterator[None]:
    """Resets the compiler before the test, because the limit on recompilations counts per function."""
    torch._dynamo.reset()
    yield
    torch._dynamo.reset()


@pytest.fixture(scope="session")
def browser() -> str:
    """A browser for tests of pages. Without one these tests are skipped."""
    found = browsers.installed()
    if found is None:
        pytest.skip(f"no browser: none of {', '.join(browsers.BROWSERS)} is installed")
    return found

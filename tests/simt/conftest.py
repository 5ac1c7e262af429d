"""Fixtures for the tests of the executor and of the kernels on it."""

import shutil
from collections.abc import Iterator
from pathlib import Path

import pytest
import torch

from tests.simt import build


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    if shutil.which(build.COMPILER) is not None:
        return
    for item in items:
        if Path(__file__).parent in item.path.parents:
            item.add_marker(pytest.mark.skip(reason="no C++ compiler"))


@pytest.fixture(autouse=True, scope="package")
def one_thread_for_torch() -> Iterator[None]:
    """torch's threads would compete with those of the executor."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(threads)

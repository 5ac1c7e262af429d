"""These tests are of the emulated device itself, and of what it catches."""

import os
from pathlib import Path

import pytest


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    emulated = bool(os.environ.get("CUDA_DEVICE_ATEN"))
    for item in items:
        if Path(__file__).parent not in item.path.parents:
            continue
        item.add_marker("cuda")
        if not emulated:
            item.add_marker(pytest.mark.skip(reason="runs on the emulated device: make cuda-emulated"))

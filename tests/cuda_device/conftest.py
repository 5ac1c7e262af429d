"""These tests are of the emulated device itself, and of what it catches."""

from pathlib import Path

import pytest

from tests.cases import EMULATED


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    for item in items:
        if Path(__file__).parent not in item.path.parents:
            continue
        item.add_marker("cuda")
        if not EMULATED:
            item.add_marker(pytest.mark.skip(reason="runs on the emulated device: make cuda-emulated"))

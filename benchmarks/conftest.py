"""Fixtures of the benchmarks."""

import pytest

from benchmarks import history


@pytest.fixture(scope="session")
def records() -> list[history.Record]:
    """Where tests leave what they measured."""
    return []

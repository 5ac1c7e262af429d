"""pytest collects the same tests in every process. Missing packages remove only their tests."""

import os
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parent.parent.parent

SOME_TESTS_NEED = ("jax", "jinja2", "keras", "sklearn", "transformers")
"""Packages that an offline machine with a GPU may lack. `make gpu` does not require them."""


def collected(hash_seed: str, without: tuple[str, ...] = ()) -> list[str]:
    """The ids of all tests, in order, from a new process that cannot import some packages."""
    code = (
        "import sys\n"
        f"sys.modules.update(dict.fromkeys({without!r}))\n"
        "import pytest\n"
        "sys.exit(pytest.main(['tests', '--collect-only', '-q', '-m', '', '-p', 'no:cacheprovider']))"
    )
    done = subprocess.run(
        [sys.executable, "-c", code],
        cwd=ROOT,
        env={**os.environ, "PYTHONHASHSEED": hash_seed, "PYTEST_ADDOPTS": ""},
        capture_output=True,
        text=True,
        timeout=300,
    )
    assert done.returncode == 0, done.stdout[-4000:] + done.stderr[-2000:]
    return [line for line in done.stdout.splitlines() if "::" in line]


@pytest.mark.slow
def test_every_process_collects_the_same_tests_in_the_same_order() -> None:
    """pytest-xdist needs one order in all workers, but the order of string sets differs between processes.

    Without the packages whole files are skipped, and nothing else changes.
    """
    everything, fewer = collected("1"), collected("2", SOME_TESTS_NEED)
    files = {id.partition("::")[0] for id in fewer}
    in_files = [id for id in everything if id.partition("::")[0] in files]
    assert len(in_files) == len(fewer)
    assert [pair for pair in zip(in_files, fewer, strict=True) if pair[0] != pair[1]] == []

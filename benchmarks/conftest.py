"""The options of `pytest benchmarks`, the tables that it prints at its end, and its record in the history."""

import sys
from pathlib import Path

import pytest
import torch
from rich.console import Console

from benchmarks import history
from benchmarks.accuracy import table as accuracy_table
from benchmarks.environment import environment
from benchmarks.grid import table
from benchmarks.grid.group import Measured
from benchmarks.instructions import stored
from benchmarks.instructions import table as instructions_table
from benchmarks.instructions.count import key

GROUPS = pytest.StashKey[dict[str, Measured]]()
RECORDS = pytest.StashKey[list[history.Record]]()


def pytest_addoption(parser: pytest.Parser) -> None:
    parser.addoption(
        "--record", action="store_true", help="adds what was measured to the history, in benchmarks/history/"
    )
    # An option of its own: with a value for --record, `pytest --record benchmarks` would mean another path.
    parser.addoption(
        "--record-to", metavar="DIRECTORY", help="adds what was measured to the history in that directory"
    )


def pytest_configure(config: pytest.Config) -> None:
    config.stash[GROUPS] = {}
    config.stash[RECORDS] = []
    # Our table replaces pytest-benchmark's, unless the user asks for columns.
    named = any(str(a).startswith("--benchmark-columns") for a in config.invocation_params.args)
    if hasattr(config.option, "benchmark_quiet") and not named:
        config.option.benchmark_quiet = True


@pytest.fixture(scope="session")
def groups(pytestconfig: pytest.Config) -> dict[str, Measured]:
    """The groups that tests measured, by name."""
    return pytestconfig.stash[GROUPS]


@pytest.fixture(scope="session")
def records(pytestconfig: pytest.Config) -> list[history.Record]:
    """The other records that tests measured."""
    return pytestconfig.stash[RECORDS]


@pytest.fixture(scope="session")
def quick(pytestconfig: pytest.Config) -> bool:
    """Whether only the quick part runs."""
    return pytestconfig.option.markexpr == "quick"


def pytest_terminal_summary(terminalreporter: pytest.TerminalReporter, config: pytest.Config) -> None:
    groups = list(config.stash[GROUPS].values())
    records = config.stash[RECORDS]
    accuracies = [record for record in records if isinstance(record, history.Accuracy)]
    counts = [record for record in records if isinstance(record, history.Instructions)]
    if not groups and not records:
        return
    terminalreporter.section("benchmarks")
    console = Console(width=None if sys.stdout.isatty() else 120)
    if accuracies:
        console.print(accuracy_table.terminal(accuracies))
    if counts:
        console.print(instructions_table.terminal(counts, stored.load().get(key(), {})))
    if groups:
        console.print(table.terminal(groups))
        print("The least gained on eager:", *table.worst(groups), sep="\n  ")


def pytest_sessionfinish(session: pytest.Session, exitstatus: int) -> None:
    config = session.config
    there = config.getoption("--record-to")
    if there is None and not config.getoption("--record"):
        return
    directory = history.DIRECTORY if there is None else Path(there)
    by_type: dict[str, list[history.Record]] = {"cpu": [*config.stash[RECORDS]], "cuda": []}
    for group in config.stash[GROUPS].values():
        by_type[torch.device(group.device.partition(" ")[0]).type].append(group.record())
    if exitstatus:
        print("\nNothing is recorded: not every test passed.")
        return
    for type, found in by_type.items():
        if found:
            try:
                path = history.append(found, environment(torch.device(type)), directory)
            except OSError as error:  # so that the tables are printed anyway
                print(f"\n{len(found)} records are lost: {error}")
            else:
                print(f"\n{len(found)} records are added to {path}")

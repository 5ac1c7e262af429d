"""The benchmark of instruction counts: its messages, its file, its command, its order of calls."""

import gc
import json
import os
import platform
import sys
from pathlib import Path
from typing import NamedTuple

import pytest
import torch
from rich.console import Console
from torch.utils.benchmark import Timer

from benchmarks import test_instructions
from benchmarks.history import ROOT, Instructions
from benchmarks.instructions import calls, count, job, stored, table
from tests.benchmarks.lenet_data import one_thread  # noqa: F401

pytestmark = pytest.mark.usefixtures("one_thread")

KEY = "torch 2, python 3"
COUNTS = {name: 1000 * place for place, name in enumerate(calls.COUNTED, start=1)}


@pytest.fixture
def path(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The path of a file of stored counts that does not exist yet."""
    path = tmp_path / "counts.json"
    monkeypatch.setattr(stored, "PATH", path)
    return path


@pytest.fixture
def counted(monkeypatch: pytest.MonkeyPatch) -> dict[str, int]:
    """Sets the result of the next counting, without valgrind."""
    found = dict(COUNTS)
    for module in (count, test_instructions):
        monkeypatch.setattr(module, "missing", lambda: None)
        monkeypatch.setattr(module, "key", lambda: KEY)
        monkeypatch.setattr(module, "count", lambda: found)
    return found


# Beside what is stored


@pytest.mark.parametrize(("found", "bad"), [(1030, False), (1031, True), (970, False), (1, False)])
def test_more_than_three_percent_is_too_much(found: int, bad: bool) -> None:
    complaint = stored.complaint("forward", found, 1000)
    assert (complaint is not None) is bad
    if complaint:
        assert "forward: 1,031 instructions, 3.1% more than the 1,000" in complaint
        assert "benchmarks/instructions/counts.json" in complaint
        assert "python -m benchmarks.instructions --update" in complaint


@pytest.mark.parametrize(("found", "good"), [(970, False), (969, True), (1031, False)])
def test_three_percent_less_asks_for_a_lower_count(found: int, good: bool) -> None:
    praise = stored.praise("forward", found, 1000)
    assert (praise is not None) is good
    if praise:
        assert "3.1% fewer than the 1,000 in benchmarks/instructions/counts.json" in praise
        assert "--update" in praise


def test_storing_replaces_one_entry(path: Path) -> None:
    assert stored.load() == {}
    stored.store("old", {"forward": 7})
    stored.store(KEY, {"forward": 5})
    stored.store(KEY, COUNTS)
    assert stored.load() == {"old": {"forward": 7}, KEY: COUNTS}
    assert path.read_text().endswith("}\n")
    assert [file.name for file in path.parent.iterdir()] == [path.name]


@pytest.mark.parametrize("text", ["{", "[1]", '{"key": 3}', '{"key": {"forward": "many"}}'])
def test_a_broken_file_is_one_clear_error(text: str, path: Path) -> None:
    path.write_text(text)
    with pytest.raises(stored.StoredCountsError, match=r"counts\.json cannot be read: "):
        stored.load()


def test_the_file_in_the_repository_can_be_read() -> None:
    for entry in stored.load().values():
        assert set(entry) == set(calls.COUNTED)
        assert min(entry.values()) > 10_000


# What is counted


def test_turns_go_through_all_blocks_in_order(monkeypatch: pytest.MonkeyPatch) -> None:
    """A block's preparation must not count, so Timer's toggles of counting come in pairs before it."""
    made: list[str] = []
    monkeypatch.setattr(calls, "calls", lambda: {n: lambda n=n: made.append(n) for n in calls.COUNTED})
    monkeypatch.setattr(torch._C, "_valgrind_toggle", lambda: made.append("toggle"))
    try:
        turns = calls.turns(2, 3)
        for _ in range(2):
            next(turns)()
            assert made == [name for name in calls.COUNTED for _ in range(calls.WARM_UP)]
            made.clear()
        assert not gc.isenabled()
        for name in calls.BLOCKS:
            for _ in range(3):
                next(turns)()
            assert made == ["toggle", *[name] * calls.WARM_UP, "toggle", *[name] * 3]
            made.clear()
        assert next(turns, None) is None
    finally:
        gc.enable()
    assert set(calls.BLOCKS) == set(calls.COUNTED)


def test_a_count_is_the_least_of_its_blocks(monkeypatch: pytest.MonkeyPatch) -> None:
    class Stats(NamedTuple):
        total: int

        def counts(self) -> int:
            return self.total

    def collect(_: Timer, number: int, *, repeats: int, **__: object) -> list[Stats]:
        of_repeat = [1000 + place for place in range(repeats)]
        of_repeat[-1] = 10
        return [Stats(number * count) for count in of_repeat]

    monkeypatch.setattr(Timer, "collect_callgrind", collect)
    found = count.count()
    assert gc.isenabled()
    assert list(found) == list(calls.COUNTED)
    assert list(found.values())[:-1] == [1000 + place for place in range(len(calls.COUNTED) - 1)]
    assert found[calls.BLOCKS[-1]] == 10


def test_types_are_as_they_were_after_renewing() -> None:
    before = dict(vars(torch.nn.Module)), dict(vars(torch.Tensor))
    calls.renew_types()
    assert (dict(vars(torch.nn.Module)), dict(vars(torch.Tensor))) == before


@pytest.mark.needs_extension
def test_calls_do_what_their_names_say() -> None:
    made = calls.calls()
    assert tuple(made) == calls.COUNTED
    found = {name: call() for name, call in made.items()}
    for name in ("forward", "functional"):
        assert getattr(found[name], "shape", None) == calls.SHAPE
        assert getattr(found[name], "grad_fn", None) is not None
    assert type(getattr(found["eager forward"], "grad_fn", None)).__name__ == "ReluBackward0"


def test_the_environment_is_this_interpreters_and_is_put_back(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PYTHONHASHSEED", "7")
    monkeypatch.delenv("OMP_NUM_THREADS", raising=False)
    before = dict(os.environ)
    with count._environment():
        assert os.environ["PATH"].split(os.pathsep)[0] == str(Path(sys.executable).parent)
        assert os.environ["PYTHONPATH"].split(os.pathsep)[0] == str(ROOT)
        assert os.environ["PYTHONHASHSEED"] == "0"
        assert os.environ["OMP_NUM_THREADS"] == "1"
    assert dict(os.environ) == before


@pytest.mark.needs_extension
def test_without_valgrind_it_says_what_is_missing(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(count, "which", lambda _: None)
    assert (count.missing() or "").startswith(
        "valgrind, callgrind_control, callgrind_annotate: not installed"
    )
    monkeypatch.setattr(count, "which", lambda tool: f"/nowhere/{tool}")
    assert "Timer starts `python`" in (count.missing() or "")


@pytest.mark.needs_extension
def test_the_key_names_what_counts_depend_on() -> None:
    for part in (
        torch.__version__,
        "python 3.",
        platform.machine(),
    ):
        assert part in count.key()


# The command and the test


def test_the_command_stores_and_then_compares(
    path: Path, counted: dict[str, int], capsys: pytest.CaptureFixture[str]
) -> None:
    assert job.main([]) == 0
    assert f"no counts for {KEY}" in capsys.readouterr().out
    assert not path.exists()
    assert job.main(["--update"]) == 0
    assert json.loads(path.read_text()) == {KEY: COUNTS}
    counted["forward"] = 1031
    assert job.main([]) == 1
    printed = capsys.readouterr().out
    assert "forward: 1,031 instructions, 3.1% more" in printed
    assert "+3.10%" in printed
    counted.update({"forward": 900, "eager forward": 99_999})
    assert job.main([]) == 0
    assert "forward: 900 instructions, 10.0% fewer" in capsys.readouterr().out


def test_the_command_fails_where_nothing_can_be_counted(
    path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(count, "missing", lambda: "valgrind: not installed")
    assert job.main(["--update"]) == 1
    assert capsys.readouterr().err == "valgrind: not installed\n"
    assert not path.exists()


@pytest.mark.usefixtures("counted")
@pytest.mark.parametrize(
    ("error", "code", "text"),
    [(KeyboardInterrupt(), 130, "Interrupted"), (OSError("Failed to collect"), 1, "Failed to collect")],
)
def test_what_fails_or_is_interrupted_stores_nothing(
    error: BaseException,
    code: int,
    text: str,
    path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    def fail() -> dict[str, int]:
        raise error

    monkeypatch.setattr(count, "count", fail)
    assert job.main(["--update"]) == code
    assert text in capsys.readouterr().err
    assert not path.exists()


@pytest.mark.usefixtures("path")
def test_the_test_gates_what_is_stored(counted: dict[str, int]) -> None:
    with pytest.raises(pytest.skip.Exception, match="no counts for"):
        test_instructions.test_instructions("forward", counted)
    stored.store(KEY, COUNTS)
    test_instructions.test_instructions("forward", counted)
    with pytest.warns(UserWarning, match="lower it by"):
        test_instructions.test_instructions("forward", counted | {"forward": 900})
    with pytest.raises(
        AssertionError, match=r"1,100 instructions, 10.0% more than the 1,000 in .*counts\.json"
    ):
        test_instructions.test_instructions("forward", counted | {"forward": 1100})


# The table


def test_the_table_has_ours_beside_eagers_and_what_is_stored() -> None:
    records = [Instructions(call, number) for call, number in COUNTS.items()]
    assert [table.eager_of(call) for call in calls.GATED] == [*calls.COUNTED[4:], "eager forward"]
    console = Console(width=120)
    with console.capture() as capture:
        console.print(table.terminal(records, {"forward": 800}))
    lines = {line.split()[0]: line.split() for line in capture.get().splitlines() if line.strip()}
    assert lines["forward"] == ["forward", "1,000", "5,000", "0.20", "800", "+25.00%"]
    assert lines["functional"] == ["functional", "4,000", "5,000", "0.80", "-", "-"]

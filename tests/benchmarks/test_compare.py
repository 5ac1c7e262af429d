"""The command `python -m benchmarks.compare`: its processes, order of work, table, file and exit codes."""

import json
import random
import shutil
import signal
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import pytest

from benchmarks.compare import job, record, workers
from benchmarks.compare.builds import BuildCache
from benchmarks.compare.revisions import Repository
from benchmarks.compare.verdicts import Launch, Verdict
from benchmarks.compare.workers import ROOT, Conditions, WorkerError
from benchmarks.comparison import Case
from benchmarks.grid.cells import Cell
from tests.benchmarks.test_compare_builds import commit, repository, write  # noqa: F401 (repository is a fixture)
from tests.benchmarks.test_compare_verdicts import launches

SLOW, CRASHES, WRONG = 3, 5, 7
"""The numbers of channels at which `sabotaged` misbehaves."""

SABOTAGE = f"""
import os, time

class BatchNorm2d(BatchNorm2d):
    def forward(self, input, residual=None):
        channels = input.shape[1]
        if channels == {CRASHES}:
            os._exit(3)
        output = super().forward(input, residual)
        if channels == {SLOW}:
            time.sleep(1e-3)
        return output + 1 if channels == {WRONG} else output
"""


def cell(channels: int, direction: str = "forward") -> Cell:
    return Cell("tiny", Case((2, channels, 4, 4), "contiguous", "float32"), direction)


def conditions(rounds: int = 2) -> Conditions:
    return Conditions("cpu", 1, rounds, random.Random(0))


@pytest.fixture(scope="module")
def sabotaged(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A copy of this package with SABOTAGE appended."""
    checkout = tmp_path_factory.mktemp("sabotaged")
    # Other processes write to __pycache__ and rename files there.
    ignored = shutil.ignore_patterns("__pycache__")
    shutil.copytree(ROOT / "fused_bn", checkout / "fused_bn", ignore=ignored)
    with (checkout / "fused_bn/__init__.py").open("a") as file:
        file.write(SABOTAGE)
    return checkout


# Processes


@pytest.mark.needs_extension
def test_a_launch(sabotaged: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Each process has its own fused_bn. An error or crash in one cell does not stop the next cell."""
    monkeypatch.setattr(workers, "READING_SECONDS", 1e-4)
    cells = [cell(channels, "evaluation") for channels in (SLOW, CRASHES, WRONG, 4)]
    done: list[None] = []
    checkouts = {"base": ROOT, "twin": ROOT, "head": sabotaged}
    found = workers.launch(cells, checkouts, conditions(), lambda: done.append(None))
    assert len(done) == len(found) == 4
    slow, crashed, wrong, same = (found[each.id] for each in cells)
    assert isinstance(slow, Launch)
    assert isinstance(same, Launch)
    for readings in (slow, same):
        assert len(readings.base) == len(readings.twin) == len(readings.head) == 2
    assert min(slow.head) >= 1e-3 > max(slow.base) > 0
    assert max(slow.twin) < 1e-3
    assert isinstance(crashed, str)
    assert crashed.startswith("head: a process ended (exit code 3)")
    assert isinstance(wrong, str)
    assert wrong.startswith("head: WrongResultError: ours: output is not eager's")


@pytest.mark.parametrize(
    ("init", "message"),
    [
        ("", "head: its extension was not loaded from"),
        ("import no_such_module", "head: No module named 'no_such_module'"),
        ("import os; os._exit(4)", r"head: a process ended \(exit code 4\)"),
    ],
)
@pytest.mark.needs_extension
def test_a_revision_that_cannot_be_loaded(init: str, message: str, tmp_path: Path) -> None:
    write(tmp_path, {"fused_bn/__init__.py": init})
    with pytest.raises(WorkerError, match=message):
        workers.launch([cell(4)], {"base": ROOT, "twin": ROOT, "head": tmp_path}, conditions(), int)


def test_a_process_that_hangs_is_ended(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(workers, "PATIENCE", 0.5)
    write(tmp_path, {"fused_bn/__init__.py": "import time; time.sleep(600)"})
    with pytest.raises(WorkerError, match="base: a process does not answer for 0 s"):
        workers.launch([cell(4)], dict.fromkeys(workers.ROLES, tmp_path), conditions(), int)


def test_a_case_is_made_once() -> None:
    """A case's directions follow each other in every order of the cases."""
    cells = [cell(channels, direction) for channels in (1, 2, 3) for direction in ("forward", "backward")]
    orders = [[each.case for each in workers.shuffled(cells, random.Random(seed))] for seed in range(9)]
    for cases in orders:
        assert cases[0] == cases[1] != cases[2] == cases[3] != cases[4] == cases[5]
    assert len({tuple(cases) for cases in orders}) > 1


# The job


Truth = Callable[[Cell, int], float | str]
"""How much slower head is in a cell and pass, or why the cell cannot be timed."""


@pytest.fixture
def compared(
    repository: Repository,  # noqa: F811
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> Callable[..., tuple[int, Any]]:
    """Runs the job on two commits with invented readings. Returns the exit code and the written results."""
    commit(repository, {"csrc/kernel.cpp": "head"})
    monkeypatch.setattr(BuildCache, "built", lambda *_: tmp_path)
    out = tmp_path / "out"

    def run(truth: Truth, *argv: str) -> tuple[int, Any]:
        calls = 0

        def launch(
            cells: Sequence[Cell], checkouts: Mapping[str, Path], how: Conditions, done: Callable[[], object]
        ) -> dict[str, Launch | str]:
            nonlocal calls
            assert set(checkouts) == set(workers.ROLES)
            number = calls // job.LAUNCHES
            calls += 1
            found: dict[str, Launch | str] = {}
            for each in cells:
                true = truth(each, number)
                seed = hash((each.case.shape, len(each.id), calls))
                found[each.id] = (
                    true if isinstance(true, str) else launches(true, abs(seed), 1, how.rounds)[0]
                )
                done()
            return found

        monkeypatch.setattr(workers, "launch", launch)
        code = job.main(["HEAD~1", "HEAD", "--out", str(out), *argv], repository.root)
        path = out / "compare.json"
        return code, json.loads(path.read_text()) if path.exists() else None

    return run


PLANTED = "64x6x28x28 contiguous float32 forward"


def test_a_slowdown_is_confirmed_and_fails(
    compared: Callable[..., Any], capsys: pytest.CaptureFixture[str]
) -> None:
    code, found = compared(lambda cell, _: 1.2 if cell.id == PLANTED else 1.0)
    assert code == 1
    assert len(found["cells"]) == 36
    assert {each["id"] for each in found["cells"] if each["verdict"] == "slower"} == {PLANTED}
    [slow] = [each for each in found["cells"] if each["id"] == PLANTED]
    assert len(slow["passes"]) == 2
    assert slow["head_to_base"]["ratio"] == pytest.approx(1.2, rel=0.05)
    assert slow["head"] / slow["base"] == pytest.approx(1.2, rel=0.1)
    assert [[len(launch["head"]) for launch in each] for each in slow["passes"]] == [[8] * 4] * 2
    assert found["exit_code"] == 1
    assert found["environment"]["threads"] == 1
    printed = capsys.readouterr().out
    assert "35 same, 1 slower" in printed
    line = next(line for line in printed.splitlines() if line.strip().startswith(f"{PLANTED}  "))
    assert line.split()[-1] == "slower"


def test_what_new_processes_do_not_see_is_no_alarm(compared: Callable[..., Any]) -> None:
    """A slowdown in one pass is measured again, and once more if the passes disagree."""
    code, found = compared(lambda cell, number: 1.2 if cell.id == PLANTED and number == 0 else 1.0)
    assert code == 0
    [cell] = [each for each in found["cells"] if each["id"] == PLANTED]
    assert cell["verdict"] in ("same", "unstable")
    assert len(cell["passes"]) > 1


def test_a_fifth_less_is_faster(compared: Callable[..., Any]) -> None:
    code, found = compared(lambda *_: 1 / 1.2, "--only", "evaluation")
    assert code == 0
    assert [each["verdict"] for each in found["cells"]] == ["faster"] * 9


def test_a_cell_without_data(compared: Callable[..., Any], capsys: pytest.CaptureFixture[str]) -> None:
    code, found = compared(lambda cell, _: "head: crashed" if cell.id == PLANTED else 1.0)
    assert code == 2
    [cell] = [each for each in found["cells"] if each["verdict"] == Verdict.NO_DATA]
    assert (cell["id"], cell["failed"]) == (PLANTED, "head: crashed")
    assert f"NO DATA: {PLANTED}: head: crashed" in capsys.readouterr().err


def test_time_is_kept(compared: Callable[..., Any]) -> None:
    """After --minutes a slowdown is still confirmed, but an unstable cell is not measured again."""
    unstable = {True: 1.0, False: 1.5}
    turns = 0

    def truth(cell: Cell, _: int) -> float:
        nonlocal turns
        turns += 1
        return 1.2 if cell.id == PLANTED else unstable[turns % 2 == 0]

    code, found = compared(truth, "--minutes", "0", "--only", "64x6x28x28 contiguous float32 f")
    assert code == 1
    again = {each["id"]: len(each["passes"]) for each in found["cells"]}
    assert again == {PLANTED: 2, f"{PLANTED}+backward": 1}


@pytest.mark.parametrize(("at", "written"), [(1, False), (6, True)])
def test_ctrl_c_keeps_what_was_measured(
    compared: Callable[..., Any], at: int, written: bool, capsys: pytest.CaptureFixture[str]
) -> None:
    """In the second launch there is no verdict yet. In the second pass the first pass' verdict stands."""
    calls = 0

    def truth(*_: object) -> float:
        nonlocal calls
        calls += 1
        if calls == at:
            signal.raise_signal(signal.SIGINT)
        return 1.2

    code, found = compared(truth, "--only", PLANTED + "+backward")
    assert code == 130
    assert (found is not None) is written
    assert "Interrupted" in capsys.readouterr().err
    if written:
        assert found["interrupted"] is True
        assert found["cells"][0]["verdict"] == "slower"


@pytest.mark.parametrize(
    ("changed", "untracked", "said", "warned"),
    [
        pytest.param(
            {"README.md": "better"},
            {"fused_bn/new.py": ""},
            "the same csrc, fused_bn, setup.py",
            "not track it: fused_bn/new.py",
            id="nothing that changes speed",
        ),
        pytest.param(
            {},
            {},
            "Nothing is compared: there is nothing before the last change of sources",
            "",
            id="no history",
        ),
    ],
)
def test_nothing_to_compare_is_no_error(
    changed: dict[str, str],
    untracked: dict[str, str],
    said: str,
    warned: str,
    repository: Repository,  # noqa: F811
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
    tmp_path: Path,
) -> None:
    monkeypatch.chdir(tmp_path)
    if changed:
        repository.git("update-ref", "refs/remotes/origin/main", "HEAD")
        commit(repository, changed)
    write(repository.root, untracked)
    assert job.main(["--against-main"], repository.root) == 0
    printed = capsys.readouterr()
    assert said in printed.out
    assert warned in printed.err
    assert not (repository.root / "build").exists()


@pytest.mark.parametrize(
    ("files", "base", "message"),
    [({}, "typo", "'typo' is no revision"), ({"csrc/kernel.cpp": "error"}, "HEAD~1", "expected ;")],
)
def test_errors_end_with_2(
    repository: Repository,  # noqa: F811
    files: dict[str, str],
    base: str,
    message: str,
    capsys: pytest.CaptureFixture[str],
    tmp_path: Path,
) -> None:
    if files:
        commit(repository, files)
    assert job.main([base, "--out", str(tmp_path / "out")], repository.root) == 2
    assert message in capsys.readouterr().err
    assert not list((tmp_path / "out").iterdir())


@pytest.mark.parametrize(
    ("argv", "message"),
    [
        ([], "BASE or --against-main is required"),
        (["main", "--against-main"], "BASE or --against-main is required, and not both"),
        (["main", "--launches", "1"], "--launches must be at least 2"),
        (["main", "--only", "no such cell"], "no quick cell has 'no such cell' in its name"),
        (["main", "--rounds", "0"], "must be at least 1"),
        (["main", "--device", "toaster"], "is no device"),
    ],
)
def test_wrong_arguments(
    argv: list[str], message: str, capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    with pytest.raises(SystemExit, match="2"):
        job.arguments([*argv, "--out", str(tmp_path)])
    assert message in capsys.readouterr().err


@pytest.mark.needs_extension
def test_from_processes_to_verdict(
    sabotaged: Path,
    repository: Repository,  # noqa: F811
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """A real cell, in which head takes a millisecond longer."""
    commit(repository, {"csrc/kernel.cpp": "head"})
    checkouts = {"HEAD": sabotaged, "HEAD~1": ROOT}
    monkeypatch.setattr(BuildCache, "built", lambda _, revision: checkouts[revision.name])
    monkeypatch.setattr(job, "chosen", lambda _: [cell(SLOW, "evaluation")])
    argv = ["HEAD~1", "HEAD", "--launches", "2", "--rounds", "2", "--minutes", "0", "--out", str(tmp_path)]
    assert job.main(argv, repository.root) == 1
    [slow] = json.loads((tmp_path / "compare.json").read_text())["cells"]
    assert slow["verdict"] == "slower"
    assert slow["head_to_base"]["low"] > 2


# The record


def test_the_record_counts_alarms(
    compared: Callable[..., Any], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    file, runs = tmp_path / "record.json", {"null": 1.0, "planted": 1.2}
    for name, truth in runs.items():
        compared(lambda *_, truth=truth: truth, "--only", PLANTED + "+backward")
        shutil.copytree(tmp_path / "out", tmp_path / name)
    null, planted = (str(tmp_path / name) for name in runs)
    assert record.main([str(file), "--null", null, "--planted", planted, planted]) == 0
    content = json.loads(file.read_text())
    assert (content["alarms_of_null"], content["alarms_of_planted"]) == ([0, 1], [2, 2])
    assert content["planted"][0]["verdicts"]["slower"] == 1
    assert content["planted"][0]["not_the_same"][0]["passes"] == 2
    assert record.main([str(file), "--null", planted]) == 1
    assert record.main([str(file), "--planted", null]) == 1
    assert "1 of 1 without a slowdown raised an alarm" in capsys.readouterr().out

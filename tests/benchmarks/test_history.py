"""benchmarks.history: a run is stored whole or not at all and can be loaded; damage is reported."""

import fcntl
import json
import math
import os
import resource
import subprocess
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from itertools import pairwise
from pathlib import Path

import pytest

from benchmarks import history
from benchmarks.history import Accuracy, HistoryError, Instructions, Record, Speed
from tests.benchmarks.report_history import (
    CPU_NAME,
    GPU_NAME,
    accuracies,
    environment,
    instructions,
    record,
    steps,
    whole,
)

DATE = "2026-12-01T10:00:00+00:00"
ROOT = Path(__file__).resolve().parent.parent.parent


def small() -> list[Record]:
    """A few records of each kind."""
    return [*steps(), *list(accuracies(0))[:3], *instructions()]


def test_round_trip(tmp_path: Path) -> None:
    records = whole(0)
    path = record(tmp_path / "new", "a1", records, DATE)
    assert path == tmp_path / "new" / "amd-epyc-9b45-64-core-processor.jsonl"
    (run,) = history.load(tmp_path / "new")
    assert (run.commit, run.date, run.device) == ("a1", DATE, CPU_NAME)
    assert run.environment == environment(DATE)
    assert run.records == records
    assert len(run.of(Speed)) == 260 + 4
    assert [*run.of(Speed), *run.of(Accuracy), *run.of(Instructions)] == records


def test_a_line_says_what_it_is(tmp_path: Path) -> None:
    path = record(tmp_path, "a1", small(), DATE)
    first, *rest = map(json.loads, path.read_text().splitlines())
    assert (first["kind"], first["format"], first["commit"]) == ("run", 1, "a1")
    assert {line["run"] for line in rest} == {first["run"]}
    assert [line["kind"] for line in rest] == ["speed"] * 4 + ["accuracy"] * 3 + ["instructions"] * 7


def test_infinite_errors_and_absent_peaks(tmp_path: Path) -> None:
    ulps = {"eager": math.inf, "ours": 0.5}
    row = history.RowSpeed(1e-3, 1.0, 0.5, None)
    records: list[Record] = [
        Accuracy("N(0, 1)", "float32", "output", ulps),
        Speed("f", "c", "d", 1, 1e-3, {"eager": row}),
    ]
    record(tmp_path, "a1", records, DATE)
    assert history.load(tmp_path)[0].records == records


def test_runs_are_sorted_by_date_over_all_devices(tmp_path: Path) -> None:
    for day, device in ((3, CPU_NAME), (1, CPU_NAME), (2, GPU_NAME), (4, GPU_NAME)):
        record(tmp_path, f"c{day}", small(), f"2026-12-{day:02}T10:00:00+00:00", device)
    runs = history.load(tmp_path)
    assert [run.commit for run in runs] == ["c1", "c2", "c3", "c4"]
    assert [run.device for run in runs] == [CPU_NAME, GPU_NAME, CPU_NAME, GPU_NAME]
    assert len(list(tmp_path.iterdir())) == 2


@pytest.mark.parametrize("devices", [(CPU_NAME, CPU_NAME), (CPU_NAME, GPU_NAME)])
def test_two_runs_of_one_second_and_commit_stay_two(devices: tuple[str, str], tmp_path: Path) -> None:
    for device in devices:
        record(tmp_path, "a1", small(), DATE, device)
    runs = history.load(tmp_path)
    assert [run.device for run in runs] == list(devices)
    assert [run.records for run in runs] == [small(), small()]


def test_nothing_recorded(tmp_path: Path) -> None:
    assert history.load(tmp_path) == []
    assert history.load(tmp_path / "missing") == []


# Written whole


APPEND = """
import sys
from pathlib import Path
from benchmarks import history
from benchmarks.history import Instructions
history.current_commit = lambda: sys.argv[2]
records = [Instructions("call " + "x" * 100, number) for number in range(500)]  # 90 KB
for number in range(20):
    history.append(records, {"device": "d", "date": f"{sys.argv[2]}{number:02}"}, Path(sys.argv[1]))
"""


def test_processes_that_append_at_once_do_not_mix(tmp_path: Path) -> None:
    commands = [[sys.executable, "-c", APPEND, str(tmp_path), name] for name in "ab"]
    processes = [subprocess.Popen(command, cwd=ROOT) for command in commands]
    assert [process.wait(timeout=60) for process in processes] == [0, 0]
    runs = history.load(tmp_path)
    assert len(runs) == 40
    assert {len(run.records) for run in runs} == {500}
    lines = [json.loads(line)["run"] for line in (tmp_path / "d.jsonl").read_text().splitlines()]
    changes = sum(one != other for one, other in pairwise(lines))
    assert changes == 39  # each run's lines are contiguous


@contextmanager
def files_of_at_most(limit: int) -> Iterator[None]:
    """Makes the system cut off a write that would make the file larger than `limit` bytes.

    Only during this call, because pytest's own output may be a larger file.
    """
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (limit, hard))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))


def test_a_run_that_does_not_fit_leaves_the_file_as_it_was(tmp_path: Path) -> None:
    path = record(tmp_path, "a1", small(), DATE)
    before = path.read_bytes()
    limit = 10_000
    assert 0 < len(before) < limit
    with files_of_at_most(limit), pytest.raises(OSError, match="none of it was written"):
        record(tmp_path, "a2", whole(0), DATE)
    assert path.read_bytes() == before
    assert [run.commit for run in history.load(tmp_path)] == ["a1"]


def test_a_locked_file_is_waited_for_but_not_for_ever(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """A stopped process must not block all later ones. They name it."""
    path = record(tmp_path, "a1", small(), DATE)
    before = path.read_bytes()
    monkeypatch.setattr(history, "LONGEST_WAIT_SECONDS", 0.3)
    with path.open("rb") as other:
        fcntl.flock(other, fcntl.LOCK_EX)
        with pytest.raises(TimeoutError, match=f"has locked {path}, still after 0.3 seconds") as error:
            record(tmp_path, "a2", small(), DATE)
    assert str(error.value).startswith((f"process {os.getpid()} has", "another process has"))
    assert capsys.readouterr().err.count("waiting for its end") == 1
    assert path.read_bytes() == before
    record(tmp_path, "a2", small(), DATE)
    assert len(history.load(tmp_path)) == 2


@pytest.mark.parametrize("make", [os.mkfifo, os.mkdir])
def test_what_is_no_file_is_refused(make: Callable[[Path], None], tmp_path: Path) -> None:
    """A pipe without a reader or writer would block for ever."""
    make(tmp_path / "amd-epyc-9b45-64-core-processor.jsonl")
    for use in (lambda: record(tmp_path, "a1", small(), DATE), lambda: history.load(tmp_path)):
        with pytest.raises(OSError, match=r"Not a regular file: .*processor\.jsonl"):
            use()


# Damage


def test_torn_last_line(tmp_path: Path) -> None:
    path = record(tmp_path, "a1", small(), DATE)
    count = len(path.read_text().splitlines())
    path.write_bytes(path.read_bytes()[:-9])
    with pytest.raises(HistoryError, match=rf"^amd-epyc.*\.jsonl, line {count} is no JSON, torn perhaps"):
        history.load(tmp_path)


def test_a_torn_line_does_not_spoil_the_next_run(tmp_path: Path) -> None:
    path = record(tmp_path, "a1", small(), DATE)
    path.write_bytes(path.read_bytes()[:-9])
    record(tmp_path, "a2", small(), DATE)
    lines = path.read_text().splitlines()
    del lines[len(small())]
    path.write_text("\n".join(lines))
    first, second = history.load(tmp_path)
    assert (first.records, second.records) == (small()[:-1], small())


BEGIN = {"kind": "run", "format": 1, "run": "r", "commit": "c", "environment": {"date": DATE, "device": "d"}}
COUNT = {"kind": "instructions", "run": "r", "call": "forward", "count": 3}
ULPS = {
    "kind": "accuracy",
    "run": "r",
    "data": "d",
    "dtype": "float32",
    "quantity": "q",
    "ulps": {"ours": 1.0},
}
ROW = {"seconds": 1e-6, "ratio": 2.0, "share_of_floor": 0.5, "peak_bytes": None}


def timed(**fields: object) -> dict[str, object]:
    """A line of a cell, with these fields in the row of ours."""
    cell = {"family": "lenet", "cell": "c", "direction": "forward", "bytes": 2, "floor_seconds": 0.0}
    return {"kind": "speed", "run": "r", **cell, "rows": {"ours": ROW | fields}}


@pytest.mark.parametrize(
    ("wrong", "message"),
    [
        (BEGIN | {"format": 2}, "format 2, this reads 1"),
        (BEGIN | {"environment": {"device": "d"}}, "lacks 'date'"),
        (BEGIN | {"environment": {"date": DATE}}, "lacks 'device'"),
        ({"kind": "run", "format": 1}, "lacks 'run'"),
        ({"call": "forward"}, "lacks 'kind'"),
        ({"kind": "instructions", "call": "forward", "count": 3}, "lacks 'run'"),
        (COUNT | {"run": "other"}, "no line before it begins the run 'other'"),
        (COUNT | {"kind": "colour"}, "kind 'colour' is none of run, speed, accuracy, instructions"),
        (COUNT | {"colour": "red"}, "unexpected keyword argument 'colour'"),
        ({"kind": "instructions", "run": "r", "call": "forward"}, "missing 1 required positional argument"),
        (COUNT | {"kind": "speed", "rows": [1]}, "no record of this format"),
        (COUNT | {"count": "3"}, "count is '3', no int"),
        (COUNT | {"count": -1}, "count is -1, not from 0 to 1e"),
        (COUNT | {"call": None}, "call is None, no str"),
        (COUNT | {"call": "\ud800"}, "surrogates not allowed"),
        (BEGIN | {"commit": 3}, "commit is 3, no str"),
        (ULPS | {"ulps": {"ours": None}}, "ulps is {'ours': None}, no dict"),
        (ULPS | {"ulps": {"ours": 10**400}}, "ulps is {'ours': 1000"),
        (timed(ratio=0.0), "ratio is 0.0, not from 1e-18 to 1e"),
        (timed(ratio=-2), "ratio is -2, not from"),
        (timed(ratio=math.nan), "ratio is nan, not from"),
        (timed(seconds=0), "seconds is 0, not from"),
        (timed(seconds=[1]), r"seconds is \[1\], no float"),
        (timed(peak_bytes="many"), r"peak_bytes is 'many', no int \| None"),
        ([1], "no record of this format"),
        ("run", "no record of this format"),
        (3, "no record of this format"),
    ],
)
def test_a_wrong_line_is_named(wrong: object, message: str, tmp_path: Path) -> None:
    lines = [json.dumps(line) for line in (BEGIN, COUNT, wrong, COUNT)]
    (tmp_path / "d.jsonl").write_text("\n".join(lines))
    with pytest.raises(HistoryError, match=f"^d.jsonl, line 3 .*{message}"):
        history.load(tmp_path)


def test_json_nested_too_deeply_is_named(tmp_path: Path) -> None:
    """Deep nesting exhausts the reader's stack. The user gets one sentence instead of a traceback."""
    (tmp_path / "d.jsonl").write_text(json.dumps(BEGIN) + "\n" + "[" * 100_000 + "]" * 100_000 + "\n")
    with pytest.raises(HistoryError, match=r"^d.jsonl, line 2 is no JSON"):
        history.load(tmp_path)


def test_bytes_that_are_no_text_are_named(tmp_path: Path) -> None:
    (tmp_path / "d.jsonl").write_bytes(json.dumps(BEGIN).encode() + b'\n{"kind": "\xff"}\n')
    with pytest.raises(HistoryError, match=r"^d.jsonl, line 2 is no JSON"):
        history.load(tmp_path)


# Commits


def test_commit_at_hand(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def git(*arguments: str) -> str:
        identity = ("-c", "user.name=n", "-c", "user.email=e")
        command = ["git", "-C", str(tmp_path), *identity, *arguments]
        return subprocess.run(command, check=True, capture_output=True, text=True).stdout.strip()

    monkeypatch.setattr(history, "ROOT", tmp_path)
    monkeypatch.setenv("GIT_CEILING_DIRECTORIES", str(tmp_path.parent))
    assert history.current_commit() == "unknown"
    git("init")
    (tmp_path / "csrc").mkdir()
    for name in ("csrc/a.h", "README.md"):
        (tmp_path / name).write_text("one")
    git("add", ".")
    git("commit", "-m", "One")
    head = git("rev-parse", "HEAD")[:10]
    (tmp_path / "README.md").write_text("two")  # no source file
    assert history.current_commit() == head
    (tmp_path / "csrc/a.h").write_text("two")
    assert history.current_commit() == f"{head}+"

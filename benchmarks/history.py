"""Recorded measurements: one file of JSON lines per device in benchmarks/history/. Files only grow.

A run starts with a line of kind "run", which has the environment and the commit. Its other lines have the
kinds "speed", "accuracy" and "instructions" and name the run.
"""

import errno
import json
import os
import re
import reprlib
import subprocess
from collections.abc import Iterable, Iterator
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any, TypeVar, get_args, get_origin

from benchmarks import files

FORMAT = 1
"""Increase it when a field changes its meaning or its name."""

DIRECTORY = Path(__file__).with_suffix("")
ROOT = Path(__file__).resolve().parent.parent
LARGEST_FILE = 2**28
LONGEST_WAIT_SECONDS = 60.0

LEAST = {"seconds": 1e-18, "ratio": 1e-18}
MOST = 1e18
"""Bounds of numbers that charts can show. Other numbers are at least 0; errors in ulps are unbounded."""


class HistoryError(Exception):
    """A line is no record of this format. The text says where."""


@dataclass(frozen=True)
class RowSpeed:
    """One row of one cell: medians over rounds. The ratio is eager's time divided by the row's."""

    seconds: float
    ratio: float
    share_of_floor: float
    peak_bytes: int | None


@dataclass(frozen=True)
class Speed:
    """One cell. `floor_seconds` is the time of a copy of `bytes`, the traffic that no kernel can avoid.

    Rows: "copy", "eager", "compile", "ours", and installed peers. Whole training steps (family "steps") have
    no floor: 0. `graph`: timed by replays of CUDA graphs over cold buffers. Other cells on CUDA include the
    host's time.
    """

    family: str
    cell: str
    direction: str
    bytes: int
    floor_seconds: float
    rows: dict[str, RowSpeed]
    graph: bool = False


@dataclass(frozen=True)
class Accuracy:
    """Largest errors of each row ("eager", "compile", "ours") against float64, in ulps of `quantity`.

    Means over draws of parameters and gradients.
    """

    data: str
    dtype: str
    quantity: str
    ulps: dict[str, float]


@dataclass(frozen=True)
class Instructions:
    """The host's instructions for one tiny call."""

    call: str
    count: int


Record = Speed | Accuracy | Instructions
R = TypeVar("R", Speed, Accuracy, Instructions)
T = TypeVar("T")
KINDS: dict[str, type[Record]] = {"speed": Speed, "accuracy": Accuracy, "instructions": Instructions}


@dataclass
class Run:
    """One recorded run.

    `environment` is that of benchmarks.environment. `commit` ends in + if the sources differed from it.
    """

    id: str
    commit: str
    environment: dict[str, Any]
    records: list[Record] = field(default_factory=list)

    @property
    def date(self) -> str:
        return str(self.environment["date"])

    @property
    def device(self) -> str:
        return str(self.environment["device"])

    def of(self, kind: type[R]) -> list[R]:
        """The run's records of one kind."""
        return [record for record in self.records if isinstance(record, kind)]


def append(records: Iterable[Record], environment: dict[str, Any], directory: Path = DIRECTORY) -> Path:
    """Appends a run to its device's file, whole or not at all, and returns the file. Raises OSError."""
    commit = current_commit()
    id = f"{environment['date']} {commit}"
    names = {kind: name for name, kind in KINDS.items()}
    lines: list[dict[str, Any]] = [
        {"kind": "run", "format": FORMAT, "run": id, "commit": commit, "environment": environment}
    ]
    lines += [{"kind": names[type(record)], "run": id, **asdict(record)} for record in records]
    directory.mkdir(parents=True, exist_ok=True)
    path = directory / f"{slug(environment['device'])}.jsonl"
    _write("".join(json.dumps(line) + "\n" for line in lines).encode(), path)
    return path


def slug(device: str) -> str:
    """The device's name in the form of a file name."""
    return re.sub("[^a-z0-9]+", "-", device.lower()).strip("-")


def _write(content: bytes, path: Path) -> None:
    files.refuse_special(path)
    with path.open("a+b", buffering=0) as file:
        files.lock(file, LONGEST_WAIT_SECONDS)  # so that truncating cuts no other process' lines
        end = file.seek(0, os.SEEK_END)
        if end and os.pread(file.fileno(), 1, end - 1) != b"\n":
            content = b"\n" + content  # an incomplete last line must not spoil ours
        if file.write(content) < len(content):
            file.truncate(end)
            raise OSError(
                errno.ENOSPC, "no room for the whole run, so that none of it was written", str(path)
            )


def load(directory: Path = DIRECTORY) -> list[Run]:
    """All runs, the oldest first. Raises HistoryError, and OSError if a file cannot be read."""
    runs = [run for path in sorted(directory.glob("*.jsonl")) for run in _runs(path)]
    return sorted(runs, key=lambda run: run.date)


def _runs(path: Path) -> list[Run]:
    """The runs of one file. If two runs have one id, a record belongs to the later one."""
    runs: list[Run] = []
    by_id: dict[str, Run] = {}
    for place, line in _lines(path):
        try:
            content = json.loads(line)
            json.dumps(content, ensure_ascii=False).encode()  # half a surrogate pair is no text
        except (ValueError, RecursionError) as error:
            raise HistoryError(f"{place} is no JSON, torn perhaps: {error}") from error
        try:
            if content["kind"] == "run":
                run = by_id[content["run"]] = _begin(content)
                runs.append(run)
            else:
                _take(content, by_id)
        except KeyError as error:
            raise HistoryError(f"{place} lacks {error}") from error
        except (TypeError, ValueError, AttributeError) as error:
            raise HistoryError(f"{place} is no record of this format: {error}") from error
    return runs


def _lines(path: Path) -> Iterator[tuple[str, bytes]]:
    for number, line in enumerate(files.read_at_most(path, LARGEST_FILE).splitlines(), start=1):
        if line.strip():
            yield f"{path.name}, line {number}", line


def _begin(line: dict[str, Any]) -> Run:
    if line["format"] != FORMAT:
        raise ValueError(f"format {line['format']}, this reads {FORMAT}")
    run = _checked(Run(line["run"], line["commit"], line["environment"]))
    if not (run.date and run.device):  # KeyError if a field is missing
        raise ValueError("a run needs a date and a device")
    return run


def _take(line: dict[str, Any], runs: dict[str, Run]) -> None:
    kind, id = line.pop("kind"), line.pop("run")
    if kind not in KINDS:
        raise ValueError(f"kind {kind!r} is none of run, {', '.join(KINDS)}")
    if id not in runs:
        raise ValueError(f"no line before it begins the run {id!r}")
    if kind == "speed":
        line["rows"] = {name: _checked(RowSpeed(**row)) for name, row in line["rows"].items()}
    runs[id].records.append(_checked(KINDS[kind](**line)))


def _checked(made: T) -> T:
    """Raises TypeError or ValueError if a field does not fit its type and bounds."""
    for name, hint in type(made).__annotations__.items():
        value = getattr(made, name)
        if not _fits(value, hint):
            raise TypeError(f"{name} is {reprlib.repr(value)}, no {getattr(hint, '__name__', hint)}")
        if isinstance(value, int | float) and not LEAST.get(name, 0) <= value <= MOST:
            raise ValueError(f"{name} is {value}, not from {LEAST.get(name, 0)} to {MOST}")
    return made


def _fits(value: Any, hint: Any) -> bool:
    if get_origin(hint) in (dict, list):
        inner = list(value.values()) if isinstance(value, dict) else value
        return isinstance(value, get_origin(hint)) and all(_fits(each, get_args(hint)[-1]) for each in inner)
    if isinstance(value, int) and abs(value) > MOST:
        return False  # some integers are too large for a float
    return hint is Any or isinstance(value, int | float if hint is float else hint)


def current_commit() -> str:
    """The short id of HEAD, with + appended if the sources differ from it."""

    def git(*arguments: str) -> str:
        command = ["git", "-C", str(ROOT), *arguments]
        return subprocess.run(command, capture_output=True, text=True, check=True).stdout.strip()

    try:
        changed = git("status", "--porcelain", "--untracked-files=no", "--", "csrc", "fused_bn", "setup.py")
        return git("rev-parse", "--short=10", "HEAD") + ("+" if changed else "")
    except (OSError, subprocess.CalledProcessError):
        return "unknown"

"""Starts and controls three worker processes. They take turns, so that only one computes at a time."""

import json
import os
import random
import select
import subprocess
import sys
import tempfile
from collections.abc import Callable, Mapping, Sequence
from contextlib import ExitStack, suppress
from dataclasses import dataclass
from pathlib import Path
from types import TracebackType
from typing import Any

from benchmarks.compare.verdicts import Launch
from benchmarks.grid.cells import Cell

ROOT = Path(__file__).resolve().parents[2]

PATIENCE = 120.0
"""Seconds without an answer after which a worker counts as hanging. A quick cell takes 0.01 to 0.5."""

READING_SECONDS = 0.002
READINGS = 4
"""Readings of a turn, after one for warming up. The fastest counts. The scheduler's time slice is longer than
a reading, so at least one reading is likely to be undisturbed."""

ROLES = ("base", "twin", "head")

# These make glibc keep freed memory. Without them, glibc may return a large tensor's memory to the system: a
# call took 31 us in some processes and, with page faults, 430 us in others.
KEEPS_MEMORY = {
    "MALLOC_MMAP_THRESHOLD_": str(32 << 20),  # the largest allowed value
    "MALLOC_TRIM_THRESHOLD_": str(1 << 30),
    "MALLOC_TOP_PAD_": str(64 << 20),
}


class WorkerError(Exception):
    """A worker did not start, ended or hangs."""


class CellError(Exception):
    """A worker cannot run a cell. The text is its reason."""


@dataclass(frozen=True)
class Conditions:
    """How cells are timed."""

    device: str
    threads: int
    rounds: int
    order: random.Random


class Worker:
    """One process, which runs until the `with` block ends."""

    def __init__(self, checkout: Path, conditions: Conditions) -> None:
        self._log = tempfile.TemporaryFile("w+")  # noqa: SIM115 (this class is a context manager)
        how = [conditions.device, str(conditions.threads)]
        before = os.environ.get("PYTHONPATH")
        self._process = subprocess.Popen(
            [sys.executable, "-m", "benchmarks.compare.worker", str(checkout), *how],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=self._log,
            text=True,
            env={
                **os.environ,
                **KEEPS_MEMORY,
                "PYTHONPATH": os.pathsep.join([str(ROOT), *filter(None, [before])]),
            },
            cwd=ROOT,
            start_new_session=True,  # Ctrl-C must reach only the parent, which then closes the pipe
        )

    def ask(self, **order: Any) -> dict[str, Any]:
        """Sends an order and returns the answer. Raises CellError and WorkerError."""
        assert self._process.stdin is not None
        try:
            print(json.dumps(order), file=self._process.stdin, flush=True)
        except BrokenPipeError:
            raise WorkerError(self._end("ended")) from None
        return self.answer()

    def answer(self) -> dict[str, Any]:
        """Reads the next line: one comes at the start, and one for each order."""
        assert self._process.stdout is not None
        if not select.select([self._process.stdout], [], [], PATIENCE)[0]:
            raise WorkerError(self._end(f"does not answer for {PATIENCE:.0f} s"))
        line = self._process.stdout.readline()
        if not line.endswith("\n"):
            raise WorkerError(self._end("ended"))
        answer: dict[str, Any] = json.loads(line)
        if "error" in answer:
            raise CellError(answer["error"])
        return answer

    def _end(self, what: str) -> str:
        self._process.kill()
        code = self._process.wait()
        self._log.seek(0)
        last = "\n".join(self._log.read().splitlines()[-10:])
        return f"a process {what} (exit code {code})" + (f":\n{last}" if last else "")

    def __enter__(self) -> "Worker":
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        self._process.kill()  # it holds nothing to clean up
        self._process.wait()
        for pipe in (self._process.stdin, self._process.stdout):
            assert pipe is not None
            with suppress(BrokenPipeError):  # it did not read its last order
                pipe.close()
        self._log.close()


def launch(
    cells: Sequence[Cell], checkouts: Mapping[str, Path], conditions: Conditions, done: Callable[[], object]
) -> dict[str, Launch | str]:
    """Runs all cells once in new processes. Returns readings, or the reason for none, by the cell's id.

    `checkouts` has one directory for each of ROLES. After a crash new processes continue with the next cell.
    Raises WorkerError if a process does not start.
    """
    found: dict[str, Launch | str] = {}
    waiting = shuffled(cells, conditions.order)
    while waiting:
        with ExitStack() as stack:
            workers = {role: stack.enter_context(Worker(checkouts[role], conditions)) for role in ROLES}
            for role, worker in workers.items():
                _wait_until_ready(role, worker)
            crashed = False
            while waiting and not crashed:
                cell = waiting.pop(0)
                try:
                    found[cell.id] = _measure(cell, workers, conditions)
                except CellError as error:
                    found[cell.id] = str(error)
                except WorkerError as error:
                    found[cell.id], crashed = str(error), True
                done()
    return found


def shuffled(cells: Sequence[Cell], order: random.Random) -> list[Cell]:
    """Cases in random order. A case's directions stay together, so that its tensors are made once."""
    cases = list(dict.fromkeys(cell.case for cell in cells))
    order.shuffle(cases)
    return sorted(cells, key=lambda cell: cases.index(cell.case))


def _wait_until_ready(role: str, worker: Worker) -> None:
    try:
        worker.answer()
    except (CellError, WorkerError) as error:
        raise WorkerError(f"{role}: {error}") from None


def _measure(cell: Cell, workers: Mapping[str, Worker], conditions: Conditions) -> Launch:
    """Each worker has one turn per round, in random order. The fastest reading of a turn counts."""
    case = cell.case
    what = {"shape": case.shape, "layout": case.layout, "dtype": case.dtype, "direction": cell.direction}
    seconds: dict[str, list[float]] = {role: [] for role in ROLES}
    role = ""
    try:
        for role in ROLES:
            workers[role].ask(do="prepare", **what, seconds=READING_SECONDS)
        for _ in range(conditions.rounds):
            for role in conditions.order.sample(ROLES, len(ROLES)):
                seconds[role].append(min(workers[role].ask(do="read", readings=READINGS)["seconds"]))
    except (CellError, WorkerError) as error:
        raise type(error)(f"{role}: {error}") from None
    return Launch(**seconds)

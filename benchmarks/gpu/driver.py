"""Runs the stages one after the other, each in a process of its own: a crash or a hang ends that stage only.

Knows no torch, which a broken build or driver may not even import.
"""

import argparse
import contextlib
import json
import os
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from benchmarks.gpu.stages import NAMES, REPORT_SECONDS, STAGES, Outcome, Stage, limit, state_of

ROOT = Path(__file__).resolve().parents[2]
FORMAT = 1
"""Goes up when a field of the JSON file changes its meaning or its name."""
MERCY_SECONDS = 3.0
"""Between asking a stage to end and ending it."""

Command = Callable[[Stage, Path, float], list[str]]
"""What runs a stage, given the file for its readings and its seconds."""


def arguments(argv: Sequence[str] | None) -> argparse.Namespace:
    """The parsed command line; exits with a message and status 2 where it is wrong."""
    parser = argparse.ArgumentParser(
        prog="python -m benchmarks.gpu",
        description="Builds, tests and measures fused_bn on this machine's GPU, offline, and writes "
        "results.json, table.txt, log.txt and plots. Exit code 1 where a stage failed.",
        epilog="Stages: " + "; ".join(f"{stage.name}: {stage.description}" for stage in STAGES) + ".",
    )
    parser.add_argument("stages", nargs="*", metavar="STAGE", help=f"of {', '.join(NAMES)}; all without")
    parser.add_argument("--out", type=Path, help="directory for what is written; made where it is missing")
    parser.add_argument("--minutes", type=float, default=8.0, help="for everything (default: 8)")
    parser.add_argument(
        "--smoke", action="store_true", help="tiny sizes, also without a GPU: proves that it runs"
    )
    parser.add_argument("--list", action="store_true", help="lists the stages")
    args = parser.parse_args(argv)
    unknown = [name for name in args.stages if name not in NAMES]
    if unknown:
        parser.error(f"no stage is called {unknown[0]!r}; there are {', '.join(NAMES)}")
    if args.minutes <= 0:
        parser.error(f"--minutes must be above 0, but got {args.minutes}")
    if args.out is None and not args.list:
        parser.error("--out is required: the directory for results.json, table.txt, log.txt and plots")
    return args


def main(argv: Sequence[str] | None = None) -> int:
    """Runs the stages asked for and reports; 0, 1 where one failed, 130 when interrupted."""
    args = arguments(argv)
    if args.list:
        for stage in STAGES:
            print(f"{stage.name:<9} {stage.description}")
        return 0
    # Asked to end, end the stage that runs too: it has a process group of its own.
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(128 + signal.SIGTERM))
    chosen = [stage for stage in STAGES if not args.stages or stage.name in args.stages]
    try:
        args.out.mkdir(parents=True, exist_ok=True)
        run = Run(args.out, 60 * args.minutes, args.smoke)
        run.all(chosen)
    except KeyboardInterrupt:
        return 130
    return int(run.failed)


@dataclass(frozen=True)
class Ended:
    """How a process ended; the exit code is None where it was stopped at its limit."""

    code: int | None
    seconds: float


class Run:
    """One call of the command: its directory, its deadline, and what came of the stages so far."""

    def __init__(self, out: Path, seconds: float, smoke: bool = False) -> None:
        self.out = out
        self.smoke = smoke
        self.log = out / "log.txt"
        self.log.write_text("")
        self.outcomes: list[Outcome] = []
        self.readings: dict[str, Any] = {}
        self.report_failed = False
        self._start = time.monotonic()
        self._deadline = self._start + seconds

    @property
    def failed(self) -> bool:
        return self.report_failed or any(outcome.bad for outcome in self.outcomes)

    def all(self, chosen: Sequence[Stage], command: "Command | None" = None) -> None:
        """Every stage, then the report."""
        for number, stage in enumerate(chosen):
            left = self._deadline - time.monotonic() - REPORT_SECONDS
            self.stage(stage, limit(stage, chosen[number + 1 :], left), command or self._command)
        self.report()
        print(f"{time.monotonic() - self._start:.0f} s in all; everything is in {self.out}", flush=True)

    def stage(self, stage: Stage, seconds: float, command: Command) -> None:
        """Runs one stage, prints its line, and keeps its readings, whatever becomes of it."""
        if seconds < 1:
            self._keep(Outcome(stage.name, "not run", 0, seconds))
            return
        print(f"{stage.name:<9} ... (at most {seconds:.0f} s)", flush=True)
        with tempfile.TemporaryDirectory() as directory:
            file = Path(directory) / "readings.json"
            before = self.log.stat().st_size
            ended = self._process(stage.name, command(stage, file, seconds), seconds)
            with contextlib.suppress(OSError, ValueError):  # a stage that ended early has none
                self.readings[stage.name] = json.loads(file.read_text())
        outcome = Outcome(stage.name, state_of(ended.code), ended.seconds, seconds)
        self._keep(outcome)
        if outcome.state != "ok":
            self._print_end_of_log(before)

    def report(self) -> None:
        """Writes and prints the table, and writes the plots."""
        command = [sys.executable, "-u", "-m", "benchmarks.gpu.report", str(self.out)]
        before = self.log.stat().st_size
        self.report_failed = self._process("report", command, REPORT_SECONDS).code != 0
        table = self.out / "table.txt"
        print(table.read_text() if table.exists() else "", flush=True)
        if self.report_failed:
            print("The report failed:", flush=True)
            self._print_end_of_log(before)

    def _command(self, stage: Stage, file: Path, seconds: float) -> list[str]:
        module = [sys.executable, "-u", "-m", f"benchmarks.gpu.{stage.name}"]
        return [*module, "--readings", str(file), "--seconds", str(seconds), *["--smoke"] * self.smoke]

    def _process(self, name: str, command: list[str], seconds: float) -> Ended:
        """Runs `command` in a process group of its own, which never outlives its limit or this call."""
        start = time.monotonic()
        with self.log.open("a") as log:
            log.write(f"\n===== {name}: {' '.join(command)}\n")
            log.flush()
            process = subprocess.Popen(
                command,
                cwd=ROOT,
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=subprocess.STDOUT,
                start_new_session=True,
            )
            try:
                code: int | None = process.wait(seconds)
            except subprocess.TimeoutExpired:
                code = None
            finally:
                _end_group(process)
            taken = time.monotonic() - start
            log.write(f"===== {name}: {state_of(code)} after {taken:.1f} s, exit code {code}\n")
        return Ended(code, taken)

    def _keep(self, outcome: Outcome) -> None:
        """Prints the line, and writes what is known so far, for whoever ends this process."""
        self.outcomes.append(outcome)
        print(outcome, flush=True)
        content = {
            "format": FORMAT,
            "smoke": self.smoke,
            "stages": [asdict(each) for each in self.outcomes],
            "readings": self.readings,
        }
        (self.out / "results.json").write_text(json.dumps(content, indent=1) + "\n")

    def _print_end_of_log(self, before: int, lines: int = 25) -> None:
        with self.log.open("rb") as log:
            log.seek(before)
            text = log.read().decode(errors="replace")
        print(*(f"    {line[:200]}" for line in text.splitlines()[-lines:]), sep="\n", flush=True)


def _end_group(process: "subprocess.Popen[bytes]") -> None:
    """Ends what a stage started and left behind, too."""
    for number in (signal.SIGTERM, signal.SIGKILL):
        try:
            os.killpg(process.pid, number)
        except ProcessLookupError:  # the whole group has ended
            break
        with contextlib.suppress(subprocess.TimeoutExpired):
            process.wait(MERCY_SECONDS)
    process.wait()

"""Runs the parts of a call, each in a process of its own: a crash or a hang costs the case that it met.

Every result is a line of results.jsonl as soon as it is there. At the end all lines are packed into
results.json, and table.txt has what is worth reading. Knows no torch, which a broken build or driver may
not even import.
"""

import argparse
import contextlib
import os
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Generator, Sequence
from pathlib import Path
from typing import IO, TypeVar

from benchmarks.gpu import report
from benchmarks.gpu.parts import (
    BUILD,
    CALLS,
    EXIT_FOUND,
    EXIT_SKIPPED,
    PARTS,
    Part,
    Step,
    append,
    lines_of,
)

ROOT = Path(__file__).resolve().parents[2]
POLL_SECONDS = 0.1
MERCY_SECONDS = 3.0
"""Between asking a process to end and ending it."""
WITHOUT_CACHE = {"PYTORCH_NO_CUDA_MEMORY_CACHING": "1", "CUDA_MODULE_LOADING": "LAZY"}
"""For sanitizers: tensors that torch keeps for later use would hide accesses past their end."""
ONE_THREAD = {"OMP_NUM_THREADS": "1"}
"""For tiny sizes, on a machine that may be busy: threads would wait for each other."""
ONLY_OURS = ("racecheck", "synccheck")
"""Tools that look at our kernels alone; the others would miss what torch's kernels write and free."""
WELL = ("ok", "skipped")

T = TypeVar("T")
Steps = Generator[None, None, T]
"""Work in steps, a poll each, so that several go on side by side; in the end it returns a T."""
ENDED = object()


def arguments(argv: Sequence[str] | None) -> argparse.Namespace:
    """The parsed command line; exits with a message and status 2 where it is wrong."""
    parser = argparse.ArgumentParser(
        prog="python -m benchmarks.gpu",
        description="Tests and measures fused_bn on this machine's GPU, offline, and writes results.jsonl as "
        "it goes; at the end results.json, table.txt and log.txt. Exit code 1 where a part failed.",
        epilog="\n".join(f"{part.name:<12}{part.description}" for part in PARTS.values()),
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument(
        "calls",
        nargs="*",
        metavar="CALL",
        help=f"of {', '.join(CALLS)}, or one of the parts below; without, all of them",
    )
    parser.add_argument(
        "--out", type=Path, required=True, help="directory for what is written; added to what is there"
    )
    parser.add_argument("--minutes", type=float, default=2.0, help="for each call (default: 2), builds aside")
    parser.add_argument("--build", action="store_true", help="compiles the extension in any case")
    parser.add_argument("--smoke", action="store_true", help="tiny sizes, also without a GPU: it all runs")
    parser.add_argument("--report", action="store_true", help="only packs the results.jsonl of --out")
    args = parser.parse_args(argv)
    unknown = [name for name in args.calls if name not in CALLS and name not in PARTS]
    if unknown:
        parser.error(f"no call or part is called {unknown[0]!r}; there are {', '.join([*CALLS, *PARTS])}")
    return args


def main(argv: Sequence[str] | None = None) -> int:
    """Runs the calls asked for and reports; 0, 1 where a part failed, 130 when interrupted."""
    args = arguments(argv)
    # Asked to end, end what runs too: it has process groups of its own.
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(128 + signal.SIGTERM))
    args.out.mkdir(parents=True, exist_ok=True)
    run = Run(args.out, args.smoke, args.build)
    try:
        if not args.report:
            run.calls(args.calls or list(CALLS), 60 * args.minutes)
    except KeyboardInterrupt:
        return 130
    finally:
        print(report.write(args.out), flush=True)
    return int(run.failed)


class Run:
    """One command: where it writes, and whether a part failed so far."""

    def __init__(self, out: Path, smoke: bool = False, build: bool = False) -> None:
        self.file = out.resolve() / "results.jsonl"
        self.file.touch()
        self.log = out / "log.txt"
        self.smoke, self.build = smoke, build
        self.failed = False

    def calls(self, names: Sequence[str], seconds: float) -> None:
        """The build, then the calls; a part on its own is a call of this part."""
        self.step(((BUILD,),), BUILD.seconds)
        for name in names:
            deadline = time.monotonic() + seconds
            for step in CALLS[name] if name in CALLS else (((PARTS[name],),),):
                self.step(step, deadline - time.monotonic())

    def step(self, step: Step, seconds: float) -> None:
        """All lanes side by side, until the last one has ended."""
        deadline = time.monotonic() + seconds
        lanes = [self._lane(parts, deadline) for parts in step]
        running = lanes
        try:
            while running := [lane for lane in running if next(lane, ENDED) is not ENDED]:
                time.sleep(POLL_SECONDS)
        finally:
            for lane in lanes:
                lane.close()

    def _lane(self, parts: Sequence[Part], deadline: float) -> Steps[None]:
        for part in parts:
            yield from self._part(part, min(deadline, time.monotonic() + part.seconds))

    def _part(self, part: Part, deadline: float) -> Steps[None]:
        """Runs one part and tells what came of it; its output goes to log.txt."""
        start = time.monotonic()
        if deadline - start < 1:
            self._tell(part, "not run", 0)
            return
        since = self.file.stat().st_size
        append(self.file, part.name, started=True, smoke=self.smoke)
        with tempfile.TemporaryFile() as log:
            try:
                state = yield from self._attempts(part, log, since, deadline)
            finally:
                log.seek(0)
                text = log.read().decode(errors="replace")
                with self.log.open("a") as all_logs:
                    all_logs.write(f"\n===== {part.name}\n{text}")
        self._tell(part, state, time.monotonic() - start)
        if state not in WELL:
            print(*(f"    {line[:200]}" for line in text.splitlines()[-20:]), sep="\n", flush=True)

    def _tell(self, part: Part, state: str, seconds: float) -> None:
        self.failed |= state not in WELL
        append(self.file, part.name, state=state, seconds=round(seconds, 1))
        print(f"{part.name:<10} {state:<9} {seconds:6.1f} s", flush=True)

    def _attempts(self, part: Part, log: IO[bytes], since: int, deadline: float) -> Steps[str]:
        """The state in the end. One that crashed or hung is run again, as long as each run begins a case."""
        begun = 0
        while True:
            state = yield from self._process(part, log, since, deadline)
            lines = lines_of(self.file, part.name, since)
            cases = [line["begun"] for line in lines if "begun" in line]
            if state in ("crashed", "hung"):
                append(self.file, part.name, failed=f"{state} in {cases[-1] if cases else 'no case'}")
                if len(cases) > begun and time.monotonic() + 1 < deadline:
                    begun = len(cases)
                    continue
            return "failed" if state == "ok" and any("failed" in line for line in lines) else state

    def _process(self, part: Part, log: IO[bytes], since: int, deadline: float) -> Steps[str]:
        """Runs a process in a group of its own, which never outlives its limits or this command."""
        command = self.command(part, since, deadline - time.monotonic())
        if command is None:
            return "skipped"
        process = subprocess.Popen(
            command,
            cwd=ROOT,
            env=os.environ | (WITHOUT_CACHE if part.sanitizer else {}) | (ONE_THREAD if self.smoke else {}),
            stdin=subprocess.DEVNULL,
            stdout=log,
            stderr=subprocess.STDOUT,
            preexec_fn=os.setpgrp,  # not a new session: who ends this one ends all of it
        )
        known, heard = 0, time.monotonic()
        try:
            while process.poll() is None:
                yield
                now, count = time.monotonic(), len(lines_of(self.file, part.name, since))
                if count > known:
                    known, heard = count, now
                if now > deadline:
                    return "timed out"
                if now > heard + part.patience:
                    return "hung"
        finally:
            _end_group(process)
        return state_of(process.returncode)

    def command(self, part: Part, since: int, seconds: float) -> list[str] | None:
        """What runs a part; None where this machine lacks the sanitizer."""
        module = [sys.executable, "-u", "-m", f"benchmarks.gpu.{part.module or part.name}"]
        options = ["--part", part.name, "--file", str(self.file), "--since", str(since)]
        options += ["--seconds", f"{seconds:.1f}", *["--smoke"] * self.smoke]
        options += ["--build"] * (self.build and part is BUILD)
        if not part.sanitizer:
            return [*module, *options]
        sanitizer = shutil.which("compute-sanitizer")
        if sanitizer is None:
            return None
        tool = sanitized(sanitizer, part.name, _output(sanitizer, "--help"))
        return [*tool, *module, *options]


def sanitized(sanitizer: str, tool: str, help_text: str) -> list[str]:
    """What stands before a command for a tool to look at it; options differ between versions."""
    options = [f"--tool={tool}", f"--error-exitcode={EXIT_FOUND}", "--print-limit=20"]
    if tool in ONLY_OURS:
        named = next((option for option in ("--kernel-name", "--filter") if option in help_text), None)
        options += [named, "kns=fused_bn"] if named else []
    return [sanitizer, *options]


def state_of(exit_code: int) -> str:
    """In a word; what is none of ours is a crash."""
    return {0: "ok", 1: "failed", EXIT_FOUND: "found", EXIT_SKIPPED: "skipped"}.get(exit_code, "crashed")


def _output(*command: str) -> str:
    return subprocess.run(command, capture_output=True, text=True, check=False).stdout


def _end_group(process: "subprocess.Popen[bytes]") -> None:
    """Ends what a part started and left behind, too."""
    for number in (signal.SIGTERM, signal.SIGKILL):
        try:
            os.killpg(process.pid, number)
        except ProcessLookupError:  # the whole group has ended
            break
        with contextlib.suppress(subprocess.TimeoutExpired):
            process.wait(MERCY_SECONDS)
    process.wait()

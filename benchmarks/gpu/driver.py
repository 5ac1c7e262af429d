"""Runs the parts of a call, each in its own process: a crash or a hang costs only the case that caused it.

Every result becomes a line of results.jsonl at once. At the end all lines are packed into results.json, and
the main figures into table.txt. This file does not import torch, because a broken build or driver may prevent
that.
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
GRACE_SECONDS = 3.0
"""Seconds between asking a process to end and killing it."""
WITHOUT_CACHE = {"PYTORCH_NO_CUDA_MEMORY_CACHING": "1", "CUDA_MODULE_LOADING": "LAZY"}
"""For sanitizers: memory that torch caches for reuse would hide accesses past a tensor's end."""
ONE_THREAD = {"OMP_NUM_THREADS": "1"}
"""For tiny sizes on a busy machine, where threads would wait for each other."""
ONLY_OURS = ("racecheck", "synccheck")
"""These tools check only our kernels. The others must also see what torch's kernels write and free."""
WELL = ("ok", "skipped")

T = TypeVar("T")
Steps = Generator[None, None, T]
"""Work in steps of one poll each, so that several run side by side. Returns a T at the end."""
ENDED = object()


def arguments(argv: Sequence[str] | None) -> argparse.Namespace:
    """Parses the command line. Exits with a message and status 2 if it is wrong."""
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
        help=f"any of {', '.join(CALLS)}, or of the parts below (default: {', '.join(CALLS)})",
    )
    parser.add_argument(
        "--out", type=Path, required=True, help="output directory; results.jsonl there is continued"
    )
    parser.add_argument("--minutes", type=float, default=2.0, help="per call, builds excluded (default: 2)")
    parser.add_argument("--build", action="store_true", help="compiles the extension in any case")
    parser.add_argument("--smoke", action="store_true", help="tiny sizes, to see that all runs; needs no GPU")
    parser.add_argument("--report", action="store_true", help="only packs the results.jsonl of --out")
    args = parser.parse_args(argv)
    unknown = [name for name in args.calls if name not in CALLS and name not in PARTS]
    if unknown:
        parser.error(f"no call or part is called {unknown[0]!r}; there are {', '.join([*CALLS, *PARTS])}")
    return args


def main(argv: Sequence[str] | None = None) -> int:
    """Runs the requested calls and reports. Returns 0, 1 if a part failed, or 130 when interrupted."""
    args = arguments(argv)
    # SIGTERM must also end the running parts, which have process groups of their own.
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
    """One run of the command: its output directory, and whether a part has failed."""

    def __init__(self, out: Path, smoke: bool = False, build: bool = False) -> None:
        self.file = out.resolve() / "results.jsonl"
        self.file.touch()
        self.log = out / "log.txt"
        self.smoke, self.build = smoke, build
        self.failed = False

    def calls(self, names: Sequence[str], seconds: float) -> None:
        """The build, then the calls. A part given by name runs as a call of this part alone."""
        self.step(((BUILD,),), BUILD.seconds)
        for name in names:
            deadline = time.monotonic() + seconds
            for step in CALLS[name] if name in CALLS else (((PARTS[name],),),):
                self.step(step, deadline - time.monotonic())

    def step(self, step: Step, seconds: float) -> None:
        """Runs all lanes side by side until the last one has ended."""
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
        """Runs one part and reports its state. Its output goes to log.txt."""
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
        """The final state. A part that crashed or hung runs again, as long as each run begins a new case."""
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
        """Runs a process in a group of its own. Ends the group at its limits, or when this command ends."""
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
            preexec_fn=os.setpgrp,  # not a new session: ending this command's session ends all of it
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
        """The command of a part. None if this machine lacks the sanitizer."""
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
    """The command of a tool, which precedes the part's. Its options differ between versions."""
    options = [f"--tool={tool}", f"--error-exitcode={EXIT_FOUND}", "--print-limit=20"]
    if tool in ONLY_OURS:
        named = next((option for option in ("--kernel-name", "--filter") if option in help_text), None)
        options += [named, "kns=fused_bn"] if named else []
    return [sanitizer, *options]


def state_of(exit_code: int) -> str:
    """The state's name. An unknown exit code means a crash."""
    return {0: "ok", 1: "failed", EXIT_FOUND: "found", EXIT_SKIPPED: "skipped"}.get(exit_code, "crashed")


def _output(*command: str) -> str:
    return subprocess.run(command, capture_output=True, text=True, check=False).stdout


def _end_group(process: "subprocess.Popen[bytes]") -> None:
    """Also ends processes that a part left behind."""
    for number in (signal.SIGTERM, signal.SIGKILL):
        try:
            os.killpg(process.pid, number)
        except ProcessLookupError:  # the whole group has already ended
            break
        with contextlib.suppress(subprocess.TimeoutExpired):
            process.wait(GRACE_SECONDS)
    process.wait()

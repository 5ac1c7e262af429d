"""Makes attempts, in a process of their own that may crash, and prints "N tried, M faults"."""

import argparse
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable

from tests.fuzz import operators, values

ATTEMPTS: dict[str, Callable[[int], str | None]] = {"operators": operators.attempt, "values": values.attempt}


def work(fuzzer: str, first: int, tries: int | None, seconds: float) -> None:
    """Prints each seed before its attempt, and what is wrong behind it."""
    end, seed = time.monotonic() + seconds, first
    while time.monotonic() < end and (tries is None or seed < first + tries):
        print(seed, flush=True)
        fault = ATTEMPTS[fuzzer](seed)
        if fault is not None:
            print(f"seed {seed}: {fault}", flush=True)
        seed += 1


WORKER = (sys.executable, "-X", "faulthandler", "-m", "tests.fuzz")


def watch(
    fuzzer: str, first: int, tries: int | None, seconds: float, worker: tuple[str, ...] = WORKER
) -> tuple[int, list[str]]:
    """How many attempts were made, and their faults; an attempt that ends the process is one."""
    end, seed, faults = time.monotonic() + seconds, first, list[str]()
    while True:
        left = None if tries is None else first + tries - seed
        options = ["--worker", "--seed", str(seed), "--seconds", str(max(end - time.monotonic(), 0.0))]
        options += [] if left is None else ["--tries", str(left)]
        command = [*worker, fuzzer, *options]
        before = seed
        with (
            tempfile.TemporaryFile("w+") as errors,  # a pipe would fill while nobody reads it
            subprocess.Popen(command, stdout=subprocess.PIPE, stderr=errors, text=True) as process,
        ):
            assert process.stdout is not None
            for line in process.stdout:
                if line.strip().isdecimal():
                    seed = int(line) + 1
                else:
                    faults.append(line.rstrip())
                    print(line, end="", flush=True)
            process.wait()
            errors.seek(0)
            said = errors.read().strip().splitlines()
        if process.returncode == 0:
            return seed - first, faults
        faults.append(f"seed {seed - 1}: exit code {process.returncode}: {said[0] if said else ''}")
        print("\n".join([faults[-1], *said[1:20]]), flush=True)
        if seed == before:  # it cannot even start
            return seed - first, faults


def main() -> int:
    parser = argparse.ArgumentParser(prog="python -m tests.fuzz", description=__doc__)
    parser.add_argument("fuzzer", choices=ATTEMPTS)
    parser.add_argument("--seconds", type=float, default=float("inf"))
    parser.add_argument("--tries", type=int, help="at most so many")
    parser.add_argument("--seed", type=int, default=0, help="of the first attempt (default: 0)")
    parser.add_argument("--worker", action="store_true", help=argparse.SUPPRESS)
    args = parser.parse_args()
    if args.worker:
        work(args.fuzzer, args.seed, args.tries, args.seconds)
        return 0
    tried, faults = watch(args.fuzzer, args.seed, args.tries, args.seconds)
    print(f"{args.fuzzer}: {tried} tried, {len(faults)} faults")
    return 1 if faults else 0


if __name__ == "__main__":
    sys.exit(main())

"""The job behind `python -m benchmarks.instructions`: counts, shows the counts, and stores them if asked."""

import argparse
import sys
from collections.abc import Sequence

from rich.console import Console

from benchmarks import console
from benchmarks.history import Instructions
from benchmarks.instructions import count, stored, table
from benchmarks.instructions.calls import GATED


def arguments(argv: Sequence[str] | None) -> argparse.Namespace:
    """Parses the command line. Exits with a message and status 2 if it is wrong."""
    parser = argparse.ArgumentParser(
        prog="python -m benchmarks.instructions",
        description="Counts the instructions of tiny calls under valgrind, which takes a minute, and "
        f"compares them with those in {stored.PATH.name}.",
    )
    parser.add_argument("--update", action="store_true", help="stores the counts for this torch and Python")
    return parser.parse_args(argv)


def main(argv: Sequence[str] | None = None) -> int:
    """Returns 0; 1 if counting is impossible or a call takes too many; 130 when interrupted."""
    args = arguments(argv)
    if reason := count.missing():
        print(reason, file=sys.stderr)
        return console.EXIT_FAILED
    try:
        return _job(args.update)
    except (OSError, stored.StoredCountsError) as error:
        print(error, file=sys.stderr)
        return console.EXIT_FAILED
    except KeyboardInterrupt:
        print("Interrupted: nothing is stored.", file=sys.stderr)
        return console.EXIT_INTERRUPTED


def _job(update: bool) -> int:
    key = count.key()
    before = stored.load().get(key, {})
    found = count.count()
    records = [Instructions(call, number) for call, number in found.items()]
    Console(width=None if sys.stdout.isatty() else 120).print(table.terminal(records, before))
    if update:
        stored.store(key, found)
        print(f"Stored in {stored.PATH} for {key}")
        return 0
    if not before:
        print(stored.no_entry(key))
    known = [call for call in GATED if call in before]
    remarks = [stored.praise(call, found[call], before[call]) for call in known]
    complaints = [stored.complaint(call, found[call], before[call]) for call in known]
    print(*filter(None, remarks + complaints), sep="\n", end="")
    return console.EXIT_FAILED if any(complaints) else 0

"""A job that measures one case after the other: what it leaves however it ends, and its exit code."""

import json
import sys
from collections.abc import Callable, Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any, TypeVar

from rich.console import Console
from rich.table import Table

from benchmarks import files
from benchmarks.comparison import WrongResultError
from benchmarks.console import EXIT_FAILED, EXIT_INTERRUPTED

Row = TypeVar("Row")


def run(
    cases: Iterable[Sequence[Row]],
    leave: Callable[[Sequence[Row]], None],
    missed: Callable[[Sequence[Row]], list[str]],
    check: bool,
) -> int:
    """Measures, and returns 0, 1 (a wrong result, or with `check` a missed figure) or 130 (interrupted).

    Args:
        cases: a case's rows are measured when they are asked for.
        leave: gets all rows, and after Ctrl-C those of the cases that were finished, if any.
        missed: a sentence for each required figure that rows miss.
    """
    rows: list[Row] = []
    try:
        for of_case in cases:
            rows += of_case
    except WrongResultError as error:
        print(error, file=sys.stderr)
        return EXIT_FAILED
    except KeyboardInterrupt:
        print("Interrupted: only what was finished before is written.", file=sys.stderr)
        if rows:
            leave(rows)
        return EXIT_INTERRUPTED
    leave(rows)
    sentences = missed(rows)
    for sentence in sentences:
        print(sentence, file=sys.stderr)
    return EXIT_FAILED if sentences and check else 0


def write(table: Table, contents: Mapping[str, Any], directory: Path) -> None:
    """Writes results.json, and prints the same as a table, which is left where the file cannot be."""
    path = directory / "results.json"
    try:
        files.write_whole(path, json.dumps(contents, indent=1) + "\n")
    finally:
        Console().print(table)
    print(f"{path} is written")

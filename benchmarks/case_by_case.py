"""Runs a job that measures one case after the other, writes its files and returns its exit code."""

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
    write_rows: Callable[[Sequence[Row]], None],
    missed: Callable[[Sequence[Row]], list[str]],
    check: bool,
) -> int:
    """Measures and returns 0, 1 (a wrong result, or with `check` a missed figure) or 130 (interrupted).

    Args:
        cases: iterating over a case measures its rows.
        write_rows: gets all rows. After Ctrl-C it gets the rows of the finished cases, if any.
        missed: returns one sentence for each required figure that the rows miss.
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
            write_rows(rows)
        return EXIT_INTERRUPTED
    write_rows(rows)
    sentences = missed(rows)
    for sentence in sentences:
        print(sentence, file=sys.stderr)
    return EXIT_FAILED if sentences and check else 0


def write(table: Table, contents: Mapping[str, Any], directory: Path) -> None:
    """Writes results.json and prints the same as a table. The table is printed even if the file fails."""
    path = directory / "results.json"
    try:
        files.write_whole(path, json.dumps(contents, indent=1) + "\n")
    finally:
        Console().print(table)
    print(f"{path} is written")

"""The results of a run of `compare`: per cell and as a whole, the exit code, and the JSON file."""

import json
from collections import Counter
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

from benchmarks import console, files
from benchmarks.compare.revisions import Revision
from benchmarks.compare.verdicts import Judgement, Launch, Verdict, judge
from benchmarks.grid.cells import Cell

FORMAT = 1
"""Increase it when a field of the JSON file changes its meaning or its name."""

EXIT_ERROR = 2


@dataclass
class CellResult:
    """One cell: the launches of each pass over it, or why it cannot be timed."""

    cell: Cell
    passes: list[list[Launch]] = field(default_factory=list)
    failed: str | None = None
    judgement: Judgement | None = None

    def add(self, readings: Launch | str) -> None:
        """Adds a launch to the last pass. A failure stays."""
        if isinstance(readings, str):
            self.failed = readings
        else:
            self.passes[-1].append(readings)

    def judge(self) -> None:
        """Judges the readings. Ignores a pass that was interrupted before its second launch."""
        whole = [launches for launches in self.passes if len(launches) > 1]
        if whole and self.failed is None:
            self.judgement = judge(whole)

    @property
    def verdict(self) -> Verdict:
        return Verdict.NO_DATA if self.failed or self.judgement is None else self.judgement.verdict


@dataclass
class Results:
    """Everything a run of `compare` found."""

    base: Revision
    head: Revision
    arguments: dict[str, Any]
    environment: dict[str, Any]
    cells: list[CellResult]
    interrupted: bool = False

    @property
    def exit_code(self) -> int:
        verdicts = [result.verdict for result in self.cells]
        if self.interrupted:
            return console.EXIT_INTERRUPTED
        if Verdict.SLOWER in verdicts:
            return console.EXIT_FAILED
        return EXIT_ERROR if Verdict.NO_DATA in verdicts else 0

    @property
    def summary(self) -> str:
        """One line: the number of cells for each verdict."""
        counts = Counter(result.verdict for result in self.cells)
        text = ", ".join(f"{counts[verdict]} {verdict.value}" for verdict in Verdict if counts[verdict])
        return f"{self.head} against {self.base}: {text}"

    def write(self, path: Path) -> None:
        """Writes the JSON file: seconds per call, one value per round in each launch of each pass."""
        content = {
            "format": FORMAT,
            "interrupted": self.interrupted,
            "exit_code": self.exit_code,
            "summary": self.summary,
            "base": asdict(self.base),
            "head": asdict(self.head),
            "arguments": self.arguments,
            "environment": self.environment,
            "cells": [_plain(result) for result in self.cells],
        }
        files.write_whole(path, json.dumps(content, indent=1) + "\n")


def _plain(result: CellResult) -> dict[str, Any]:
    judgement = result.judgement
    found = {} if judgement is None else {**asdict(judgement), "noise": judgement.noise}
    return {
        "id": result.cell.id,
        **found,
        "verdict": result.verdict.value,
        "failed": result.failed,
        "passes": [[asdict(launch) for launch in launches] for launches in result.passes],
    }

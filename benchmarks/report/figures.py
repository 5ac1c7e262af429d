"""A run in numbers: its cells, the worst of them, means by direction, and what it did not measure."""

import math
import statistics
from collections.abc import Callable, Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass
from types import MappingProxyType

from benchmarks.comparison import ALL_DIRECTIONS
from benchmarks.grid.cells import FAMILIES, STEPS, cells
from benchmarks.history import Accuracy, Instructions, Record, RowSpeed, Run, Speed

MAIN_ROWS = ("copy", "eager", "ours", "ours, recomputed")
"""The main rows. The others are torch.compile and peers."""
ROW_NAMES = {"compile": "torch.compile"}
"""Display names of rows. Other rows are displayed under their own names."""
GRAPHS = ", graphs"
"""Appended to the names of CUDA graph replays."""
WHOLE_STEPS = "whole training steps"
"""Shown instead of a direction for the family STEPS."""


@dataclass(frozen=True)
class Cell:
    """A cell in which both eager and ours were timed."""

    speed: Speed

    @property
    def case(self) -> str:
        """The cell's name without the direction."""
        return self.speed.cell

    @property
    def family(self) -> str:
        """The grid's family. Replays of graphs have other families, as their times do not compare."""
        return f"{self.speed.family}{GRAPHS}" if self.speed.graph else self.speed.family

    @property
    def key(self) -> tuple[str, str, str]:
        """Identifies the cell in another run."""
        return self.family, self.case, self.speed.direction

    @property
    def ours(self) -> RowSpeed:
        return self.speed.rows["ours"]

    @property
    def eager(self) -> RowSpeed:
        return self.speed.rows["eager"]

    @property
    def others(self) -> dict[str, RowSpeed]:
        """The timed rows among torch.compile and peers."""
        return {name: row for name, row in self.speed.rows.items() if name not in MAIN_ROWS}

    @property
    def ratio(self) -> float:
        """How many times faster than eager ours is."""
        return self.ours.ratio

    @property
    def share(self) -> float | None:
        """The floor's time divided by ours. Training steps have no floor."""
        return self.ours.share_of_floor if self.speed.floor_seconds > 0 else None

    @property
    def over_compile(self) -> float | None:
        """How many times faster than torch.compile, from both ratios to eager in the same rounds."""
        compiled = self.speed.rows.get("compile")
        return self.ratio / compiled.ratio if compiled else None

    @property
    def peak_share(self) -> float | None:
        """Our peak memory divided by eager's."""
        ours, eager = self.ours.peak_bytes, self.eager.peak_bytes
        return ours / eager if ours is not None and eager else None


def measured(run: Run) -> list[Cell]:
    """The run's cells, in its order."""
    return [Cell(speed) for speed in run.of(Speed) if {"eager", "ours"} <= speed.rows.keys()]


def slower(ratio: float) -> bool:
    """Whether a speedup is below 1.00 as displayed, with two decimals."""
    return round(ratio, 2) < 1


def worst(found: Iterable[Cell], count: int = 5) -> list[Cell]:
    """The cells with the lowest ratios to eager, the lowest first."""
    return sorted(found, key=lambda cell: cell.ratio)[:count]


def families(found: Iterable[Cell]) -> list[str]:
    """Families in the grid's order. Families that the grid does not know come last."""
    return _ordered((cell.family for cell in found), FAMILIES)


def directions(found: Iterable[Cell]) -> list[str]:
    """Directions in the grid's order."""
    return _ordered((cell.speed.direction for cell in found), ALL_DIRECTIONS)


def _ordered(names: Iterable[str], known: Collection[str]) -> list[str]:
    there = dict.fromkeys(names)
    return [name for name in known if name in there] + [name for name in there if name not in known]


def other_rows(found: Iterable[Cell]) -> list[str]:
    """All rows besides eager and ours, in any cell."""
    return list(dict.fromkeys(name for cell in found for name in cell.others))


@dataclass(frozen=True)
class Summary:
    """Figures of a group of cells: geometric means, the median share of the floor. None if not measured."""

    name: str
    cells: int
    ratio: float
    over_compile: float | None
    share: float | None
    peak_share: float | None
    slower_than_eager: int
    slower_than_compile: int | None


def summaries(found: Sequence[Cell]) -> list[Summary]:
    """One summary per direction, then whole training steps, all cells, and replays of graphs."""
    return [
        _summary(name + ending, group)
        for ending, of_way in by_way(found).items()
        for name, group in _groups(of_way).items()
        if group
    ]


def by_way(found: Iterable[Cell]) -> dict[str, list[Cell]]:
    """Single calls under "", and replays of graphs under GRAPHS, if there are any."""
    ways: dict[str, list[Cell]] = {"": [], GRAPHS: []}
    for cell in found:
        ways[GRAPHS if cell.speed.graph else ""].append(cell)
    return {ending: cells for ending, cells in ways.items() if cells}


def _groups(found: Sequence[Cell]) -> dict[str, Sequence[Cell]]:
    layers = [cell for cell in found if cell.speed.family != STEPS]
    groups: dict[str, Sequence[Cell]] = {
        direction: [cell for cell in layers if cell.speed.direction == direction]
        for direction in directions(layers)
    }
    groups[WHOLE_STEPS] = [cell for cell in found if cell.speed.family == STEPS]
    groups["all cells"] = found
    return groups


def _summary(name: str, group: Sequence[Cell]) -> Summary:
    over_compile = [cell.over_compile for cell in group if cell.over_compile is not None]
    shares = [cell.share for cell in group if cell.share is not None]
    peaks = [cell.peak_share for cell in group if cell.peak_share]
    return Summary(
        name,
        cells=len(group),
        ratio=statistics.geometric_mean(cell.ratio for cell in group),
        over_compile=statistics.geometric_mean(over_compile) if over_compile else None,
        share=statistics.median(shares) if shares else None,
        peak_share=statistics.geometric_mean(peaks) if peaks else None,
        slower_than_eager=sum(slower(cell.ratio) for cell in group),
        slower_than_compile=sum(map(slower, over_compile)) if over_compile else None,
    )


def compared(run: Run) -> list[Accuracy]:
    """Accuracies that have both eager and ours."""
    return [accuracy for accuracy in run.of(Accuracy) if {"eager", "ours"} <= accuracy.ulps.keys()]


def further(accuracies: Iterable[Accuracy]) -> list[Accuracy]:
    """Accuracies in which ours is further from float64 than eager, the largest ratio first."""

    def times(accuracy: Accuracy) -> float:
        return _or_infinite(accuracy.ulps["ours"]) / max(_or_infinite(accuracy.ulps["eager"]), 1e-9)

    worse = [a for a in accuracies if _or_infinite(a.ulps["ours"]) > _or_infinite(a.ulps["eager"])]
    return sorted(worse, key=times, reverse=True)


def _or_infinite(ulps: float) -> float:
    return math.inf if math.isnan(ulps) else ulps


def source(kind: type[Record], runs: Sequence[Run], last: Run) -> Run:
    """`last`, or if it has no records of that kind, its device's latest run that has."""

    def has(run: Run) -> bool:
        return any(isinstance(record, kind) for record in run.records)

    having = [run for run in runs if has(run)]
    return last if has(last) or not having else having[-1]


def gaps(run: Run, found: Sequence[Cell], sources: Mapping[str, Run] = MappingProxyType({})) -> list[str]:
    """One sentence for each gap of the run. `sources` has the runs that fill gaps, by name."""
    wanted = {(cell.family, cell.case.id, cell.direction) for cell in cells()}
    absent = wanted - {cell.key for cell in found}
    said = []
    if len(absent) == len(wanted):
        said.append(f"None of the grid's {len(wanted)} cells.")
    elif absent:
        said.append(f"{len(absent)} of the grid's {len(wanted)} cells.")
    counted: dict[str, Callable[[Cell], bool]] = {
        "torch.compile": lambda cell: cell.over_compile is not None,
        "Peak memory": lambda cell: cell.peak_share is not None,
    }
    for what, has in counted.items():
        lacking = sum(not has(cell) for cell in found)
        if lacking:
            said.append(f"{what}, in {'all' if lacking == len(found) else lacking} of {len(found)} cells.")
    if not any(cell.speed.family == STEPS for cell in found):
        said.append("Whole training steps.")
    has_no = {
        "Accuracy against float64": not run.of(Accuracy),
        "Instructions of the host": not run.of(Instructions),
    }
    for what in (name for name, lacks in has_no.items() if lacks):
        shown = sources.get(what, run)
        of_other = f"; shown is that of {shown.commit}, {shown.date[:10]}" if shown is not run else ""
        said.append(f"{what}{of_other}.")
    return said

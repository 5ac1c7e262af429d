"""How the ratios moved from run to run of one device; times of different runs are not comparable."""

import statistics
from collections.abc import Sequence
from dataclasses import dataclass

from benchmarks.history import Instructions, Run
from benchmarks.report.figures import Cell, directions, families, measured

LONGEST = 20
"""Runs shown at most, the latest."""
KEPT = 0.5
"""Of the last run's cells: a run that has fewer is left out, or few cells would be common to all."""

Key = tuple[str, str, str]


@dataclass(frozen=True)
class Trend:
    """Of the cells that all of `runs` have.

    Args:
        runs: those shown, the oldest first; two or more.
        left_out: those in between that have too few of the last run's cells.
        total: the last run's cells, and `common` those that all have.
        ratios: geometric means by direction and family, a value a run.
        shares: medians of the share of the floor in the same way, of those that have a floor.
    """

    runs: list[Run]
    left_out: list[Run]
    total: int
    common: int
    ratios: dict[tuple[str, str], list[float]]
    shares: dict[tuple[str, str], list[float]]

    @property
    def directions(self) -> list[str]:
        return list(dict.fromkeys(direction for direction, _ in self.ratios))

    @property
    def families(self) -> list[str]:
        return list(dict.fromkeys(family for _, family in self.ratios))


def trend(runs: Sequence[Run], last: Run) -> Trend | None:
    """The trend up to `last`, of runs of its device in the order of their dates; None with one run only."""
    earlier = runs[: next(number for number, run in enumerate(runs) if run is last)]
    tables = {id(run): {cell.key: cell for cell in measured(run)} for run in [*earlier, last]}
    present = tables[id(last)]
    enough = [run for run in earlier if len(tables[id(run)].keys() & present) >= max(KEPT * len(present), 1)]
    shown = [*enough, last][-LONGEST:]
    if len(shown) < 2:
        return None
    common = [key for key in present if all(key in tables[id(run)] for run in shown)]
    if not common:
        return None
    since = runs.index(shown[0])
    ratios, shares = _means([[tables[id(run)][key] for key in common] for run in shown])
    left_out = [run for run in earlier[since:] if not any(run is each for each in shown)]
    return Trend(shown, left_out, len(present), len(common), ratios, shares)


def _means(
    by_run: list[list[Cell]],
) -> tuple[dict[tuple[str, str], list[float]], dict[tuple[str, str], list[float]]]:
    """Ratios and shares by direction and family; the runs' cells are the same ones, in the same order."""
    ratios, shares = {}, {}
    for direction in directions(by_run[-1]):
        for family in families(by_run[-1]):
            places = [
                place
                for place, cell in enumerate(by_run[-1])
                if (cell.speed.direction, cell.speed.family) == (direction, family)
            ]
            groups = [[cells[place] for place in places] for cells in by_run]
            if not places:
                continue
            ratios[direction, family] = [
                statistics.geometric_mean(cell.ratio for cell in group) for group in groups
            ]
            if all(cell.share is not None for group in groups for cell in group):
                shares[direction, family] = [
                    statistics.median(cell.share or 0.0 for cell in group) for group in groups
                ]
    return ratios, shares


def instructions(runs: Sequence[Run], last: Run) -> tuple[list[Run], dict[str, list[int | None]]]:
    """The runs up to `last` that counted instructions, and by call a count a run, None where it has none."""
    until = runs[: next(number for number, run in enumerate(runs) if run is last) + 1]
    counted = [run for run in until if run.of(Instructions)][-LONGEST:]
    counts = [{each.call: each.count for each in run.of(Instructions)} for run in counted]
    calls = dict.fromkeys(call for of_run in counts for call in of_run)
    return counted, {call: [of_run.get(call) for of_run in counts] for call in calls}

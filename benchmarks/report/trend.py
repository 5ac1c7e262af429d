"""The ratios of one device from run to run. Times of different runs are not comparable."""

import statistics
from collections.abc import Sequence
from dataclasses import dataclass

from benchmarks.grid.cells import STEPS
from benchmarks.history import Instructions, Run
from benchmarks.report.figures import WHOLE_STEPS, Cell, by_way, directions, families, measured

LONGEST = 20
"""The most runs to show: the latest."""
KEPT = 0.5
"""A run with a smaller share of the last run's cells is left out: few cells would be common to all runs."""


@dataclass(frozen=True)
class Trend:
    """The trend of the cells that all of `runs` have.

    Args:
        runs: two or more runs to show, the oldest first.
        left_out: the runs between them that have too few of the last run's cells.
        total: the number of the last run's cells; `common` is the number that all runs have.
        means: geometric means of the ratios by direction, one value per run, without whole training steps.
            Replays of graphs come last.
        ratios: the same by direction and family. Training steps are under WHOLE_STEPS and their network.
        shares: medians of the share of the floor by direction and family, for cells with a floor.
    """

    runs: list[Run]
    left_out: list[Run]
    total: int
    common: int
    means: dict[str, list[float]]
    ratios: dict[tuple[str, str], list[float]]
    shares: dict[tuple[str, str], list[float]]

    @property
    def directions(self) -> list[str]:
        return list(dict.fromkeys(direction for direction, _ in self.ratios))

    @property
    def families(self) -> list[str]:
        """The families of layers, and of training steps."""
        return list(dict.fromkeys(family for _, family in self.ratios))


def trend(runs: Sequence[Run], last: Run) -> Trend | None:
    """The trend up to `last`, from its device's runs in order of date. None if there is only one run."""
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
    first = next(number for number, run in enumerate(runs) if run is shown[0])
    left_out = [run for run in earlier[first:] if not any(run is each for each in shown)]
    by_run = [[tables[id(run)][key] for key in common] for run in shown]
    groups = _by_family(by_run)
    return Trend(
        runs=shown,
        left_out=left_out,
        total=len(present),
        common=len(common),
        means={name: _ratios(group) for name, group in _by_direction(by_run).items()},
        ratios={name: _ratios(group) for name, group in groups.items()},
        shares={name: shares for name, group in groups.items() if (shares := _shares(group))},
    )


def _by_family(by_run: Sequence[Sequence[Cell]]) -> dict[tuple[str, str], list[list[Cell]]]:
    """A list of cells per run, by direction and family. Training steps: by WHOLE_STEPS and network."""
    layers, steps = _layers(by_run[-1]), [cell for cell in by_run[-1] if cell.speed.family == STEPS]
    names = [(direction, family) for direction in directions(layers) for family in families(layers)]
    names += [(WHOLE_STEPS, direction) for direction in directions(steps)]

    def name(cell: Cell) -> tuple[str, str]:
        direction = cell.speed.direction
        return (WHOLE_STEPS, direction) if cell.speed.family == STEPS else (direction, cell.family)

    groups = {each: [[c for c in cells if name(c) == each] for cells in by_run] for each in names}
    return {each: group for each, group in groups.items() if group[-1]}


def _by_direction(by_run: Sequence[Sequence[Cell]]) -> dict[str, list[list[Cell]]]:
    """A list of layers' cells per run, by direction. Replays of graphs come last."""
    return {
        direction + ending: [
            [cell for cell in by_way(_layers(cells))[ending] if cell.speed.direction == direction]
            for cells in by_run
        ]
        for ending, of_way in by_way(_layers(by_run[-1])).items()
        for direction in directions(of_way)
    }


def _layers(cells: Sequence[Cell]) -> list[Cell]:
    return [cell for cell in cells if cell.speed.family != STEPS]


def _ratios(group: Sequence[Sequence[Cell]]) -> list[float]:
    return [statistics.geometric_mean(cell.ratio for cell in cells) for cells in group]


def _shares(group: Sequence[Sequence[Cell]]) -> list[float]:
    """Empty if a cell has no floor."""
    shares = [[cell.share for cell in cells if cell.share is not None] for cells in group]
    return [statistics.median(of_run) for of_run in shares] if all(shares) else []


def instructions(runs: Sequence[Run], last: Run) -> tuple[list[Run], dict[str, list[int | None]]]:
    """The runs up to `last` that counted instructions, and per call one count per run, None if missing."""
    until = runs[: next(number for number, run in enumerate(runs) if run is last) + 1]
    counted = [run for run in until if run.of(Instructions)][-LONGEST:]
    counts = [{each.call: each.count for each in run.of(Instructions)} for run in counted]
    calls = dict.fromkeys(call for of_run in counts for call in of_run)
    return counted, {call: [of_run.get(call) for of_run in counts] for call in calls}

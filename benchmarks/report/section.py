"""The page's content for one device: the chosen run's figures and charts, and the trend up to it."""

from collections.abc import Sequence
from dataclasses import dataclass

from benchmarks import history
from benchmarks.history import Accuracy, Instructions, Run
from benchmarks.report import beside, drawing, figures, speed, trends
from benchmarks.report.drawing import Chart
from benchmarks.report.figures import Cell, Summary
from benchmarks.report.trend import Trend, trend


@dataclass(frozen=True)
class Section:
    """`charts` are by file name. `trend` is None if there is no earlier run to compare with."""

    run: Run
    cells: list[Cell]
    worst: list[Cell]
    summaries: list[Summary]
    gaps: list[str]
    accuracies: list[Accuracy]
    further: list[Accuracy]
    charts: dict[str, Chart]
    trend: Trend | None

    @property
    def slug(self) -> str:
        return history.slug(self.run.device)

    def file_of(self, chart: Chart) -> str:
        """The name of the chart's PNG."""
        return f"{self.slug}-{chart.name}.png"

    @property
    def measured_charts(self) -> list[Chart]:
        """The charts of the run itself."""
        return [chart for chart in self.charts.values() if chart.name not in trends.NAMES]

    @property
    def trend_charts(self) -> list[Chart]:
        """The charts over several runs."""
        return [chart for chart in self.charts.values() if chart.name in trends.NAMES]


def section(runs: Sequence[Run], last: Run) -> Section:
    """Draws and counts. `runs` are the device's, the oldest first, and include `last`."""
    cells = figures.measured(last)
    exact = figures.source(Accuracy, runs, last)
    counted = figures.source(Instructions, runs, last)
    sources = {"Accuracy against float64": exact, "Instructions of the host": counted}
    accuracies = figures.compared(exact)
    over_runs = trend(runs, last) if cells else None
    with drawing.style():
        drawn: list[Chart | None] = [
            *speed.bars(last, cells),
            *speed.rooflines(last, cells),
            *beside.accuracy(exact),
            *beside.memory(last, cells),
            trends.ratios(last, over_runs) if over_runs else None,
            trends.host(counted, runs),
        ]
    return Section(
        run=last,
        cells=cells,
        worst=figures.worst(cells),
        summaries=figures.summaries(cells),
        gaps=figures.gaps(last, cells, sources),
        accuracies=accuracies,
        further=figures.further(accuracies),
        charts={chart.name: chart for chart in drawn if chart},
        trend=over_runs,
    )

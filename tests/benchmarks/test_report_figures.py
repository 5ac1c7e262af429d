"""The report's figures: the worst cells, means, gaps, and the trend."""

from collections.abc import Callable

import pytest

from benchmarks.history import Accuracy, Record
from benchmarks.report import figures
from benchmarks.report.figures import Cell, gaps, measured
from benchmarks.report.trend import instructions as counted
from benchmarks.report.trend import trend
from tests.benchmarks.report_history import (
    COUNTS,
    accuracies,
    instructions,
    quick,
    run_of,
    speed,
    speeds,
    steps,
    whole,
    without,
)


def cells_of(*records: Record) -> list[Cell]:
    return measured(run_of(*records))


# Numbers


def test_worst_five() -> None:
    found = cells_of(*(speed(ratio, str(ratio)) for ratio in (3.0, 0.9, 2.0, 5.0, 1.5, 4.0, 1.0)))
    assert [cell.ratio for cell in figures.worst(found)] == [0.9, 1.0, 1.5, 2.0, 3.0]
    assert figures.worst(found[:2]) == [found[1], found[0]]


def test_a_cell() -> None:
    (cell,) = cells_of(speed(4.0, compiled=0.5, peaks=(400, 100)))
    assert cell.case == "8x4x2x2 contiguous float32"
    assert (cell.ratio, cell.share, cell.over_compile, cell.peak_share) == (4.0, 0.5, 8.0, 0.25)
    (step,) = cells_of(speed(4.0, family="steps"))
    assert (step.share, step.over_compile, step.peak_share) == (None, None, None)


def test_cells_without_ours_do_not_count() -> None:
    lacking = speed(4.0)
    del lacking.rows["ours"]
    assert cells_of(lacking) == []


def test_summaries() -> None:
    found = cells_of(
        speed(2.0, "a", compiled=4.0, peaks=(400, 100)),
        speed(8.0, "b", compiled=2.0, peaks=(100, 100)),
        speed(0.5, "a", "evaluation"),
        speed(1.0, "images", "LeNet-5 step", family="steps"),
    )
    forward, evaluation, training, every = figures.summaries(found)
    assert (forward.name, forward.cells) == ("forward", 2)
    assert forward.ratio == pytest.approx(4.0)
    assert forward.over_compile == pytest.approx(2**0.5)  # of 1/2 and 4
    assert forward.share == pytest.approx(0.625)  # between 2/8 and 8/8
    assert forward.peak_share == pytest.approx(0.5)  # of 1/4 and 1
    assert (forward.slower_than_eager, forward.slower_than_compile) == (0, 1)
    assert (evaluation.name, evaluation.slower_than_eager) == ("evaluation", 1)
    assert (evaluation.over_compile, evaluation.slower_than_compile, evaluation.peak_share) == (None,) * 3
    assert (training.name, training.share) == ("whole training steps", None)
    assert (every.name, every.cells, every.slower_than_eager) == ("all cells", 4, 1)
    assert every.ratio == pytest.approx(8**0.25)  # of 2, 8, 1/2 and 1


@pytest.mark.parametrize(("ratio", "marked"), [(0.9949, True), (0.9951, False), (1.0049, False), (0.5, True)])
def test_a_cell_is_slower_if_its_shown_ratio_is(ratio: float, marked: bool) -> None:
    """0.9951 is shown as 1.00 in every table."""
    assert figures.slower(ratio) == marked == (f"{ratio:.2f}" < "1.00")
    summary, _ = figures.summaries(cells_of(speed(ratio, compiled=1.0)))
    assert (summary.slower_than_eager, summary.slower_than_compile) == (marked, marked)


def test_replays_of_graphs_have_means_of_their_own() -> None:
    """Other cells include the host's time."""
    found = cells_of(speed(2.0), speed(8.0, graph=True), speed(0.5, direction="evaluation", graph=True))
    assert [(each.name, each.cells, each.ratio) for each in figures.summaries(found)] == [
        ("forward", 1, 2.0),
        ("all cells", 1, 2.0),
        ("forward, graphs", 1, pytest.approx(8.0)),
        ("evaluation, graphs", 1, 0.5),
        ("all cells, graphs", 2, pytest.approx(2.0)),
    ]
    assert figures.families(found) == ["lenet", "lenet, graphs"]


def test_directions_and_families_are_in_the_grids_order() -> None:
    found = cells_of(
        speed(1.0, direction="sideways"),
        speed(1.0, direction="ResNet-50 step", family="steps"),
        speed(1.0, direction="forward", family="resnet50"),
        speed(1.0, direction="evaluation"),
        speed(1.0, direction="backward"),
    )
    assert figures.directions(found) == [
        "forward",
        "backward",
        "evaluation",
        "sideways",
        "ResNet-50 step",
    ]
    assert figures.families(found) == ["lenet", "resnet50", "steps"]


def test_where_ours_is_further_from_float64() -> None:
    nan, infinite = float("nan"), float("inf")
    pairs = [(1.0, 1.0), (1.0, 2.0), (nan, 1.0), (nan, nan), (1.0, infinite), (0.0, 0.5), (9.0, 1.0)]
    found = [Accuracy(str(n), "d", "q", {"eager": e, "ours": o}) for n, (e, o) in enumerate(pairs)]
    assert [accuracy.data for accuracy in figures.further(found)] == ["4", "5", "1"]


# What is missing


def test_a_whole_run_lacks_nothing_but_compiled_steps() -> None:
    run = run_of(*whole(0))
    assert gaps(run, measured(run)) == ["torch.compile, in 3 of 264 cells."]


@pytest.mark.parametrize(
    ("make", "said"),
    [
        (lambda: [*quick(0), *steps(), *accuracies(0), *instructions()], "224 of the grid's 260 cells."),
        (lambda: without("compile", whole(0)[:260]), "torch.compile, in all of 260 cells."),
        (lambda: [*speeds(0), speed(2.0)], "Peak memory, in 1 of 261 cells."),
        (lambda: [*speeds(0)], "Accuracy against float64."),
        (lambda: [*speeds(0)], "Whole training steps."),
        (lambda: [*speeds(0)], "Instructions of the host."),
        (list, "None of the grid's 260 cells."),
    ],
)
def test_what_is_missing_is_said(make: Callable[[], list[Record]], said: str) -> None:
    run = run_of(*make())
    assert said in gaps(run, measured(run))


# The trend


def test_trend_is_of_the_cells_that_all_runs_have() -> None:
    runs = [
        run_of(speed(2.0, "a"), speed(8.0, "b"), speed(50.0, "old"), commit="c1"),
        run_of(speed(50.0, "old"), commit="c2"),  # this run has none of the last run's cells
        run_of(speed(3.0, "a"), speed(12.0, "b"), speed(1.0, "b", "evaluation"), commit="c3"),
        run_of(speed(4.0, "a"), speed(16.0, "b"), speed(50.0, "new"), commit="c4"),
        run_of(speed(90.0, "a"), speed(90.0, "b"), commit="c5"),  # this run is later than the shown one
    ]
    found = trend(runs, runs[3])
    assert found is not None
    assert [run.commit for run in found.runs] == ["c1", "c3", "c4"]
    assert [run.commit for run in found.left_out] == ["c2"]
    assert (found.common, found.total) == (2, 3)
    assert found.ratios == {("forward", "lenet"): pytest.approx([4.0, 6.0, 8.0])}
    assert found.means == {"forward": pytest.approx([4.0, 6.0, 8.0])}
    assert found.shares == {("forward", "lenet"): pytest.approx([5 / 8, 7.5 / 8, 10 / 8])}


def test_trend_of_training_steps_has_no_shares_and_stays_out_of_the_means() -> None:
    records = [speed(2.0), speed(1.5, "images", "LeNet-5 step", family="steps")]
    runs = [run_of(*records, commit=commit) for commit in ("c1", "c2")]
    found = trend(runs, runs[1])
    assert found is not None
    assert found.ratios == {
        ("forward", "lenet"): [2.0] * 2,
        ("whole training steps", "LeNet-5 step"): pytest.approx([1.5] * 2),
    }
    assert found.means == {"forward": [2.0] * 2}
    assert list(found.shares) == [("forward", "lenet")]


def test_replays_of_graphs_have_a_trend_of_their_own() -> None:
    runs = [
        run_of(speed(2.0), speed(8.0, graph=True), commit="c1"),
        run_of(speed(3.0), speed(9.0, graph=True), commit="c2"),
    ]
    found = trend(runs, runs[1])
    assert found is not None
    assert found.means == {"forward": pytest.approx([2.0, 3.0]), "forward, graphs": pytest.approx([8.0, 9.0])}
    assert found.ratios == {
        ("forward", "lenet"): found.means["forward"],
        ("forward", "lenet, graphs"): found.means["forward, graphs"],
    }


def test_no_trend_of_one_run_or_of_none_that_can_be_compared() -> None:
    alone, other = run_of(speed(2.0, "a")), run_of(speed(2.0, "b"))
    assert trend([alone], alone) is None
    assert trend([other, alone], alone) is None


def test_trend_shows_the_latest_runs() -> None:
    runs = [run_of(speed(2.0), commit=f"c{number}") for number in range(30)]
    found = trend(runs, runs[28])
    assert found is not None
    assert [run.commit for run in found.runs] == [f"c{number}" for number in range(9, 29)]
    assert found.left_out == []


def test_instructions_over_the_runs_that_counted_them() -> None:
    runs = [
        run_of(*instructions(), commit="c1"),
        run_of(speed(2.0), commit="c2"),
        run_of(*list(instructions(2.0))[:2], commit="c3"),
        run_of(*instructions(4.0), commit="c4"),
    ]
    found, calls = counted(runs, runs[2])
    assert [run.commit for run in found] == ["c1", "c3"]
    assert list(calls) == list(COUNTS)
    assert calls["forward"] == [92_000, 46_000]
    assert calls["forward+backward"] == [314_000, 157_000]
    assert calls["evaluation"] == [84_000, None]

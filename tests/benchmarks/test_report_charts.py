"""The report's charts before they become pixels: bars, marks and lines show the recorded values."""

import math
from collections.abc import Iterator

import numpy as np
import pytest
from matplotlib.axes import Axes
from matplotlib.container import BarContainer
from matplotlib.figure import Figure

from benchmarks.history import Accuracy, RowSpeed, Run, Speed
from benchmarks.report import beside, drawing, speed, trends
from benchmarks.report.figures import measured
from benchmarks.report.trend import trend
from tests.benchmarks.report_history import environment, instructions, run_of, whole
from tests.benchmarks.report_history import speed as speed_of


@pytest.fixture
def drawn(monkeypatch: pytest.MonkeyPatch) -> Iterator[list[Figure]]:
    """The charts' figures, completely drawn, with their texts inside."""
    figures: list[Figure] = []
    original = drawing.png

    def keep(figure: Figure) -> bytes:
        figures.append(figure)
        return original(figure)

    monkeypatch.setattr(drawing, "png", keep)
    with drawing.style():
        yield figures


def line(axes: Axes, label: str) -> list[tuple[float, float]]:
    """The points of a line or of its marks, to 9 decimals."""
    (found,) = (line for line in axes.lines if line.get_label() == label)
    return [(x, y) for x, y in np.asarray(found.get_xydata(), float).round(9).tolist()]


def labels(axes: Axes) -> list[str]:
    return [text.get_text() for text in axes.get_yticklabels()]


def panel(figure: Figure, title: str) -> Axes:
    (found,) = (axes for axes in figure.axes if axes.get_title().partition("\n")[0] == title)
    return found


def test_bars(drawn: list[Figure]) -> None:
    run = run_of(
        speed_of(4.0, "a", compiled=0.5),
        speed_of(0.8, "b"),
        speed_of(2.0, "a", "evaluation"),
        speed_of(9.0, "other", family="resnet50"),
    )
    first, second = speed.bars(run, measured(run))
    assert (first.name, second.name) == ("speedup-lenet", "speedup-resnet50")
    assert "3 cells, 0.80 to 4.00 times faster than eager" in first.alt
    assert "1 slower than eager" in first.alt
    axes = panel(drawn[0], "forward")
    faster, slower = (bars for bars in axes.containers if isinstance(bars, BarContainer))
    for bars, ratio, place, color in ((faster, 4.0, 0, drawing.OURS), (slower, 0.8, 1, drawing.SLOWER)):
        (bar,) = bars
        assert bar.get_x() == 1
        assert bar.get_x() + bar.get_width() == pytest.approx(ratio)
        assert bar.get_y() + bar.get_height() / 2 == pytest.approx(place)
        assert tuple(bar.get_facecolor()[:3]) == pytest.approx(_rgb(color))
    assert line(axes, "torch.compile") == [(0.5, 0.0)]
    assert labels(axes) == ["a", "b"]
    assert [text.get_text() for text in axes.texts] == ["4.00", "0.80"]
    assert axes.get_title() == "forward\ngeometric mean 1.79"  # the square root of 3.2
    low, high = axes.get_xlim()
    assert low < 0.5
    assert high > 4


@pytest.mark.parametrize(("ratio", "label"), [(0.994, "ours, slower than eager"), (0.996, "ours")])
def test_a_bar_is_coloured_as_its_number_says(ratio: float, label: str, drawn: list[Figure]) -> None:
    run = run_of(speed_of(ratio))
    list(speed.bars(run, measured(run)))
    (bars,) = (bars for bars in drawn[0].axes[0].containers if isinstance(bars, BarContainer))
    assert bars.get_label() == label


def _rgb(color: str) -> tuple[float, ...]:
    return tuple(int(color[place : place + 2], 16) / 255 for place in (1, 3, 5))


def test_peers_have_marks_of_their_own(drawn: list[Figure]) -> None:
    record = speed_of(4.0, compiled=0.5)
    record.rows["apex"] = RowSpeed(4e-6, 2.0, 0.25, None)
    run = run_of(record)
    list(speed.bars(run, measured(run)))
    list(speed.rooflines(run, measured(run)))
    bars, roofline = (figure.axes[0] for figure in drawn)
    assert line(bars, "apex") == [(2.0, 0.0)]
    assert line(roofline, "apex") == [(2000, 0.5)]


def test_roofline(drawn: list[Figure]) -> None:
    """Possible: 2000 bytes in 1 us are 2 GB/s. Eager takes 8 us, ours 8 us divided by its ratio."""
    other = Speed("lenet", "b forward", "forward", 6000, 2e-6, speed_of(4.0).rows)
    run = run_of(speed_of(4.0, "a", compiled=0.5), speed_of(2.0, "c"), other, speed_of(3.0, family="steps"))
    (chart,) = speed.rooflines(run, measured(run))
    assert "3 cells: ours reaches 25% to 50%" in chart.alt
    (axes,) = drawn[0].axes
    assert line(axes, "possible: a copy") == [(2000, 2.0), (6000, 3.0)]
    assert line(axes, "eager") == [
        (2000, 0.25),
        (2000, 0.25),
        (6000, 0.75),
    ]
    assert line(axes, "torch.compile") == [(2000, 0.125)]
    assert line(axes, "ours") == [
        (2000, 1.0),
        (2000, 0.5),
        (6000, 3.0),
    ]
    assert (axes.get_xscale(), axes.get_yscale()) == ("log", "log")


def test_replays_of_graphs_have_charts_of_their_own(drawn: list[Figure]) -> None:
    run = run_of(speed_of(2.0), speed_of(8.0, graph=True))
    charts = [*speed.bars(run, measured(run)), *speed.rooflines(run, measured(run))]
    assert [chart.name for chart in charts] == [
        "speedup-lenet",
        "speedup-lenet-graphs",
        "roofline",
        "roofline-graphs",
    ]
    assert [figure.axes[0].get_title() for figure in drawn[:2]] == [
        "forward\ngeometric mean 2.00",
        "forward\ngeometric mean 8.00",
    ]
    assert [line(figure.axes[0], "ours") for figure in drawn[2:]] == [[(2000, 0.5)], [(2000, 2.0)]]


def test_no_roofline_without_a_floor() -> None:
    run = run_of(speed_of(3.0, family="steps"))
    assert list(speed.rooflines(run, measured(run))) == []


def test_accuracy(drawn: list[Figure]) -> None:
    run = run_of(
        Accuracy("N(0, 1)", "float32", "output", {"eager": 2.0, "compile": 3.0, "ours": 0.5}),
        Accuracy("constant", "float32", "output", {"eager": math.inf, "ours": 0.0}),
        Accuracy("constant", "float32", "grad_input", {"eager": math.nan, "ours": 1.0}),
        Accuracy("N(0, 1)", "bfloat16", "output", {"eager": 0.5, "ours": 0.6}),
    )
    first, second = beside.accuracy(run)
    assert (first.name, second.name) == ("accuracy-float32", "accuracy-bfloat16")
    assert "further off in 0 of 3" in first.alt
    assert "further off in 1 of 1" in second.alt
    assert "exact" in first.words
    assert "NaN" in first.words
    assert second.words == ""
    output = panel(drawn[0], "output")
    assert line(output, "eager") == [(2.0, 0.0), (beside.LARGEST_ULPS, 1.0)]
    assert line(output, "torch.compile") == [(3.0, 0.0)]
    assert line(output, "ours") == [(0.5, 0.0), (beside.SMALLEST_ULPS, 1.0)]
    assert line(panel(drawn[0], "grad_input"), "eager") == [(beside.LARGEST_ULPS, 1.0)]
    assert labels(output) == ["N(0, 1)", "constant"]


def test_memory(drawn: list[Figure]) -> None:
    run = run_of(
        speed_of(2.0, "a", peaks=(4000, 1000)), speed_of(2.0, "b"), speed_of(2.0, "c", peaks=(500, 500))
    )
    (chart,) = beside.memory(run, measured(run))
    assert "2 cells" in chart.alt
    assert "25% to 100%" in chart.alt
    (axes,) = drawn[0].axes
    assert line(axes, "eager") == [(4000, 0), (500, 1)]
    assert line(axes, "ours") == [(1000, 0), (500, 1)]
    assert labels(axes) == ["a", "c"]


def test_trend(drawn: list[Figure]) -> None:
    step = speed_of(1.5, "images", "LeNet-5 step", family="steps")
    runs = [run_of(speed_of(ratio), step, commit=f"c{ratio:g}") for ratio in (2.0, 4.0)]
    found = trend(runs, runs[1])
    assert found is not None
    chart = trends.ratios(runs[1], found)
    assert "forward lenet 2.00 to 4.00" in chart.alt
    above, steps, below, floorless = drawn[0].axes
    assert line(above, "lenet") == [(0, 2.0), (1, 4.0)]
    assert (above.get_title(), steps.get_title()) == ("forward", "whole training steps")
    assert line(steps, "LeNet-5 step") == [(0, 1.5), (1, 1.5)]
    assert line(below, "lenet") == [(0, 0.25), (1, 0.5)]
    assert [text.get_text() for text in floorless.texts] == ["no floor"]
    assert [text.get_text() for text in below.get_xticklabels()] == ["c2 2026-12-01", "c4 2026-12-01"]


def test_instructions(drawn: list[Figure]) -> None:
    uncounted = run_of(speed_of(2.0))
    runs = [run_of(*instructions(gain), commit=f"c{gain:g}") for gain in (1.0, 2.0)]
    chart = trends.host(runs[1], runs)
    assert chart is not None
    assert "forward 46,000" in chart.alt
    (axes,) = drawn[0].axes
    assert line(axes, "forward") == [(0, 92_000), (1, 46_000)]
    assert trends.host(uncounted, [*runs, uncounted]) is None


def test_no_text_is_cut_off_or_covers_another(drawn: list[Figure]) -> None:
    """The charts of a whole run: nothing lies outside its picture, and tick labels do not touch."""
    runs = [run_of(*whole(number), commit=f"a3f19c04b{number}") for number in range(3)]
    cells, last = measured(runs[2]), runs[2]
    found = trend(runs, last)
    assert found is not None
    list(speed.bars(last, cells))
    list(speed.rooflines(last, cells))
    list(beside.accuracy(last))
    list(beside.memory(last, cells))
    trends.ratios(last, found)
    trends.host(last, runs)
    assert len(drawn) == 5 + 1 + 2 + 5 + 1 + 1
    for figure in drawn:
        box = figure.get_tightbbox()  # in inches
        width, height = figure.get_size_inches()
        title = figure.get_suptitle()
        assert box.x0 >= -0.01, title
        assert box.y0 >= -0.01, title
        assert box.x1 <= width + 0.01, title
        assert box.y1 <= height + 0.01, title
        for axes in figure.axes:
            numbers = [text.get_window_extent() for text in axes.texts]
            for number, one in enumerate(numbers):
                assert not any(one.overlaps(other) for other in numbers[number + 1 :]), title
            for axis in (axes.xaxis, axes.yaxis):
                boxes = [label.get_window_extent() for label in axis.get_ticklabels() if label.get_text()]
                boxes = [box for box in boxes if box.width and _seen(axes, axis.axis_name, box)]
                for number, one in enumerate(boxes):
                    assert not any(one.overlaps(other) for other in boxes[number + 1 :]), title


def _seen(axes: Axes, name: str, box: object) -> bool:
    inside = axes.get_window_extent()
    place = (box.x0 + box.x1) / 2 if name == "x" else (box.y0 + box.y1) / 2  # type: ignore[attr-defined]
    low, high = (inside.x0, inside.x1) if name == "x" else (inside.y0, inside.y1)
    return bool(low - 1 <= place <= high + 1)


def test_a_dollar_in_a_name_is_printed(drawn: list[Figure]) -> None:
    run = Run(
        "r", "a1", environment("2026-12-01T10:00:00+00:00", "$x^"), [speed_of(2.0, "$\\frac", family="$")]
    )
    (chart,) = speed.bars(run, measured(run))
    assert chart.png
    assert labels(drawn[0].axes[0]) == ["$\\frac"]


@pytest.mark.parametrize(("low", "high"), [(1.0, 1.0), (0.9, 1.1), (1.0, 8.0), (0.1, 50.0), (1e-3, 1e9)])
def test_logarithmic_axes_have_two_numbers_or_more(low: float, high: float) -> None:
    axes = Figure().add_subplot()
    drawing.logarithmic(axes, "x", low, high)
    start, end = axes.get_xlim()
    assert start < low <= high < end
    seen = [tick for tick in axes.get_xticks() if start <= tick <= end]
    assert 2 <= len(seen) <= 8
    assert all("+" not in axes.xaxis.get_major_formatter()(tick) for tick in seen)

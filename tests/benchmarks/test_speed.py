"""The command `python -m benchmarks.speed`: arguments, figures, errors, files and exit codes."""

import gc
import json
import math
import random
import signal
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn

import fused_bn
from benchmarks import memory, timing
from benchmarks.comparison import DIRECTIONS, SHAPES, Case, Comparison, WrongResultError, grid
from benchmarks.speed import job, plots, results, tables
from benchmarks.speed.results import CaseResult, Results
from tests.benchmarks.lenet_data import one_thread  # noqa: F401

CPU = torch.device("cpu")
CASE = Case((4, 3, 5, 5), "channels_last", "float32")
PNG = b"\x89PNG\r\n\x1a\n"

pytestmark = pytest.mark.usefixtures("one_thread")


@pytest.fixture
def short(monkeypatch: pytest.MonkeyPatch) -> None:
    """Shortens readings to a millisecond."""
    monkeypatch.setattr(timing, "SLOT_SECONDS", 0.001)
    monkeypatch.setattr(job, "HOST_ROUNDS", 2)


def fabricated(speedups: dict[str, float], **fields: Any) -> Results:
    """Results of two cases in which ours takes one copy and eager `speedups`. Host time is half a copy."""
    environment = {"device": "CPU", "threads": 2, "torch": "2", "fused_bn": "1", "date": "2026-01-01T00:00"}
    environment |= {"fused_bn_capability": "avx2", "fused_bn_kernels": "compiled"}
    found = Results({"rounds": 3, "compile": False}, environment, **fields)
    for dtype in ("float32", "bfloat16"):
        timings = {
            direction: {"copy": [1.0] * 3, "eager": [value] * 3, "ours": [1.0] * 3}
            for direction, value in speedups.items()
        }
        kept = {"batch_norm": 100, "eager": 200, "ours": 100}
        found.results.append(CaseResult(Case((4, 3, 5, 5), "contiguous", dtype), timings, kept, dict(kept)))
    found.host = {"eager": [2e-4] * 3, "ours": [1e-4] * 3}
    return found


GOOD = {"forward": 4.0, "forward+backward": 3.5}


# Arguments


def test_defaults() -> None:
    args = job.arguments([])
    assert (args.rounds, args.compile, args.check, args.out) == (11, False, False, Path("results/speed"))
    assert tuple(args.shapes) == SHAPES
    assert len(job._cases(args)) == 6 * 2 * 2


def test_quick_is_short_unless_told_otherwise() -> None:
    args = job.arguments(["--quick"])
    assert args.rounds == 3
    assert len(args.shapes) == 2
    assert job.arguments(["--quick", "--rounds", "7"]).rounds == 7


def test_selection() -> None:
    argv = ["--shapes", "2x3x4x5", "7x1x1x1", "--dtypes", "bfloat16", "--only", "2x3x4x5 channels_last"]
    assert job._cases(job.arguments(argv)) == [Case((2, 3, 4, 5), "channels_last", "bfloat16")]


@pytest.mark.parametrize(
    ("argv", "message"),
    [
        (["--rounds", "0"], "must be at least 1"),
        (["--threads", "-1"], "must be at least 1"),
        (["--device", "toaster"], "is no device"),
        (["--dtypes", "int8"], "invalid choice"),
        (["--shapes", "3x4"], "must be NxCxHxW"),
        (["--shapes", "3xCx4x4"], "must be NxCxHxW"),
        (["--shapes", "0x3x4x4"], "must be NxCxHxW"),
        (["--shapes", "1x3x1x1"], "two values a channel or more"),
        (["--only", "no such case"], "no case has 'no such case' in its name"),
        (["--quick", "--compile"], "not allowed with"),
    ],
)
def test_wrong_arguments(argv: list[str], message: str, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit, match="2"):
        job.arguments(argv)
    assert message in capsys.readouterr().err


# Figures


def test_the_ratio_is_taken_within_a_round() -> None:
    """The machine is ten times slower in two rounds. Ratios of medians would be 10 and 0.1."""
    seconds = {"copy": [1.0, 1.0, 5.0], "eager": [4.0, 40.0, 40.0], "ours": [2.0, 20.0, 10.0]}
    assert results.speedup(seconds) == 2.0
    assert results.copies(seconds, "eager") == 40.0
    assert results.copies(seconds, "ours") == 10.0


def test_required_figures() -> None:
    found = fabricated(GOOD)
    found.results[1].timings["forward"]["eager"] = [16.0] * 3
    found.results[1].kept_bytes["ours"] = 150
    figures = {figure.name: figure for figure in found.requirements()}
    values = [round(figure.measured, 6) for figure in figures.values()]
    assert values == [8.0, 3.5, 3.5, 0.5, 1.5, 1.0]  # the first is the square root of 4 * 16
    assert [figure.met for figure in figures.values()] == [True, True, True, True, False, True]
    assert "forward, times faster than eager, geometric mean of 2 cases" in figures
    assert "the worst cell (4x3x5x5 contiguous bfloat16, forward+backward), times faster" in figures


def test_nothing_measured_requires_nothing() -> None:
    assert Results({}, {}).requirements() == []


@pytest.mark.parametrize(
    ("speedups", "host", "peak", "missed"),
    [
        (GOOD, 0.7, 100, 0),
        ({**GOOD, "forward": 3.99}, 0.7, 100, 1),
        ({**GOOD, "forward+backward": 3.49}, 0.7, 100, 1),
        ({**GOOD, "forward+backward": 1.49}, 0.7, 100, 2),  # the mean and the worst cell
        (GOOD, 0.71, 100, 1),
        (GOOD, 0.7, 101, 1),
    ],
)
def test_check_fails_where_a_figure_is_missed(
    speedups: dict[str, float], host: float, peak: int, missed: int, tmp_path: Path
) -> None:
    found = fabricated(speedups)
    found.host["ours"] = [host * 2e-4] * 3
    found.results[0].peak_bytes["ours"] = peak
    assert sum(not figure.met for figure in found.requirements()) == missed
    assert job._write_results(found, job.arguments(["--out", str(tmp_path)])) == 0
    checked = job.arguments(["--check", "--out", str(tmp_path)])
    assert job._write_results(found, checked) == (1 if missed else 0)


# Timing


def test_interleaved_gives_every_slot_one_turn_a_round() -> None:
    turns: list[str] = []
    slots = {name: lambda name=name: turns.append(name) for name in "abc"}
    times = timing.interleaved(slots, 4, CPU, random.Random(0), slot_seconds=0)
    assert {name: len(values) for name, values in times.items()} == {"a": 4, "b": 4, "c": 4}
    untimed, timed = turns[-24::2], turns[-23::2]
    assert untimed == timed  # each turn starts with an untimed call
    rounds = [timed[i : i + 3] for i in range(0, 12, 3)]
    assert all(sorted(turn) == ["a", "b", "c"] for turn in rounds)
    assert len({tuple(turn) for turn in rounds}) > 1
    again: list[str] = []
    slots = {name: lambda name=name: again.append(name) for name in "abc"}
    timing.interleaved(slots, 4, CPU, random.Random(0), slot_seconds=0)
    assert again == turns  # one seed gives one order


def test_slots_last_as_long_as_asked(monkeypatch: pytest.MonkeyPatch) -> None:
    clock = 0.0

    def call() -> None:
        nonlocal clock
        clock += 1e-4

    monkeypatch.setattr("time.perf_counter", lambda: clock)
    calls = timing.calls_lasting(0.02, call, CPU)
    assert 200 <= calls <= 400
    assert timing.seconds(call, calls, CPU) == pytest.approx(1e-4)


def test_no_garbage_collection_while_timing() -> None:
    seen: list[bool] = []
    timing.interleaved({"a": lambda: seen.append(gc.isenabled())}, 1, CPU, random.Random(0), 0)
    assert seen
    assert not any(seen)
    assert gc.isenabled()


# Memory


def test_kept_bytes() -> None:
    input = torch.randn(8, 4, 6, 6, requires_grad=True)
    norm = nn.BatchNorm2d(4)
    assert memory.kept_bytes(norm, input) == input.nbytes + 2 * 4 * 4  # mean and invstd
    relu = nn.Sequential(norm, nn.ReLU())
    assert memory.kept_bytes(relu, input) == 2 * input.nbytes + 2 * 4 * 4
    assert memory.kept_bytes(nn.Identity(), input) == 0


def test_peak_bytes() -> None:
    def work() -> None:
        torch.empty(3_000_000, dtype=torch.uint8)  # freed at once
        held = [torch.empty(1_000_000, dtype=torch.uint8) for _ in range(4)]
        del held

    assert memory.peak_bytes(work, CPU) == pytest.approx(4_000_000, rel=0.01)


@pytest.mark.needs_extension
def test_ours_needs_no_more_than_batch_norm_alone() -> None:
    result = CaseResult(CASE)
    comparison = Comparison(CASE, CPU)
    job._measure_memory(comparison, result, CPU)
    a_channel = 4 * CASE.shape[1]
    assert result.kept_bytes["ours"] <= result.kept_bytes["batch_norm"] + 2 * a_channel  # mean_lo, the bias
    assert result.peak_bytes["ours"] < result.peak_bytes["batch_norm"] < result.peak_bytes["eager"]


# Wrong results


class Wrong(fused_bn.BatchNorm2d):
    """Our norm with wrong outputs, made by `spoil`."""

    def forward(self, input: Tensor, residual: Tensor | None = None) -> Tensor:
        output = super().forward(input, residual)
        return spoil_gradient(output) if self.spoils == "gradient" else output * (1 + 1e-2)

    spoils = "output"


def spoil_gradient(output: Tensor) -> Tensor:
    """The output is right, but its gradient is one percent too large."""
    spoiled = 1.01 * output
    return spoiled - (spoiled - output).detach()


@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
@pytest.mark.parametrize(("spoils", "named"), [("output", "output"), ("gradient", "grad_")])
def test_a_wrong_kernel_is_refused(
    spoils: str, named: str, dtype: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    case = Case((64, 8, 12, 12), "contiguous", dtype)
    Comparison(case, CPU).check()
    monkeypatch.setattr(Wrong, "spoils", spoils)
    monkeypatch.setattr(fused_bn, "BatchNorm2d", Wrong)
    with pytest.raises(WrongResultError, match=f"ours: {named}"):
        Comparison(case, CPU).check()


def test_wrong_running_statistics_are_refused() -> None:
    comparison = Comparison(CASE, CPU)
    norm = comparison.modules["ours"]
    assert isinstance(norm, nn.BatchNorm2d)
    norm.momentum = 0.2
    with pytest.raises(WrongResultError, match="ours: running_"):
        comparison.check()


@pytest.mark.usefixtures("short")
def test_a_wrong_cell_is_not_timed_and_fails(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    class WrongHalf(fused_bn.BatchNorm2d):
        def forward(self, input: Tensor, residual: Tensor | None = None) -> Tensor:
            output = super().forward(input, residual)
            return output + 1 if input.dtype is torch.bfloat16 else output

    monkeypatch.setattr(fused_bn, "BatchNorm2d", WrongHalf)
    argv = ["--shapes", "4x3x5x5", "--only", "contiguous", "--rounds", "2", "--out", str(tmp_path)]
    assert job.main(argv) == 1
    right, wrong = json.loads((tmp_path / "results.json").read_text())["cases"]
    assert right["wrong"] is None
    assert list(right["timings"]) == list(DIRECTIONS)
    assert "output is not eager's" in wrong["wrong"]
    assert wrong["timings"] == {}
    captured = capsys.readouterr()
    assert "WRONG, not timed: 4x3x5x5 contiguous bfloat16" in captured.err
    assert "WRONG" in captured.out


# The job


@pytest.mark.usefixtures("short")
def test_whole_job(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    markdown = tmp_path / "table.md"
    argv = ["--shapes", "4x3x5x5", "--rounds", "2", "--out", str(tmp_path / "new" / "directory")]
    assert job.main([*argv, "--markdown", str(markdown), "--seed", "3"]) == 0
    found = json.loads((tmp_path / "new" / "directory" / "results.json").read_text())
    assert found["format"] == 1
    assert found["interrupted"] is False
    assert found["arguments"]["seed"] == 3
    for fact in ("torch", "device", "threads", "date", "fused_bn_capability"):
        assert fact in found["environment"]
    assert [case["id"] for case in found["cases"]] == [case.id for case in grid(((4, 3, 5, 5),))]
    for case in found["cases"]:
        for direction in DIRECTIONS:
            assert {row: len(values) for row, values in case["timings"][direction].items()} == {
                "copy": 2,
                "eager": 2,
                "ours": 2,
            }
            assert case["speedup"][direction] > 0
        assert set(case["kept_bytes"]) == set(case["peak_bytes"]) == {"batch_norm", "eager", "ours"}
    assert len(found["host"]["ours"]) == 2
    assert [figure["bound"] for figure in found["required"]] == [4.0, 3.5, 1.5, 0.7, 1.01, 1.0]
    assert (tmp_path / "new" / "directory" / "speedup.png").read_bytes().startswith(PNG)
    printed = capsys.readouterr().out
    for text in (printed, markdown.read_text()):
        assert "4x3x5x5" in text
        assert "geometric mean of 4 cases" in text
        assert "required: at least 4.00" in text


@pytest.mark.usefixtures("short")
@pytest.mark.parametrize(("call", "kept"), [(1, 0), (3, 1)])
def test_ctrl_c_keeps_what_was_measured(
    call: int, kept: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Interrupts this call of `interleaved`: host time first, then the first case's two directions, ..."""
    original, calls = timing.interleaved, 0

    def interrupting(*args: Any, **kwargs: Any) -> Any:
        nonlocal calls
        calls += 1
        if calls == call:
            signal.raise_signal(signal.SIGINT)
        return original(*args, **kwargs)

    monkeypatch.setattr(timing, "interleaved", interrupting)
    path = tmp_path / "results.json"
    path.write_text("earlier")
    assert job.main(["--shapes", "4x3x5x5", "--rounds", "1", "--out", str(tmp_path)]) == 130
    if not kept:
        assert path.read_text() == "earlier"
        return
    found = json.loads(path.read_text())
    assert found["interrupted"] is True
    assert [list(case["timings"]) for case in found["cases"]] == [["forward"]]


def test_tables_and_plot_with_compile_and_gaps(tmp_path: Path) -> None:
    found = fabricated(GOOD)
    found.arguments["compile"] = True
    for result in found.results:
        for seconds in result.timings.values():
            seconds["compile"] = [8.0] * 3
    del found.results[1].timings["forward+backward"]
    first, second = tables.lines(found)
    assert first[3:] == ["4.0", "8.0", "1.0", "4.00", "3.5", "8.0", "1.0", "3.50"]
    assert second[7:] == ["-"] * 4
    assert len(first) == len(second) == len(tables.headings(found))
    rows = [line for line in tables.markdown(found).splitlines() if line.startswith("|")]
    assert [row.count("|") for row in rows] == [12] * 4
    plots.write(found, tmp_path / "plot.png")
    assert (tmp_path / "plot.png").read_bytes().startswith(PNG)


def test_quartiles_are_those_of_the_ratios() -> None:
    seconds = {"eager": [1.0, 2.0, 3.0, 4.0, 5.0], "ours": [1.0] * 5}
    assert plots.quartiles(seconds) == (2.0, 4.0)
    assert plots.quartiles({"eager": [3.0], "ours": [2.0]}) == (1.5, 1.5)
    assert math.isclose(results.speedup(seconds), 3.0)

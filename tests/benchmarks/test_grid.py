"""`pytest benchmarks`: it measures everything, correctly and in turns, and a failure never counts as fast."""

import argparse
import json
import random
import subprocess
import sys
from functools import partial
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch._dynamo.utils import counters

import fused_bn
from benchmarks import conftest, history, timing
from benchmarks.comparison import ALL_DIRECTIONS, Case, Comparison, WrongResultError
from benchmarks.gpu.captured import Captured
from benchmarks.grid import cold, group, peers, steps, table
from benchmarks.grid.cells import FAMILIES, Cell, cells
from benchmarks.grid.group import Effort, Measured, NeverExecutedError
from benchmarks.resnet.comparison import Comparison as ResNetComparison
from benchmarks.resnet.model import ResNet50
from tests.benchmarks.lenet_data import one_thread  # noqa: F401

CPU = torch.device("cpu")
CASE = Case((4, 3, 5, 5), "channels_last", "float32")
SHORT = Effort(rounds=3, slot_seconds=1e-4)
ROOT = Path(__file__).parent.parent.parent

pytestmark = pytest.mark.usefixtures("one_thread")


def cell(direction: str, case: Case = CASE) -> Cell:
    return Cell("lenet", case, direction)


def fabricated(**readings: list[float]) -> Measured:
    return Measured(cell("forward"), "cpu", readings)


# The cells


def test_the_grid_has_what_it_is_for() -> None:
    shapes = {each.case.shape for each in cells()}
    # Slow in other implementations: tall, wide, few channels with long rows, 7x7, odd C, NCHW half, many
    # rows.
    assert {
        (125000, 50),
        (32, 4096),
        (20, 6, 65536),
        (32, 2048, 7, 7),
        (8, 512, 7, 7),
        (16, 65, 33, 33),
    } <= shapes
    assert any(each.case.dtype == "float16" and each.case.layout == "contiguous" for each in cells())
    assert any(N * H * W > 130_000 and C == 256 for N, C, H, W in FAMILIES["slow elsewhere"][3:])
    ids = [each.id for each in cells()]
    assert len(set(ids)) == len(ids)
    by_case: dict[Case, list[str]] = {}
    for each in cells():
        by_case.setdefault(each.case, []).append(each.direction)
    assert all(tuple(directions) == ALL_DIRECTIONS for directions in by_case.values())


def test_the_quick_part_has_every_layout_and_direction() -> None:
    quick = [each for each in cells() if each.quick]
    assert {each.direction for each in quick} == set(ALL_DIRECTIONS)
    assert {each.case.layout for each in quick} == {"contiguous", "channels_last"}
    assert 0 < len(quick) < len(cells()) / 4


def test_bytes_are_each_tensor_once() -> None:
    tensor = 4 * 4 * 3 * 5 * 5
    tensors = {direction: cell(direction).bytes / tensor for direction in ALL_DIRECTIONS}
    assert tensors == {"forward": 2, "backward": 3, "forward+backward": 5, "evaluation": 2}
    half = Case(CASE.shape, CASE.layout, "bfloat16")
    assert cell("forward", half).bytes == tensor
    assert steps.STEP_CELLS[0].cell.bytes == 0


# Measuring


@pytest.mark.parametrize("direction", ALL_DIRECTIONS)
@pytest.mark.parametrize("shape", [(4, 3, 5, 5), (40, 3), (4, 3, 9)], ids=str)
def test_every_row_is_read(direction: str, shape: tuple[int, ...]) -> None:
    case = Case(shape, "contiguous", "float32")
    comparison = Comparison(case, CPU)
    comparison.check()
    measured = group.measure(cell(direction, case), comparison, SHORT)
    assert list(measured.readings) == ["copy", "eager", "ours"]
    assert all(len(values) == 3 for values in measured.readings.values())
    assert measured.errors == {}
    # Results are in new memory, except for the copy's.
    assert measured.peaks["copy"] == 0
    assert measured.peaks["ours"] >= case.tensor_bytes
    record = measured.record()
    assert (record.cell, record.direction, record.graph) == (case.id, direction, False)
    assert record.rows["eager"].ratio == 1


def test_evaluation_uses_running_statistics() -> None:
    comparison = Comparison(CASE, CPU)
    outputs = {row: slot()[0] for row, slot in comparison.slots("evaluation").items()}
    x = comparison.input.detach()
    mean, var = torch.linspace(-0.5, 0.5, 3), torch.linspace(0.5, 2, 3)
    norm = comparison.batch_norm
    z = (x - mean.view(3, 1, 1)) / (var.view(3, 1, 1) + norm.eps).sqrt()
    expected = torch.relu(z * norm.weight.view(3, 1, 1) + norm.bias.view(3, 1, 1))
    for row in ("eager", "ours"):
        torch.testing.assert_close(outputs[row], expected)


def test_numbers_of_a_row() -> None:
    """A copy of two units of traffic takes 2 s, which is forward's floor. Ratios are taken within a round."""
    measured = fabricated(copy=[2.0] * 3, eager=[8.0, 80.0, 80.0], ours=[4.0, 40.0, 20.0])
    numbers = measured.row("ours")
    assert numbers.ratio == 2
    assert numbers.seconds == 20
    assert numbers.share_of_floor == pytest.approx(2 / 20)
    backward = Measured(cell("backward"), "cpu", measured.readings)
    assert backward.floor_seconds == 3
    assert fabricated(eager=[1.0], ours=[1.0]).floor_seconds == 0


class Wrong(fused_bn.BatchNorm2d):
    """A row whose results are off by one percent from call `rights` on."""

    rights = 0

    def forward(self, input: Tensor, residual: Tensor | None = None) -> Tensor:
        type(self).rights -= 1
        return super().forward(input, residual) * (1.01 if self.rights < 0 else 1)


def test_a_wrong_row_is_not_timed(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(fused_bn, "BatchNorm2d", Wrong)
    comparison = Comparison(CASE, CPU)
    failures = {row: group.error_text(error) for row, error in comparison.failures().items()}
    assert list(failures) == ["ours"]
    measured = group.measure(cell("forward"), comparison, SHORT, failures=failures)
    assert list(measured.readings) == ["copy", "eager"]
    assert "output is not eager's" in measured.errors["ours"]
    assert measured.record().rows.keys() == {"copy", "eager"}
    evaluated = group.measure(cell("evaluation"), Comparison(CASE, CPU), SHORT)
    assert "output is not eager's" in evaluated.errors["ours"]


def test_a_row_that_turns_wrong_while_timed_fails(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(fused_bn, "BatchNorm2d", Wrong)
    monkeypatch.setattr(Wrong, "rights", 3)
    comparison = Comparison(CASE, CPU)
    comparison.check()
    with pytest.raises(WrongResultError, match="ours: output"):
        group.measure(cell("forward"), comparison, SHORT)


@pytest.mark.parametrize("readings", [[1e-9] * 3, [1e-9], [float("nan")] * 3], ids=str)
def test_what_never_ran_is_not_fast(readings: list[float], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(timing, "interleaved", lambda slots, *_: dict.fromkeys(slots, readings))
    with pytest.raises(NeverExecutedError, match=r"a: (3|1) readings of 0 calls"):
        group.read({"a": lambda: None}, SHORT, CPU)


def test_a_reading_of_nothing_fails(monkeypatch: pytest.MonkeyPatch) -> None:
    def interleaved(slots: dict[str, Any], rounds: int, *_: Any) -> dict[str, list[float]]:
        for _turn in range(2 * rounds):
            slots["a"]()
        return {"a": [1.0] * (rounds - 1) + [0.0]}

    monkeypatch.setattr(timing, "interleaved", interleaved)
    with pytest.raises(NeverExecutedError, match=r"a: a reading of 0\.0 s"):
        group.read({"a": lambda: None}, SHORT, CPU)


# Cold buffers


@pytest.mark.parametrize("direction", ALL_DIRECTIONS)
def test_cold_slots_run_on_sets_of_their_own(direction: str) -> None:
    comparison = Comparison(CASE, CPU)
    comparison.check()
    sets = cold.sets_of(comparison)
    assert len({each.input.data_ptr() for each in sets}) == len(sets) >= 2
    assert all(each.modules is comparison.modules for each in sets)
    measured = group.measure(cell(direction), comparison, SHORT, cold=True)
    assert measured.device == "cpu graph"
    assert measured.record().graph
    assert list(measured.readings) == ["copy", "eager", "ours"]


def test_a_replay_that_computes_nothing_fails(monkeypatch: pytest.MonkeyPatch) -> None:
    comparison = Comparison(CASE, CPU)
    monkeypatch.setattr(Captured, "replay", lambda _: None)
    with pytest.raises(WrongResultError, match="copy: is not the input"):
        group.measure(cell("forward"), comparison, SHORT, cold=True)


def test_a_call_that_computes_nothing_fails(monkeypatch: pytest.MonkeyPatch) -> None:
    """It fails even if it gets the memory of eager's last result."""
    comparison = Comparison(CASE, CPU)
    slots = comparison.slots("forward")
    left: list[Tensor] = []

    def eager() -> tuple[Tensor, ...]:
        left[:] = slots["eager"]()
        return tuple(left)

    lazy = {**slots, "eager": eager, "ours": lambda: tuple(left)}
    monkeypatch.setattr(comparison, "slots", lambda _: lazy)
    measured = group.measure(cell("forward"), comparison, SHORT)
    assert "output is not eager's" in measured.errors["ours"]


def test_a_row_that_cannot_be_captured_costs_the_others_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    class Refuses(cold.ColdSlot):
        def __init__(self, calls: list[Any], device: torch.device) -> None:
            if "ours" in repr(calls[0]):
                raise RuntimeError("not while capturing")
            super().__init__(calls, device)

    class Ours:
        def __call__(self) -> tuple[Tensor, ...]:
            raise AssertionError

        def __repr__(self) -> str:
            return "ours"

    comparison = Comparison(CASE, CPU)
    original = Comparison.slots
    monkeypatch.setattr(Comparison, "slots", lambda self, d: {**original(self, d), "ours": Ours()})
    monkeypatch.setattr(group, "ColdSlot", Refuses)
    measured = group.measure(cell("forward"), comparison, SHORT, cold=True)
    assert measured.errors == {"ours": "RuntimeError: not while capturing"}
    assert list(measured.readings) == ["copy", "eager"]


# Peers


class PixelNorm(nn.BatchNorm2d):
    """A layer like apex': for (N, H, W, C)."""

    def __init__(self, channels: int, fuse_relu: bool) -> None:
        super().__init__(channels)
        assert fuse_relu

    def forward(self, input: Tensor) -> Tensor:
        return torch.relu(super().forward(input.permute(0, 3, 1, 2))).permute(0, 2, 3, 1)


class InPlace(nn.BatchNorm2d):
    """A layer like inplace_abn's: it overwrites its input."""

    def __init__(self, channels: int, activation: str, activation_param: float) -> None:
        super().__init__(channels)
        self.relu = partial(nn.functional.leaky_relu, negative_slope=activation_param)
        assert activation == "leaky_relu"

    def forward(self, input: Tensor) -> Tensor:
        output = self.relu(super().forward(input.clone()))
        input.mul_(0)
        return output


def test_peers_are_compared_where_they_are_installed(monkeypatch: pytest.MonkeyPatch) -> None:
    layers = SimpleNamespace(BatchNormAct2d=lambda c: nn.Sequential(nn.BatchNorm2d(c), nn.ReLU()))
    monkeypatch.setitem(sys.modules, "timm.layers", layers)
    monkeypatch.setitem(
        sys.modules, "apex.contrib.groupbn.batch_norm", SimpleNamespace(BatchNorm2d_NHWC=PixelNorm)
    )
    monkeypatch.setitem(sys.modules, "inplace_abn", SimpleNamespace(InPlaceABN=InPlace))
    cuda = torch.device("cuda")
    half = Case(CASE.shape, "channels_last", "float16")
    assert list(peers.installed(half, cuda)) == ["apex groupbn", "timm"]
    assert list(peers.installed(CASE, cuda)) == ["inplace_abn and a copy", "timm"]
    assert peers.installed(CASE, CPU) == {}
    assert peers.installed(Case((40, 3), "contiguous", "float32"), cuda) == {}
    for case in (half, CASE):
        comparison = Comparison(case, CPU, peers=peers.installed(case, cuda))
        comparison.check()
        measured = group.measure(cell("forward+backward", case), comparison, SHORT)
        assert list(measured.readings) == ["copy", "eager", "ours", *comparison.peers]


def test_a_peer_that_fails_costs_the_others_nothing() -> None:
    def broken(channels: int) -> nn.Module:
        norm = nn.BatchNorm2d(channels)
        norm.register_forward_hook(lambda *_: 1 / 0)
        return norm

    comparison = Comparison(CASE, CPU, peers={"broken": broken})
    failures = {row: group.error_text(error) for row, error in comparison.failures().items()}
    measured = group.measure(cell("forward"), comparison, SHORT, failures=failures)
    assert measured.errors == {"broken": "ZeroDivisionError: division by zero"}
    assert list(measured.readings) == ["copy", "eager", "ours"]


def test_a_peer_that_cannot_be_made_costs_the_others_nothing() -> None:
    comparison = Comparison(CASE, CPU, peers={"odd": lambda _: nn.Identity()})
    failures = comparison.failures()
    assert "Identity has no weight, bias" in str(failures["odd"])
    assert list(comparison.modules) == ["eager", "ours"]


# Training steps


def test_lenet_steps() -> None:
    measured = steps.measure(steps.STEP_CELLS[0], CPU, SHORT)
    assert list(measured.readings) == ["eager", "ours"]
    record = measured.record()
    assert (record.family, record.bytes, record.floor_seconds) == ("steps", 0, 0)
    assert record.rows["ours"].share_of_floor == 0
    assert all(peak > 0 for peak in measured.peaks.values())


def test_the_compiled_lenet_is_compiled(monkeypatch: pytest.MonkeyPatch) -> None:
    """In one graph, which is not compiled to code here."""
    monkeypatch.setattr(torch, "compile", partial(torch.compile, backend="eager"))
    before = counters["stats"]["unique_graphs"]
    made = steps.lenet_steps(steps.STEP_CELLS[0].case, CPU, compile=True)
    assert list(made) == ["eager", "compile", "ours"]
    assert counters["stats"]["unique_graphs"] == before + 1


@pytest.mark.parametrize("row", ["eager", "ours"])
def test_a_peak_does_not_depend_on_gradients_left_behind(row: str) -> None:
    """The second measurement's profiler sees that the first one's gradients are freed."""
    step = steps.lenet_steps(steps.STEP_CELLS[0].case, CPU, compile=False)[row]
    first, second = (step.peak_bytes(CPU) for _ in range(2))
    parameters = list(step.model.parameters())
    assert all(parameter.grad is not None for parameter in parameters)
    assert first == second > sum(parameter.nbytes for parameter in parameters)


def test_a_lenet_that_computes_something_else_is_not_timed(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(steps.LENET_ROWS, "ours", "none")
    with pytest.raises(WrongResultError, match="ours: losses"):
        steps.lenet_steps(steps.STEP_CELLS[0].case, CPU, compile=False)


def test_resnet_steps(monkeypatch: pytest.MonkeyPatch) -> None:
    small = partial(ResNet50, depths=(1, 1), width=8)
    monkeypatch.setattr(steps, "ResNetComparison", partial(ResNetComparison, make=small))
    small_cell = steps.StepCell("ResNet-50", Case((2, 3, 32, 32), "channels_last", "float32"))
    measured = steps.measure(small_cell, CPU, SHORT)
    assert list(measured.readings) == ["eager", "ours", "ours, recomputed"]


# The table


def test_lines_of_the_table() -> None:
    measured = fabricated(copy=[1e-3] * 3, eager=[8e-3] * 3, ours=[2e-3] * 3)
    measured.peaks = {"eager": 2_500_000, "ours": 1200}
    measured.errors = {"compile": "RuntimeError: no compiler"}
    assert table.lines(measured) == [
        ("copy", "1 ms", "", "0.0", "", ""),
        ("eager", "8 ms", "1.00", "0.0", "12 %", "2.5 MB"),
        ("ours", "2 ms", "4.00", "0.0", "50 %", "1.2 kB"),
        ("compile", "FAILED", "", "", "", ""),
    ]
    assert table.terminal([measured]).row_count == 5


def test_the_worst_come_first() -> None:
    groups = [fabricated(eager=[float(i)], ours=[2.0]) for i in (4, 1, 3, 7, 2, 6)]
    assert [text.split("x")[0] for text in table.worst(groups)] == ["0.50", "1.00", "1.50", "2.00", "3.00"]


@pytest.mark.parametrize(
    ("seconds", "text"), [(2.5, "2.5 s"), (1.234e-3, "1.23 ms"), (5e-5, "50 us"), (3e-9, "3 ns")]
)
def test_durations(seconds: float, text: str) -> None:
    assert table.duration(seconds) == text


# pytest


def test_a_group_under_pytest_benchmark(tmp_path: Path) -> None:
    """Its readings become pytest-benchmark's, and a record of the history."""
    pytest.importorskip("pytest_benchmark")
    wanted = "(LeNet-5 or (64x16x10x10 and contiguous-float32-evaluation)) and not compile"
    command = [sys.executable, "-m", "pytest", "benchmarks", "-q", "-m", "quick", "-k", wanted]
    command += ["-p", "no:cacheprovider"]
    command += [f"--record-to={tmp_path / 'history'}", "--benchmark-json", str(tmp_path / "found.json")]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=300)
    assert done.returncode == 0, done.stdout + done.stderr
    assert "The least gained on eager" in done.stdout
    found = json.loads((tmp_path / "found.json").read_text())["benchmarks"]
    (run,) = history.load(tmp_path / "history")
    records = {record.direction: record for record in run.of(history.Speed)}
    assert records.keys() == {"evaluation", "LeNet-5 step"}
    evaluation = [each for each in found if "evaluation" in each["group"]]
    assert [each["params"]["row"] for each in evaluation] == ["copy", "eager", "ours"]
    for each in evaluation:
        row = records["evaluation"].rows[each["params"]["row"]]
        assert each["stats"]["median"] == pytest.approx(row.seconds, rel=1e-6)
        assert each["stats"]["rounds"] == group.QUICK.rounds
        assert each["extra_info"]["ratio_to_eager"] == row.ratio


@pytest.mark.parametrize(
    ("arguments", "record", "there"),
    [
        (["--record", "benchmarks"], True, None),
        (["benchmarks", "--record-to=elsewhere"], False, "elsewhere"),
        (["benchmarks"], False, None),
    ],
)
def test_what_is_measured_is_never_the_place_to_record_to(
    arguments: list[str], record: bool, there: str | None
) -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("paths", nargs="*")
    conftest.pytest_addoption(SimpleNamespace(addoption=parser.add_argument))  # type: ignore[arg-type]
    parsed = parser.parse_args(arguments)
    assert (parsed.paths, parsed.record, parsed.record_to) == (["benchmarks"], record, there)


def test_interleaved_order_depends_on_the_seed_alone(monkeypatch: pytest.MonkeyPatch) -> None:
    seen: list[Any] = []

    def interleaved(slots: dict[str, Any], rounds: int, _: Any, order: random.Random, *__: float) -> Any:
        seen.append(order.random())
        for slot in slots.values():
            for _turn in range(2 * rounds):
                slot()
        return {row: [1.0] * rounds for row in slots}

    monkeypatch.setattr(timing, "interleaved", interleaved)
    for seed in (1, 1, 2):
        group.read({"a": lambda: None}, Effort(2, 1e-4, seed), CPU)
    assert seen[0] == seen[1] != seen[2]

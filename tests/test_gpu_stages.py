"""The stages of `python -m benchmarks.gpu` on the CPU, at tiny sizes: they run, and they catch faults."""

import json
import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from benchmarks.gpu import build, driver, graph, job, lenet, repeat, rows, sanitize, small_set, suite, table
from benchmarks.gpu.calls import Case, Tensors, differences, same_bits
from benchmarks.gpu.captured import Captured
from benchmarks.gpu.job import Job, SkippedError
from benchmarks.gpu.stages import EXIT_SKIPPED
from benchmarks.lenet.model import VARIANTS
from benchmarks.lenet.training import Data, Settings
from tests.lenet_data import one_thread, small_mnist  # noqa: F401

CPU = torch.device("cpu")
CASE = Case((4, 6, 9, 7), "channels_last")

pytestmark = [pytest.mark.needs_extension, pytest.mark.usefixtures("one_thread")]


@pytest.fixture(autouse=True)
def _without_gpu(monkeypatch: pytest.MonkeyPatch) -> None:
    """The stages take a GPU where there is one; here their own logic is tested."""
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)


def run(work: Callable[[Job], None], tmp_path: Path, smoke: bool = True) -> tuple[int, dict[str, Any]]:
    """The exit code and the readings of a stage."""
    file = tmp_path / "readings.json"
    argv = ["--readings", str(file), "--seconds", "100", *["--smoke"] * smoke]
    code = job.main(work, argv)
    return code, json.loads(file.read_text())


def test_without_a_gpu_a_stage_fails_and_says_why(tmp_path: Path) -> None:
    code, readings = run(repeat.work, tmp_path, smoke=False)
    assert code == 1
    assert "torch sees no CUDA device" in readings["failures"][0]


def test_a_stage_keeps_its_readings_whatever_ends_it(tmp_path: Path) -> None:
    def work(job: Job) -> None:
        job.readings["found"] = 1
        raise ValueError("broken")

    assert run(work, tmp_path) == (1, {"found": 1, "failures": ["ValueError: broken"]})


def test_a_stage_can_skip_itself(tmp_path: Path) -> None:
    def work(_: Job) -> None:
        raise SkippedError("no tool")

    code, readings = run(work, tmp_path)
    assert (code, readings["skipped"]) == (EXIT_SKIPPED, "no tool")


# repeat


def test_repeat(tmp_path: Path) -> None:
    code, readings = run(repeat.work, tmp_path)
    assert code == 0
    assert all(each["differing"] == [] for each in readings["cases"])
    assert set(readings["cases"][0]["plans"]) == {"forward", "backward"}
    assert readings["environment"]["torch"] == torch.__version__


def test_repeat_catches_a_run_that_differs_in_one_bit(monkeypatch: pytest.MonkeyPatch) -> None:
    backward, calls = Tensors.backward, []

    def sometimes_wrong(self: Tensors, statistics: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        gradients = backward(self, statistics)
        calls.append(1)
        if len(calls) == 3:
            gradients[1].view(torch.int32)[0] ^= 1
        return gradients

    monkeypatch.setattr(Tensors, "backward", sometimes_wrong)
    assert repeat.differing(CASE, CPU, 5, [lambda: None]) == ["run 2: grad_weight"]


def test_same_bits_tells_zeros_apart_and_takes_nan_for_itself() -> None:
    assert not same_bits(torch.tensor(0.0), torch.tensor(-0.0))
    assert same_bits(torch.tensor(torch.nan), torch.tensor(torch.nan))


def test_a_twin_is_independent() -> None:
    tensors = Tensors(CASE, CPU)
    twin = tensors.twin()
    assert differences(twin.both(), tensors.both()) == []
    assert twin.input.is_contiguous(memory_format=torch.channels_last)
    twin.both()
    assert differences(twin.updated(), tensors.updated()) == list(tensors.updated())
    tensors.refill()
    assert not same_bits(twin.input, tensors.input)


# graph


def test_graph(tmp_path: Path) -> None:
    code, readings = run(graph.work, tmp_path)
    assert code == 0
    assert [each["scenario"] for each in readings["cases"]] == list(graph.SCENARIOS)


@pytest.mark.parametrize("scenario", graph.SCENARIOS.values(), ids=graph.SCENARIOS)
def test_graph_catches_results_left_from_before(
    scenario: graph.Scenario, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(Captured, "replay", lambda _: None)
    assert len(scenario(CASE, CPU, 20)) >= graph.CHECKS


def test_graph_catches_a_wrong_count_of_batches(monkeypatch: pytest.MonkeyPatch) -> None:
    replay: Callable[[Any], None] = Captured.replay

    def twice(self: Any) -> None:
        replay(self)
        replay(self)

    monkeypatch.setattr(Captured, "replay", twice)
    found = graph.new_inputs(CASE, CPU, 20)
    assert "num_batches_tracked" in found[0]
    assert found[-1] == "20 replays counted 40 batches"


# table


@pytest.mark.parametrize(
    ("tensor_bytes", "l2_bytes", "sets"),
    [
        (409_600, 60 << 20, 308),  # 308 sets of two tensors are 252 MB, four times 63 MB
        (411_041_792, 60 << 20, 2),  # one would be enough; the end of a set is not to be found by the next
        (1000, 60 << 20, table.MOST_SETS),
        (1000, 0, 2),
    ],
)
def test_sets_exceed_l2(tensor_bytes: int, l2_bytes: int, sets: int) -> None:
    assert table.sets_beyond_l2(tensor_bytes, l2_bytes) == sets


def test_table(tmp_path: Path) -> None:
    code, readings = run(table.work, tmp_path)
    assert code == 0
    assert readings["bandwidth"]["copy"] > 0
    assert len(readings["cases"]) == len(table.SMOKE_CASES)
    for case in readings["cases"]:
        for direction in rows.DIRECTIONS:
            assert set(case["seconds"][direction]) == {"copy", "eager", "ours"}
            assert all(len(values) == table.SMOKE_ROUNDS for values in case["seconds"][direction].values())


class WrongBias(rows.Ours):
    """The operators, with an output that is missing and a gradient of the bias that is a little off."""

    def forward(self, tensors: Tensors) -> rows.Call:
        call = super().forward(tensors)
        return lambda: (torch.full_like(call()[0], torch.nan),)

    def backward(self, tensors: Tensors) -> rows.Call:
        call = super().backward(tensors)

        def slightly_wrong() -> tuple[Tensor, ...]:
            grad_input, grad_weight, grad_bias = call()
            return grad_input, grad_weight, grad_bias * 1.001 + 0.01

        return slightly_wrong


def test_a_wrong_row_is_not_timed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(rows, "Ours", WrongBias)
    code, readings = run(table.work, tmp_path)
    assert code == 1
    first = readings["cases"][0]
    assert [text.split(":")[0] for text in first["wrong"]] == ["ours, forward", "ours, backward"]
    assert "grad_bias" in first["wrong"][1]
    assert all(set(rows) == {"copy", "eager"} for rows in first["seconds"].values())


def test_no_time_left_is_a_failure_that_names_the_cases(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(Job, "left", -1.0)
    code, readings = run(table.work, tmp_path)
    assert code == 1
    assert readings["failures"] == [f"no time left for {case}" for case in table.SMOKE_CASES]


def test_the_copy_is_the_yardstick_and_ours_computes_what_eager_does() -> None:
    tensors = Tensors(CASE, CPU)
    rows.without_doubtful_gradients(tensors)
    assert torch.equal(rows.Copy().forward(tensors)()[0], tensors.input)
    for direction in rows.DIRECTIONS:
        results = [row.call(direction, tensors)() for row in (rows.Ours(), rows.Torch())]
        rows.compare("ours", direction, tensors, results[0][: len(rows.RESULTS[direction])], results[1])


# build, suite, sanitize, lenet


def test_build_is_for_the_gpu_that_is_here(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.cuda, "get_device_capability", lambda _: (9, 0))
    chosen = build.settings(torch.device("cuda"))
    assert (chosen["FORCE_CUDA"], chosen["TORCH_CUDA_ARCH_LIST"]) == ("1", "9.0")
    assert int(chosen["MAX_JOBS"]) >= 1


def test_suite_takes_the_tests_of_the_device_and_none_that_need_no_gpu() -> None:
    command = suite.command("cuda", Path("report.xml"))
    assert command[command.index("-k") + 1] == "cuda"
    ignored = {part.removeprefix("--ignore=") for part in command if part.startswith("--ignore=")}
    assert ignored == {"tests/simt", "tests/cuda"}
    assert all((driver.ROOT / path).is_dir() for path in ignored)


FAKE_SANITIZER = """#!/bin/sh
case "$1" in
--help) echo "  --kernel-name arg"; exit;;
--tool=initcheck) exec sleep 600;;
--tool=racecheck) findings="RACECHECK SUMMARY: 2 hazards displayed (1 error, 1 warning)"; code=9;;
*) findings="ERROR SUMMARY: 0 errors"; code=0;;
esac
echo "a case: one plan | another: ok"
echo "small set: done"
echo "========= $findings"
exit $code
"""


def test_sanitize_tells_the_tools_apart(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Two find nothing, one finds something, and one hangs, which costs the time that there is."""
    tool = tmp_path / "compute-sanitizer"
    tool.write_text(FAKE_SANITIZER)
    tool.chmod(0o755)
    monkeypatch.setenv("PATH", f"{tmp_path}:{os.environ['PATH']}")
    monkeypatch.setattr(sanitize, "require_kernels", lambda _: torch.device("cuda"))
    monkeypatch.setattr(Job, "left", 1.0)
    code, readings = run(sanitize.work, tmp_path)
    assert code == 1
    assert {tool["tool"]: tool["state"] for tool in readings["tools"]} == {
        "memcheck": "ok",
        "racecheck": "found",
        "synccheck": "ok",
        "initcheck": "timed out",
    }
    assert readings["failures"][0] == "racecheck: found, 2 findings in 1 calls"


def test_sanitize_without_the_tool_is_skipped(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PATH", str(tmp_path))
    code, readings = run(sanitize.work, tmp_path)
    assert (code, readings["skipped"]) == (EXIT_SKIPPED, "compute-sanitizer is not on PATH")


def test_small_set_is_right_and_holds_every_kind_of_exchange() -> None:
    from benchmarks.gpu.calls import plans

    found = {plan["exchange"] for case in small_set.cases() for plan in plans(case, CPU).values()}
    assert {"none", "cluster", "barrier"} <= found  # two kernels only where nothing else is possible
    for dtype in small_set.TOLERANCES:
        assert small_set.wrong(Tensors(Case((2, 33, 5, 13), "channels_last", dtype), CPU)) == []


def test_small_set_notices_a_wrong_result(monkeypatch: pytest.MonkeyPatch) -> None:
    forward = Tensors.forward
    monkeypatch.setattr(Tensors, "forward", lambda self: (forward(self)[0] * 1.01, forward(self)[1]))
    assert "output by" in small_set.wrong(Tensors(CASE, CPU))[0]


def test_lenet(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(lenet, "images", small_mnist)
    code, readings = run(lenet.work, tmp_path)
    assert code == 0
    assert readings["images"] == "stand-in"
    assert set(readings["steps"]) == {"fused-relu eager", "torch-relu eager"}
    assert set(readings["host"]) == {"forward", "forward+backward"}


class Deferred:
    """`Captured` as on a GPU, where a capture computes nothing."""

    def __init__(self, call: Callable[[], Tensor], device: torch.device, warm_up: int) -> None:
        assert (device, warm_up) == (CPU, 0)
        self.call = call

    def replay(self) -> None:
        self.result = self.call()


def test_lenets_replays_are_its_eager_steps(monkeypatch: pytest.MonkeyPatch) -> None:
    """The same batches in the same order, the warm-up's included."""
    data = Data.of(small_mnist(), CPU)
    settings = Settings(batch_size=64, device=CPU)
    monkeypatch.setattr(lenet, "Captured", Deferred)
    assert lenet.disagreement(VARIANTS["fused-relu"], data, settings) == ""


def test_lenet_catches_a_step_too_many() -> None:
    """Which is what the CPU's own `Captured` makes in place of a capture."""
    data = Data.of(small_mnist(), CPU)
    settings = Settings(batch_size=64, device=CPU)
    assert "step 3: loss" in lenet.disagreement(VARIANTS["fused-relu"], data, settings)


def test_random_images_stand_in_for_mnist(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    monkeypatch.delenv("FUSED_BN_DATA", raising=False)
    found = lenet.images()
    assert found.source == "random images"
    assert len(found.train_labels) == lenet.RANDOM_IMAGES

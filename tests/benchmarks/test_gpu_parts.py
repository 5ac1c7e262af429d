"""The parts of `python -m benchmarks.gpu` on the CPU, at tiny sizes: they run, and they catch faults."""

import json
import re
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from benchmarks.gpu import bits, build, correct, counters, forced, job, models, planned, rows, table, tests
from benchmarks.gpu.captured import Captured, own_stream
from benchmarks.gpu.job import Job, SkippedError
from benchmarks.gpu.parts import EXIT_AGAIN, EXIT_SKIPPED, append
from benchmarks.gpu.table import Bench, TimedRows
from fused_bn import planner
from tests.benchmarks.lenet_data import one_thread  # noqa: F401
from tests.cases import Case, Result, Tensors, run_fused

CPU = torch.device("cpu")
CASE = table.case((4, 6, 9, 7), "cl")

pytestmark = [pytest.mark.needs_extension, pytest.mark.usefixtures("one_thread")]


@pytest.fixture(autouse=True)
def _without_gpu(monkeypatch: pytest.MonkeyPatch) -> None:
    """The parts use a GPU if there is one. These tests are about the parts' own code."""
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)


Lines = list[dict[str, Any]]


@pytest.fixture
def run(tmp_path: Path) -> Callable[..., tuple[int, Lines]]:
    """Runs a part. Returns its exit code and the lines it adds."""
    file = tmp_path / "results.jsonl"
    file.touch()

    def run(work: Callable[[Job], None], part: str = "part", *argv: str) -> tuple[int, Lines]:
        before = len(file.read_text().splitlines())
        code = job.main(work, ["--file", str(file), "--part", part, "--smoke", *argv])
        return code, [json.loads(line) for line in file.read_text().splitlines()[before:]]

    return run


Runner = Callable[..., tuple[int, Lines]]


def values(lines: Lines, field: str) -> list[Any]:
    return [line[field] for line in lines if field in line]


# What all parts share


def test_without_a_gpu_a_part_fails_and_says_why(capsys: pytest.CaptureFixture[str]) -> None:
    assert job.main(bits.work, []) == 1
    assert "torch sees no CUDA device" in capsys.readouterr().out


def test_a_part_can_skip_itself(run: Runner) -> None:
    def work(_: Job) -> None:
        raise SkippedError("no tool")

    code, lines = run(work)
    assert (code, lines[0]["skipped"]) == (EXIT_SKIPPED, "no tool")


def test_each_case_is_begun_once_and_a_failure_costs_no_other(run: Runner, tmp_path: Path) -> None:
    append(tmp_path / "results.jsonl", "part", begun="done before")

    def check(number: int) -> dict[str, Any]:
        return {"inverse": 1 / number}

    cases = {"done before": 1, "zero": 0, "two": 2}
    code, lines = run(lambda job: job.each(cases, check))
    assert code == 1
    assert values(lines, "begun") == ["zero", "two"]
    assert values(lines, "failed") == ["zero: ZeroDivisionError: division by zero"]
    assert values(lines, "inverse") == [0.5]
    code, lines = run(lambda job: job.each({"late": 1}, check), "part", "--seconds", "1")
    assert values(lines, "failed") == ["no time left from late on"]


def test_a_lost_device_ends_the_process(monkeypatch: pytest.MonkeyPatch) -> None:
    def lost(*_: object) -> None:
        raise RuntimeError("an illegal memory access was encountered")

    monkeypatch.setattr(job, "synchronize", lost)
    with pytest.raises(SystemExit) as ended:
        Job("part", smoke=True).each({"one": 1, "two": 2}, lost)  # type: ignore[arg-type]
    assert ended.value.code == EXIT_AGAIN


def test_the_build_is_for_the_gpu_that_is_here_and_none_where_one_is_there(
    run: Runner, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(torch.cuda, "get_device_capability", lambda _: (9, 0))
    chosen = build.settings(torch.device("cuda"))
    assert (chosen["FORCE_CUDA"], chosen["TORCH_CUDA_ARCH_LIST"]) == ("1", "9.0")
    code, lines = run(build.work)  # compiles nothing
    assert code == 0
    assert values(lines, "environment")[0]["torch"] == torch.__version__


# table, forced


@pytest.mark.parametrize(
    ("tensor_bytes", "l2_bytes", "sets"),
    [
        (409_600, 60 << 20, 308),  # 308 sets of two tensors are 252 MB, four times L2's 63 MB
        (411_041_792, 60 << 20, 2),  # one is enough, but L2 must not keep its end
        (1000, 60 << 20, table.MOST_SETS),
        (1000, 0, 2),
    ],
)
def test_sets_exceed_l2(tensor_bytes: int, l2_bytes: int, sets: int) -> None:
    assert table.sets_beyond_l2(tensor_bytes, l2_bytes) == sets


def test_the_table_has_the_cases_of_the_first_readings() -> None:
    assert len({str(case) for case in table.CASES + table.MORE_CASES}) == 39
    assert len(table.CASES) == 30


def test_table(run: Runner) -> None:
    code, lines = run(table.work)
    assert code == 0
    for line, case in zip([each for each in lines if "us" in each], table.SMOKE_CASES, strict=True):
        assert list(line["us"]) == list(rows.directions(case))
        assert all(set(us) == {"copy", "eager", "ours"} for us in line["us"].values())
        assert line["floor"]["forward"] == pytest.approx(
            line["us"]["forward"]["copy"][1] * (1.5 if case.residual else 1), rel=1e-3, abs=1e-3
        )


def test_a_wrong_row_is_not_timed(run: Runner, monkeypatch: pytest.MonkeyPatch) -> None:
    ours = rows.ours

    def wrong(case: Case, tensors: Tensors) -> Tensor:
        """A row with results and gradients that are 10 % off, and NaN in evaluation."""
        output = ours(case, tensors)
        return output * 1.1 if case.training else torch.full_like(output, torch.nan)

    monkeypatch.setattr(rows, "ours", wrong)
    code, lines = run(table.work)
    assert code == 1
    assert all("ours" not in us for each in values(lines, "us") for us in each.values())
    assert sum("is not eager's" in text for text in values(lines, "failed")) == 5


@pytest.mark.parametrize("case", table.SMOKE_CASES, ids=str)
def test_torch_compile_computes_what_eager_does(case: Case) -> None:
    bench = Bench(case, CPU, smoke=True)
    for direction in rows.directions(case):
        timed = TimedRows(bench, direction)
        timed.add("compile", timed.calls(rows.compiled("aot_eager")))
        assert torch.equal(timed.slots["copy"].result[0][0], bench.sets[0].input)


def test_forced_plans_that_do_not_fit_are_told(run: Runner, monkeypatch: pytest.MonkeyPatch) -> None:
    @contextmanager
    def forcing(text: str) -> Iterator[None]:
        if text == "resident":
            raise ValueError("no room")
        yield

    monkeypatch.setattr(forced, "forced", forcing)
    monkeypatch.setattr(forced, "last_plan", lambda: "streamed group=2")
    code, lines = run(forced.work)
    assert code == 0
    assert len(values(lines, "asked")) == 5
    for line in lines:
        if "asked" in line:
            assert line["asked"] == {
                "": "streamed group=2",
                "resident": "refused: no room",
                "streamed": "streamed group=2",
            }
            assert set(line["us"]) == {"copy", "streamed group=2"}


# correct, repeat, graph


def test_correct_notices_a_wrong_result(run: Runner, monkeypatch: pytest.MonkeyPatch) -> None:
    assert run(correct.work)[0] == 0

    def slightly_wrong(case: Case, tensors: Tensors) -> Result:
        result = run_fused(case, tensors)
        result.grad_input.mul_(1.01)
        return result

    monkeypatch.setattr(correct, "run_fused", slightly_wrong)
    code, lines = run(correct.work, "again")
    assert code == 1
    assert all("grad_input off by" in text for text in values(lines, "failed"))


@pytest.mark.parametrize(("case", "plan"), correct.FEW, ids=str)
def test_plans_forced_under_sanitizers_fit(case: Case, plan: str) -> None:
    layout = planned.PLAN_LAYOUTS[case.layout]
    for way in ("forward", "backward"):
        made = planner.plan(case.shape, case.dtype, layout, "h200", way, case.residual, forced=plan)
        assert made.forced.startswith(plan.partition(" group")[0])


@pytest.mark.parametrize(("part", "times"), [("repeat", bits.SMOKE_RUNS), ("graph", bits.SMOKE_REPLAYS)])
def test_bits(part: str, times: int, run: Runner) -> None:
    code, lines = run(bits.work, part)
    assert code == 0
    assert values(lines, "times") == [times] * 2


def test_repeat_catches_a_run_that_differs_in_one_bit(monkeypatch: pytest.MonkeyPatch) -> None:
    step, calls = bits.step, []

    def sometimes_wrong(case: Case, tensors: Tensors) -> tuple[bits.Results, bits.Results]:
        found = step(case, tensors)
        calls.append(1)
        if len(calls) == 3:
            found[0]["weight"].view(torch.int32)[0] ^= 1
        return found

    monkeypatch.setattr(bits, "step", sometimes_wrong)
    assert bits.repeat(CASE, CPU, 3) == ["run 2: weight"]


def test_same_bits_tells_zeros_apart_and_takes_nan_for_itself() -> None:
    assert not bits.same_bits(torch.tensor(0.0), torch.tensor(-0.0))
    assert bits.same_bits(torch.tensor(torch.nan), torch.tensor(torch.nan))


@pytest.mark.parametrize("replays", [0, 2])
def test_graph_catches_results_left_from_before_and_a_wrong_count(
    replays: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    replay: Callable[[Any], None] = Captured.replay

    def wrongly(captured: Any) -> None:
        for _ in range(replays):
            replay(captured)

    monkeypatch.setattr(Captured, "replay", wrongly)
    found = bits.replay(CASE, CPU, bits.CHECKS)
    assert len(found) == 2 * bits.CHECKS
    assert all("num_batches_tracked" in text and ("output" in text) == (replays == 0) for text in found)


def test_own_stream_is_none_on_the_cpu() -> None:
    with own_stream(CPU):
        assert Captured(lambda: 1, CPU).result == 1


# What parts make of others' output


NCU = """==PROF== Connected to process 7
"ID","Process ID","Kernel Name","Context","Stream","Block Size","Grid Size","Device","CC","Metric Name","Metric Unit","Metric Value"
"0","7","void fused_bn::cuda::<unnamed>::batch_norm<fused_bn::cuda::Resident<fused_bn::cuda::Forward<float, (int)4>>>(T1::Params)","1","7","(256, 1, 1)","(528, 1, 1)","0","9.0","dram__bytes_read.sum","byte","103,000,064"
"0","7","void fused_bn::cuda::<unnamed>::batch_norm<fused_bn::cuda::Resident<fused_bn::cuda::Forward<float, (int)4>>>(T1::Params)","1","7","(256, 1, 1)","(528, 1, 1)","0","9.0","launch__registers_per_thread","register/thread","64"
"1","7","void fused_bn::cuda::<unnamed>::batch_norm<fused_bn::cuda::Resident<fused_bn::cuda::Backward<float, (int)4>>>(T1::Params)","1","7","(256, 1, 1)","(528, 1, 1)","0","9.0","launch__registers_per_thread","register/thread","72"
==PROF== Disconnected from process 7
"""  # noqa: E501


def test_counters_of_ncu() -> None:
    forward, backward = counters.parsed(NCU)
    name = (
        "void fused_bn::cuda::<unnamed>::batch_norm<fused_bn::cuda::Resident<fused_bn::cuda::Forward<float, "
    )
    assert forward["kernel"] == name
    assert (forward["bytes read"], forward["registers"], backward["registers"]) == (103_000_064, 64, 72)
    assert counters.parsed("==ERROR== no permission") == []
    command = counters.command("ncu", "smoke", Path("log"))
    assert command[command.index("--kernel-name-base") + 1] == "demangled"
    assert re.search(command[command.index("--kernel-name") + 1].removeprefix("regex:"), name)


def test_counters_without_ncu_are_skipped(run: Runner, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PATH", "/nowhere")
    code, lines = run(counters.work)
    assert (code, values(lines, "skipped")) == (EXIT_SKIPPED, ["ncu is not on PATH"])


def test_outcomes_of_tests(tmp_path: Path, run: Runner, monkeypatch: pytest.MonkeyPatch) -> None:
    file = tmp_path / "test_it.py"
    file.write_text(
        "import pytest\n"
        "def test_one_cpu(): pass\n"
        "def test_two_cpu(): assert 1 == 2, 'no'\n"
        "@pytest.mark.skip\n"
        "def test_three_cpu(): pass\n"
        "def test_other(): assert False\n"
    )
    for name in ("OMP_NUM_THREADS", "PYTHONHASHSEED"):
        monkeypatch.setenv(name, "0")  # the part's settings end with the test
    options = [str(file), "-q", "-k", "cpu", "--rootdir", str(tmp_path)]
    monkeypatch.setattr(tests, "options", lambda *_: options)
    code, lines = run(tests.work)
    assert code == 1
    assert values(lines, "counts")[-1] == {"passed": 1, "failed": 1, "skipped": 1}
    assert values(lines, "failed") == [
        "test_it.py::test_two_cpu: AssertionError: no assert 1 == 2",
        "pytest ended with exit code 1, 1 passed",
    ]


def test_models(run: Runner) -> None:
    code, lines = run(models.work, "models")
    assert code == 0
    assert values(lines, "model") == ["eager", "fused", "fused, recomputed"]

"""The command `python -m benchmarks.gpu`: its stages' limits and ends, its figures, table and plots."""

import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest

from benchmarks.gpu import driver, figures, plots, report, sanitize, suite, tables
from benchmarks.gpu.driver import Run
from benchmarks.gpu.stages import EXIT_SKIPPED, NAMES, REPORT_SECONDS, STAGES, Outcome, Stage, limit, state_of

PNG = b"\x89PNG\r\n\x1a\n"


def stage(name: str, least: float = 1) -> Stage:
    return Stage(name, least, "for a test")


def run_scripts(out: Path, scripts: dict[str, str], limits: dict[str, float] | None = None) -> Run:
    """A run whose stages are these lines of Python; `file` in them is the one for the readings."""
    run = Run(out, 60)

    def command(stage: Stage, file: Path, seconds: float) -> list[str]:
        assert seconds > 0
        return [sys.executable, "-c", f"file = {str(file)!r}\n{scripts[stage.name]}"]

    for name in scripts:
        run.stage(stage(name), (limits or {}).get(name, 30), command)
    return run


def states(run: Run) -> dict[str, str]:
    return {outcome.name: outcome.state for outcome in run.outcomes}


def written(out: Path) -> Any:
    return json.loads((out / "results.json").read_text())


# Stages


def test_a_failed_stage_does_not_stop_the_next(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    scripts = {
        "one": "import sys; print('what went wrong'); sys.exit(3)",
        "two": "import os; os.abort()",
        "three": "print('fine')",
        "four": f"import sys; sys.exit({EXIT_SKIPPED})",
    }
    run = run_scripts(tmp_path, scripts)
    assert states(run) == {"one": "failed", "two": "failed", "three": "ok", "four": "skipped"}
    assert run.failed
    told = capsys.readouterr().out
    assert "what went wrong" in told
    assert "fine" not in told
    assert "fine" in (tmp_path / "log.txt").read_text()


def test_skipped_is_no_failure(tmp_path: Path) -> None:
    assert not run_scripts(tmp_path, {"one": f"import sys; sys.exit({EXIT_SKIPPED})"}).failed


def test_a_hanging_stage_is_ended_with_all_that_it_started(tmp_path: Path) -> None:
    child = tmp_path / "child"
    hang = (
        "import signal, subprocess, sys, time\n"
        "signal.signal(signal.SIGTERM, signal.SIG_IGN)\n"
        "child = subprocess.Popen([sys.executable, '-c', 'import time; time.sleep(600)'])\n"
        f"open({str(child)!r}, 'w').write(str(child.pid))\n"
        "time.sleep(600)"
    )
    start = time.monotonic()
    run = run_scripts(tmp_path, {"hang": hang, "next": "pass"}, {"hang": 1.5})
    assert states(run) == {"hang": "timed out", "next": "ok"}
    assert run.failed
    assert time.monotonic() - start < 30
    assert ended(int(child.read_text()))


def ended(pid: int, seconds: float = 10) -> bool:
    """Whether the process is gone, or waits to be reaped by whoever inherited it."""
    deadline = time.monotonic() + seconds
    while time.monotonic() < deadline:
        try:
            if Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] == "Z":
                return True
        except FileNotFoundError:
            return True
        time.sleep(0.05)
    return False


def test_readings_of_a_stage_that_failed_are_kept(tmp_path: Path) -> None:
    save = "import json; json.dump({{'found': {}}}, open(file, 'w'))"
    scripts = {"one": save.format(1) + "; raise SystemExit(1)", "two": "pass", "three": save.format(3)}
    run_scripts(tmp_path, scripts)
    found = written(tmp_path)
    assert found["readings"] == {"one": {"found": 1}, "three": {"found": 3}}
    assert [each["state"] for each in found["stages"]] == ["failed", "ok", "ok"]


def test_half_written_readings_cost_nothing_else(tmp_path: Path) -> None:
    run = run_scripts(tmp_path, {"one": "open(file, 'w').write('{')"})
    assert states(run) == {"one": "ok"}
    assert written(tmp_path)["readings"] == {}


def test_a_stage_without_time_is_not_run(tmp_path: Path) -> None:
    run = run_scripts(tmp_path, {"one": "raise SystemExit"}, {"one": 0.5})
    assert states(run) == {"one": "not run"}
    assert run.failed


def test_ending_the_command_ends_the_stage(tmp_path: Path) -> None:
    pid = tmp_path / "pid"
    code = (
        "import sys; from pathlib import Path; from benchmarks.gpu import driver\n"
        f"sleep = \"import os, time; open({str(pid)!r}, 'w').write(str(os.getpid())); time.sleep(600)\"\n"
        "driver.Run._command = lambda *_: [sys.executable, '-c', sleep]\n"
        f"sys.exit(driver.main(['lenet', '--out', {str(tmp_path)!r}]))"
    )
    with subprocess.Popen(
        [sys.executable, "-c", code], cwd=driver.ROOT, stdout=subprocess.DEVNULL
    ) as command:
        deadline = time.monotonic() + 30
        while not (pid.exists() and pid.read_text()) and time.monotonic() < deadline:
            time.sleep(0.05)
        os.kill(command.pid, signal.SIGTERM)
        assert command.wait(30) == 128 + signal.SIGTERM
    assert ended(int(pid.read_text()))


@pytest.mark.parametrize(
    ("least", "later", "left", "expected"),
    [
        (10, (20, 30), 480, 430),  # all but what the others need at least
        (10, (), 480, 480),  # the last one may take the rest
        (100, (20, 30), 120, 100),  # its own least, though the others will have less than theirs
        (100, (20, 30), 60, 60),  # never more than there is
        (10, (20,), -5, 0),
    ],
)
def test_limits(least: float, later: Sequence[float], left: float, expected: float) -> None:
    assert limit(stage("it", least), [stage("later", each) for each in later], left) == expected


def test_the_least_of_all_stages_fits_into_the_default() -> None:
    default = driver.arguments(["--out", "x"]).minutes
    assert sum(each.least for each in STAGES) + REPORT_SECONDS <= 60 * default


def test_states() -> None:
    assert [state_of(code) for code in (0, 1, -6, EXIT_SKIPPED, None)] == [
        "ok",
        "failed",
        "failed",
        "skipped",
        "timed out",
    ]


# The command line


def test_list(capsys: pytest.CaptureFixture[str]) -> None:
    assert driver.main(["--list"]) == 0
    lines = capsys.readouterr().out.splitlines()
    assert [line.split()[0] for line in lines] == list(NAMES)


def test_every_stage_is_a_module() -> None:
    for name in NAMES:
        assert (driver.ROOT / "benchmarks" / "gpu" / f"{name}.py").exists()


@pytest.mark.parametrize(
    ("argv", "message"),
    [
        ([], "--out is required"),
        (["--out", "x", "bench"], "no stage is called 'bench'"),
        (["--out", "x", "--minutes", "0"], "must be above 0"),
    ],
)
def test_wrong_arguments(argv: list[str], message: str, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit, match="2"):
        driver.arguments(argv)
    assert message in capsys.readouterr().err


def test_the_driver_and_the_report_import_no_torch() -> None:
    code = "import sys; from benchmarks.gpu import driver, plots, report; assert 'torch' not in sys.modules"
    subprocess.run([sys.executable, "-c", code], cwd=driver.ROOT, check=True)


# Figures, table and plots


def case(name: str, factor: float, **rows: list[float]) -> dict[str, Any]:
    """Readings of one case of 2 MB a tensor: ours takes `factor` microseconds, backward twice that."""
    plan = {"mapping": "rows", "whole": True, "exchange": "cluster", "groups": 4, "group": 2}
    plan |= {"register_steps": 3, "shared_steps": 1, "streamed_steps": 0, "predicted_time": 2.0}
    seconds = {
        direction: {
            row: [times * factor * value * 1e-6 for value in values]
            for row, values in {"ours": [1.0, 1.0, 1.0], **rows}.items()
        }
        for direction, times in (("forward", 1), ("backward", 2))
    }
    plans = dict.fromkeys(seconds, plan)
    named = {"case": name, "tensor_bytes": 2_000_000, "eager_backend": "Native"}
    return {**named, "seconds": seconds, "plans": plans}


ROWS = {"copy": [1.0] * 3, "eager": [2.0, 4.0, 3.0], "compile": [1.5] * 3}


def results(*cases: dict[str, Any], smoke: bool = False) -> dict[str, Any]:
    bandwidth = {"copy": 4000.0, "read": 4200.0}
    lenet = {
        "batch": 64,
        "images": "random images",
        "host": {"forward": {"eager": [2e-5] * 3, "ours": [1e-5] * 3}},
        "steps": {"fused-relu eager": [1e-3] * 3, "fused-relu graph": [1e-4] * 3},
    }
    table = {"bandwidth": bandwidth, "cases": list(cases), "host": {}, "failures": ["a case was lost"]}
    outcomes = [vars(Outcome("table", "failed", 12.0, 200.0)), vars(Outcome("lenet", "ok", 5.0, 60.0))]
    environment = {"environment": {"device": "a GPU", "torch": "2.11.0", "revision": None}}
    return {
        "format": driver.FORMAT,
        "smoke": smoke,
        "stages": outcomes,
        "readings": {"repeat": environment, "table": table, "lenet": lenet},
    }


def test_figures_of_a_case() -> None:
    forward, backward = figures.figures(results(case("a", 2, **ROWS))["readings"]["table"])
    assert forward.ours == pytest.approx(2)
    assert forward.floor == pytest.approx(1)  # 4 MB at 4000 GB/s
    assert forward.share == pytest.approx(0.5)
    assert forward.gigabytes_per_second == pytest.approx(2000)
    assert forward.ratios["eager"] == pytest.approx(3)
    assert backward.ours == pytest.approx(4)
    assert backward.floor == pytest.approx(1.5)  # three tensors, not two
    assert backward.share == pytest.approx(0.375)


def test_the_ratio_is_taken_within_a_round() -> None:
    assert figures.ratio({"eager": [1.0, 20.0, 3.0], "ours": [1.0, 10.0, 1.0]}, "eager") == 2
    assert figures.ratio({"eager": [1.0]}, "eager") is None


def test_means_are_geometric_and_leave_out_what_is_not_there() -> None:
    with_rows, without = case("a", 2, **ROWS), case("b", 1, copy=[1.0] * 3)
    eight = case("c", 1, eager=[8 / 3 * 4.5] * 3)
    found = list(figures.figures(results(with_rows, without, eight)["readings"]["table"]))
    means = figures.mean_ratios(found, "eager")
    assert means["forward"] == pytest.approx(6)  # of 3 and 12
    assert means["forward + backward"] == pytest.approx(6)
    assert figures.mean_ratios(found, "nobody") == dict.fromkeys(means)


def test_text_says_what_counts() -> None:
    told = tables.text(results(case("a", 2, **ROWS), case("b", 1, copy=[1.0] * 3)))
    assert "device a GPU, torch 2.11.0" in told
    assert "FAILED table: a case was lost" in told
    assert "table     failed" in told
    assert "rows cluster 4x2 3+1+0" in told
    assert "50%" in told
    assert "eager: forward 3.00, backward 3.00, forward + backward 3.00" in told
    assert "eager / ours 2.00" in told
    assert "640,000" in told  # images a second in a graph
    assert "SMOKE" not in told
    line = next(line for line in told.splitlines() if line.startswith("b "))
    assert line.split()[2] == "-"  # no eager there


def test_text_and_plots_of_a_smoke_run_say_so(tmp_path: Path) -> None:
    found = results(case("a", 2, **ROWS), smoke=True)
    assert tables.text(found).startswith(tables.SMOKE)
    plots.write(found, tmp_path)
    assert {path.name for path in tmp_path.iterdir()} == {"ratios.png", "predicted.png", "lenet.png"}


@pytest.mark.parametrize("without", ["table", "lenet", "cases", "ours"])
def test_report_of_what_is_there(without: str, tmp_path: Path) -> None:
    """A stage that failed leaves a part of its readings, or none."""
    found = results(case("a", 2, **ROWS))
    readings = found["readings"]
    if without == "cases":
        readings["table"]["cases"] = []
    elif without == "ours":
        for seconds in readings["table"]["cases"][0]["seconds"].values():
            del seconds["ours"]
    else:
        del readings[without]
    (tmp_path / "results.json").write_text(json.dumps(found))
    assert report.main(tmp_path) == 0
    assert (tmp_path / "table.txt").read_text()
    for picture in tmp_path.glob("*.png"):
        assert picture.read_bytes().startswith(PNG)


# What stages make of others' output


def test_counts_of_a_junit_file(tmp_path: Path) -> None:
    file = tmp_path / "junit.xml"
    file.write_text(
        '<testsuites><testsuite><testcase classname="tests.a" name="one"/>'
        '<testcase classname="tests.a" name="two"><failure message="no"/></testcase>'
        '<testcase classname="tests.a" name="three"><skipped/></testcase>'
        '<testcase classname="tests.a" name="four"><error/></testcase></testsuite></testsuites>'
    )
    found = suite.summary(file)
    assert found == {
        "passed": 1,
        "failed": 2,
        "skipped": 1,
        "failed_tests": ["tests.a.two", "tests.a.four"],
    }


FINE = "2x4x2x2 contiguous float32: rows none 1x1 1+0+0 | rows none 1x1 1+0+0: ok\nsmall set: done\n"


@pytest.mark.parametrize(
    ("output", "exit_code", "state"),
    [
        (f"{FINE}========= ERROR SUMMARY: 0 errors\n", 0, "ok"),
        (f"{FINE}========= RACECHECK SUMMARY: 0 hazards displayed (0 errors, 0 warnings)\n", 0, "ok"),
        (f"{FINE}========= RACECHECK SUMMARY: 2 hazards displayed (0 errors, 2 warnings)\n", 0, "found"),
        (f"{FINE}========= ERROR SUMMARY: 3 errors\n", 9, "found"),
        (f"{FINE.replace('ok', 'WRONG: output by 1')}========= ERROR SUMMARY: 0 errors\n", 1, "wrong"),
        (FINE, 0, "wrong"),  # no summary: the tool was not there
        ("========= ERROR SUMMARY: 0 errors\n", 0, "wrong"),  # nothing was called
        ("========= Error: Device not supported\n", 1, "cannot attach"),
        (FINE.splitlines()[0], None, "timed out"),
    ],
)
def test_verdicts(output: str, exit_code: int | None, state: str) -> None:
    assert sanitize.verdict("memcheck", output, exit_code).state == state


def test_tools_look_at_our_kernels_where_they_can() -> None:
    assert "--kernel-name" in sanitize.command("tool", "racecheck", "--kernel-name arg")
    assert "--filter" in sanitize.command("tool", "racecheck", "--filter arg")
    assert "kns=fused_bn" not in sanitize.command("tool", "racecheck", "")
    assert "kns=fused_bn" not in sanitize.command("tool", "initcheck", "--kernel-name arg")

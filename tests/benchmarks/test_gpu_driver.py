"""The command `python -m benchmarks.gpu`: how it runs, limits and ends its parts, and its files."""

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import pytest

from benchmarks.gpu import driver, report
from benchmarks.gpu.driver import Run
from benchmarks.gpu.parts import BUILD, CALLS, EXIT_FOUND, EXIT_SKIPPED, PARTS, Part, append, lines_of


class Scripts(Run):
    """A run whose parts are lines of Python: `write` writes a line, and `begun` has the started cases."""

    def __init__(self, out: Path, scripts: dict[str, str]) -> None:
        super().__init__(out)
        self.scripts = scripts

    def command(self, part: Part, since: int, seconds: float) -> list[str]:
        assert seconds > 0
        prelude = (
            "import os, signal, subprocess, sys, time; from pathlib import Path\n"
            "from benchmarks.gpu.parts import append, lines_of\n"
            f"file, part, since = Path({str(self.file)!r}), {part.name!r}, {since}\n"
            "begun = [line['begun'] for line in lines_of(file, part, since) if 'begun' in line]\n"
            "def write(**fields): append(file, part, **fields)\n"
        )
        return [sys.executable, "-c", prelude + self.scripts[part.name]]


def run_scripts(out: Path, scripts: dict[str, str], seconds: float = 30, patience: float = 30) -> Scripts:
    run = Scripts(out, scripts)
    run.step((tuple(Part(name, seconds, "", patience) for name in scripts),), seconds)
    return run


def values(run: Run, field: str) -> dict[str, list[Any]]:
    """The values of a field in the lines of each part."""
    names = dict.fromkeys(json.loads(line)["part"] for line in run.file.read_text().splitlines())
    return {name: [each[field] for each in lines_of(run.file, name) if field in each] for name in names}


def test_a_failed_part_does_not_stop_the_next(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    scripts = {
        "one": "print('what went wrong'); sys.exit(1)",
        "two": "os.abort()",
        "three": "print('fine')",
        "four": f"sys.exit({EXIT_SKIPPED})",
        "five": f"sys.exit({EXIT_FOUND})",
        "six": "write(failed='a case')",
    }
    run = run_scripts(tmp_path, scripts)
    states = ["failed", "crashed", "ok", "skipped", "found", "failed"]
    assert values(run, "state") == {name: [state] for name, state in zip(scripts, states, strict=True)}
    assert run.failed
    printed = capsys.readouterr().out
    assert "what went wrong" in printed
    assert "fine" not in printed
    assert "fine" in (tmp_path / "log.txt").read_text()
    assert not run_scripts(tmp_path, {"three": "", "four": f"sys.exit({EXIT_SKIPPED})"}).failed


def test_a_case_that_crashes_or_hangs_costs_no_other(tmp_path: Path) -> None:
    cases = (
        "for case in 'abcd':\n"
        "    if case in begun: continue\n"
        "    write(begun=case)\n"
        "    if case == 'b': os.abort()\n"
        "    if case == 'c': time.sleep(600)\n"
        "    write(case=case)"
    )
    run = run_scripts(tmp_path, {"part": cases}, patience=2)
    assert values(run, "begun") == {"part": ["a", "b", "c", "d"]}
    assert values(run, "case") == {"part": ["a", "d"]}
    assert values(run, "failed") == {"part": ["crashed in b", "hung in c"]}
    assert values(run, "state") == {"part": ["failed"]}


def test_a_hanging_part_is_ended_with_all_that_it_started(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(driver, "GRACE_SECONDS", 0.2)
    child = tmp_path / "child"
    hang = (
        "signal.signal(signal.SIGTERM, signal.SIG_IGN)\n"
        "child = subprocess.Popen([sys.executable, '-c', 'import time; time.sleep(600)'])\n"
        f"open({str(child)!r}, 'w').write(str(child.pid))\n"
        "time.sleep(600)"
    )
    run = run_scripts(tmp_path, {"hang": hang, "late": ""}, seconds=2)
    assert values(run, "state") == {"hang": ["timed out"], "late": ["not run"]}
    assert ended(int(child.read_text()))


def ended(pid: int, seconds: float = 10) -> bool:
    """Whether the process has ended, possibly as a zombie."""
    deadline = time.monotonic() + seconds
    while time.monotonic() < deadline:
        try:
            if Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] == "Z":
                return True
        except FileNotFoundError:
            return True
        time.sleep(0.05)
    return False


def test_lanes_run_side_by_side(tmp_path: Path) -> None:
    """Each waits for the other's output."""
    wait = "write(there=1)\nwhile not any('there' in line for line in lines_of(file, {!r})): time.sleep(0.05)"
    run = Scripts(tmp_path, {"one": wait.format("two"), "two": wait.format("one")})
    run.step(tuple((Part(name, 30, ""),) for name in run.scripts), 30)
    assert values(run, "state") == {"one": ["ok"], "two": ["ok"]}


def test_ending_the_command_ends_the_part_and_packs_what_was_read(tmp_path: Path) -> None:
    pid = tmp_path / "pid"
    sleep = f"import os, time; open({str(pid)!r}, 'w').write(str(os.getpid())); time.sleep(600)"
    code = (
        "import sys; from benchmarks.gpu import driver\n"
        f"driver.Run.command = lambda *_: [sys.executable, '-c', {sleep!r}]\n"
        f"sys.exit(driver.main(['table', '--out', {str(tmp_path)!r}]))"
    )
    command = [sys.executable, "-c", code]
    with subprocess.Popen(command, cwd=driver.ROOT, stdout=subprocess.DEVNULL) as process:
        deadline = time.monotonic() + 30
        while not (pid.exists() and pid.read_text()) and time.monotonic() < deadline:
            time.sleep(0.05)
        process.send_signal(signal.SIGTERM)
        assert process.wait(30) == 128 + signal.SIGTERM
    assert ended(int(pid.read_text()))
    assert "build      killed" in (tmp_path / "table.txt").read_text()


def test_every_part_is_a_module_and_the_calls_fit_into_their_time() -> None:
    for part in (BUILD, *PARTS.values()):
        assert (driver.ROOT / "benchmarks" / "gpu" / f"{part.module or part.name}.py").exists()
    for steps in CALLS.values():
        lanes = [[[part for part in lane if part.name != "compiled"] for lane in step] for step in steps]
        longest = [max(sum(part.seconds for part in lane) for lane in step) for step in lanes]
        assert sum(longest) <= 120  # compiled gets the remaining time


@pytest.mark.parametrize(
    ("argv", "message"),
    [(["first"], "--out"), (["--out", "x", "bench"], "no call or part is called 'bench'")],
)
def test_wrong_arguments(argv: list[str], message: str, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit, match="2"):
        driver.arguments(argv)
    assert message in capsys.readouterr().err


def test_the_driver_imports_no_torch() -> None:
    code = "import sys; from benchmarks.gpu import driver; assert 'torch' not in sys.modules"
    subprocess.run([sys.executable, "-c", code], cwd=driver.ROOT, check=True)


FAKE_SANITIZER = """#!/bin/sh
if [ "$1" = --help ]; then echo "  --kernel-name arg"; exit; fi
echo "$PYTORCH_NO_CUDA_MEMORY_CACHING $*"
[ "$1" != --tool=racecheck ] || exit 9
"""


def test_sanitizers(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    tool = tmp_path / "compute-sanitizer"
    tool.write_text(FAKE_SANITIZER)
    tool.chmod(0o755)
    monkeypatch.setenv("PATH", f"{tmp_path}:{os.environ['PATH']}")
    run = Run(tmp_path)
    parts = [PARTS[name] for name in ("memcheck", "racecheck")]
    run.step((tuple(parts),), 30)
    assert values(run, "state") == {"memcheck": ["ok"], "racecheck": ["found"]}
    log = (tmp_path / "log.txt").read_text()
    assert "1 --tool=memcheck --error-exitcode=9 --print-limit=20 " in log
    assert " --kernel-name kns=fused_bn " in log.splitlines()[-1]
    assert "-m benchmarks.gpu.correct --part racecheck" in log.splitlines()[-1]
    monkeypatch.setenv("PATH", "/nowhere")
    run.step(((parts[0],),), 30)
    assert values(run, "state")["memcheck"] == ["ok", "skipped"]


# What is left


def row(shape: tuple[int, ...], factor: float, **others: list[float]) -> dict[str, Any]:
    """A case of the table. Ours takes `factor` microseconds forward and twice that backward."""
    us = {
        direction: {
            name: [times * factor * value for value in values]
            for name, values in {"copy": [1.0] * 3, "ours": [2.0] * 3, **others}.items()
        }
        for direction, times in (("forward", 1), ("backward", 2))
    }
    line = {"case": str(shape), "shape": shape, "dtype": "float32", "layout": "cf", "kind": "plain", "us": us}
    floor = {"forward": factor, "backward": 1.5 * factor}
    return {
        **line,
        "floor": floor,
        "predicted": dict.fromkeys(us),
        "plan": {"forward": "streamed"},
        "mean": True,
    }


def test_report(tmp_path: Path) -> None:
    file = tmp_path / "results.jsonl"
    append(file, "table", started=True, smoke=True)
    append(file, "table", **row((9, 9, 9, 9), 7))  # of an earlier run
    append(file, "table", started=True, smoke=False)
    append(file, "table", environment={"device": "a GPU", "driver": None})
    append(file, "table", **row((2, 3, 4, 5), 1, eager=[5.0, 6.0, 7.0]))
    append(file, "table", **row((6, 7, 8, 9), 2, eager=[24.0] * 3))
    append(file, "table", **row((1, 2, 3, 4), 3))
    append(file, "table", failed="a case was lost")
    forced = {"asked": {"": "resident", "streamed": "streamed"}, "direction": "forward", "floor": 2.0}
    times = {"copy": [2.0] * 3, "resident": [4.0] * 3, "streamed": [3.0] * 3}
    append(
        file,
        "forced",
        **{**row((2, 3, 4, 5), 1), **forced, "us": times, "predicted": {"streamed": 3.1, "resident": None}},
    )
    append(file, "tests", started=True)
    append(file, "tests", counts={"passed": 5})
    append(file, "tests", state="ok", seconds=1.0)
    with file.open("a") as lines:
        lines.write('{"part": "tests", "cou')
    printed = report.write(tmp_path)
    assert printed == (tmp_path / "table.txt").read_text()
    assert "device a GPU\n" in printed
    assert "tests      ok           1.0 s  5 passed" in printed
    assert "table      killed" in printed
    assert "FAILED table: a case was lost" in printed
    assert "9x9x9x9" not in printed
    assert "SMOKE" not in printed
    words = {
        line.split(" cf ")[0]: line.split()[3:] for line in printed.splitlines() if "float32 forward " in line
    }
    assert words["2x3x4x5"][:6] == ["forward", "1.0", "6.0", "2.0", "2.00", "3.00"]
    assert words["1x2x3x4"][2] == "-"  # no eager row there
    assert "eager/ours, forward: geometric mean 6.00 of 2 cases" in printed  # the mean of 3 and 12
    fastest, planned = printed[printed.index("forced:") :].splitlines()[3:5]
    assert fastest.split() == ["3.0", "1.50", "3.1", "streamed"]
    assert planned.split() == ["planned", "4.0", "2.00", "-", "resident"]
    assert json.loads((tmp_path / "results.json").read_text())["parts"]["tests"][1] == {
        "counts": {"passed": 5}
    }


def test_the_report_of_a_smoke_run_says_so(tmp_path: Path) -> None:
    run = Run(tmp_path, smoke=True)
    append(run.file, "table", started=True, smoke=True)
    assert report.write(tmp_path).startswith(report.SMOKE)

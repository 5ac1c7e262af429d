"""The benchmarks' jobs with a broken console, disk or number: no traceback, no lost result."""

import os
import resource
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import IO, Any

import pytest

from benchmarks import files, options
from benchmarks.compare import job as compare
from benchmarks.compare import record
from benchmarks.lenet import job as lenet
from benchmarks.resnet import job as resnet
from benchmarks.speed import job as speed
from benchmarks.sync import job as sync

ROOT = Path(__file__).resolve().parent.parent.parent

JOB = """
import sys
from pathlib import Path
from benchmarks import console, files

def main():
    for number in range(3000):
        print("accuracy \u00b1", number)
    files.write_whole(Path("results.json"), "all")
    {end}

console.run(main, failed={failed})
"""


def run(
    directory: Path, end: str = "return 0", failed: int = 1, **how: Any
) -> "subprocess.CompletedProcess[str]":
    """Runs a job that prints 50 kB, writes its results and returns this exit code."""
    env = {**os.environ, "PYTHONPATH": str(ROOT), **how.pop("env", {})}
    how.setdefault("stdout", subprocess.PIPE)
    command = [sys.executable, "-c", JOB.format(end=end, failed=failed)]
    return subprocess.run(command, cwd=directory, env=env, stderr=subprocess.PIPE, text=True, **how)


def full_device() -> IO[bytes]:
    return Path("/dev/full").open("wb")


def left_pipe() -> IO[bytes]:
    """The write end of a pipe whose reader has left, as with `| head -1`."""
    reader, writer = os.pipe()
    os.close(reader)
    return open(writer, "wb")


def impatient_pipe() -> IO[bytes]:
    """A pipe that nobody reads. It is full after 64 kB, and a writer must not wait for it."""
    reader, writer = os.pipe()
    os.set_blocking(writer, False)
    os.write(writer, b" " * 2**16)
    UNREAD.append(reader)
    return open(writer, "wb")


UNREAD: list[int] = []


@pytest.mark.parametrize(
    ("lost", "reason"),
    [
        (full_device, "No space left on device"),
        (left_pipe, "Broken pipe"),
        (impatient_pipe, "Resource temporarily unavailable"),
    ],
    ids=["full", "left", "impatient"],
)
def test_lost_output_costs_no_results(lost: Callable[[], IO[bytes]], reason: str, tmp_path: Path) -> None:
    """The job finishes. One sentence and the exit code say what was lost."""
    with lost() as output:
        ended = run(tmp_path, stdout=output)
    assert (tmp_path / "results.json").read_text() == "all"
    assert ended.returncode == 1
    assert ended.stderr.startswith("Not all output could be written: ")
    assert ended.stderr.endswith(f"{reason}\n")
    assert ended.stderr.count("\n") == 1


def test_closed_output_costs_no_results(tmp_path: Path) -> None:
    """Without standard output, as with `>&-`, Python's sys.stdout is None."""
    ended = run(tmp_path, stdout=None, preexec_fn=lambda: os.close(1))
    assert (ended.returncode, ended.stderr) == (0, "")
    assert (tmp_path / "results.json").read_text() == "all"


def test_characters_that_the_console_lacks(tmp_path: Path) -> None:
    """They become question marks of the same width instead of an error in the middle of a table."""
    ended = run(tmp_path, env={"PYTHONIOENCODING": "ascii"})
    assert (ended.returncode, ended.stderr) == (0, "")
    assert ended.stdout.startswith("accuracy ? 0\naccuracy ? 1\n")


@pytest.mark.parametrize(
    ("end", "code", "said"),
    [
        ("return 1", 1, ""),
        ("sys.exit(2)", 2, ""),
        ("raise KeyboardInterrupt", 130, ""),
        ("raise OSError(28, 'No space', 'x')", 1, "The job ended early: [Errno 28] No space: 'x'\n"),
        ("raise MemoryError", 1, "The job ended early: MemoryError\n"),
        ("raise Exception('stack\\nout of memory')", 1, "The job ended early: out of memory\n"),
    ],
)
def test_ends(end: str, code: int, said: str, tmp_path: Path) -> None:
    """One sentence and the exit code if the system refuses something."""
    ended = run(tmp_path, end)
    assert (ended.returncode, ended.stderr) == (code, said)


def test_an_error_has_the_code_that_the_job_has_for_it(tmp_path: Path) -> None:
    """Exit code 1 would mean that something is slower."""
    assert run(tmp_path, "raise OSError", failed=2).returncode == 2
    with full_device() as output:
        assert run(tmp_path, failed=2, stdout=output).returncode == 2
    assert "console.run(main, EXIT_ERROR)" in (ROOT / "benchmarks/compare/__main__.py").read_text()


def test_a_mistake_in_the_code_keeps_its_traceback(tmp_path: Path) -> None:
    """Other errors keep their traceback."""
    ended = run(tmp_path, "raise RuntimeError('size mismatch')")
    assert ended.returncode == 1
    assert "Traceback" in ended.stderr


def test_every_job_ends_so() -> None:
    """Every entry point is tested."""
    entries = [*(ROOT / "benchmarks").glob("*/__main__.py"), ROOT / "benchmarks/compare/record.py"]
    assert len(entries) >= 11
    assert [path for path in entries if "    console.run(main" not in path.read_text()] == []


WHOLE = """
import sys
from benchmarks import console, mnist
from benchmarks.lenet import agreement, job, measure
from tests.benchmarks.lenet_data import small_mnist
mnist.load = lambda _: small_mnist()
agreement.STEPS = 2
measure.ROUNDS = measure.WARM_UP = 1
console.run(job.main)
"""


def test_a_whole_job_into_a_full_device(tmp_path: Path) -> None:
    """A real LeNet job writes its results with a bar, a table and a console that lacks their characters."""
    options = ["--epochs", "1", "--steps", "2", "--variants", "none", "--out", str(tmp_path)]
    env = {**os.environ, "PYTHONIOENCODING": "ascii", "PYTHONUNBUFFERED": "1", "OMP_NUM_THREADS": "1"}
    command = [sys.executable, "-c", WHOLE, *options]
    with full_device() as full:
        ended = subprocess.run(command, cwd=ROOT, env=env, stdout=full, stderr=subprocess.PIPE, text=True)
    assert ended.returncode == 1
    assert "Traceback" not in ended.stderr
    assert ended.stderr.splitlines()[-1].startswith("Not all output could be written: ")
    names = {path.name for path in tmp_path.iterdir()}
    assert names == {"results.json", "accuracy.png", "loss.png", "step_time.png"}


@pytest.mark.parametrize(
    "arguments",
    [
        lenet.arguments,
        speed.arguments,
        resnet.arguments,  # the same as keras'
        sync.arguments,
        lambda argv: compare.arguments(["HEAD", *argv]),
    ],
    ids=["lenet", "speed", "resnet", "sync", "compare"],
)
def test_seeds_that_torch_refuses(
    arguments: Callable[[list[str]], object], capsys: pytest.CaptureFixture[str]
) -> None:
    """The command line refuses them, not the middle of the work."""
    for seed in (2**64, 2**32, -1):
        with pytest.raises(SystemExit, match="2"):
            arguments(["--seed", str(seed)])
        assert f"argument --seed: must be at {'least 0' if seed < 0 else 'most'}" in capsys.readouterr().err


def test_numbers_that_are_too_large(capsys: pytest.CaptureFixture[str]) -> None:
    """Too many threads would make the OpenMP runtime end the process. Too many images exceed a tensor."""
    for name, number in (("--threads", 2**31 - 1), ("--rounds", 10**30)):
        with pytest.raises(SystemExit, match="2"):
            speed.arguments([name, str(number)])
        assert f"{name}: must be at most" in capsys.readouterr().err
    assert options.seed(str(2**32 - 1)) == 2**32 - 1


def test_a_file_that_does_not_fit_leaves_the_earlier_one(tmp_path: Path) -> None:
    """The system cuts the write off. Nothing of it stays."""
    path = tmp_path / "results.json"
    files.write_whole(path, "earlier")
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (1000, hard))
    try:
        for content in ("x" * 2000, lambda file: file.write(b"x" * 2000)):
            with pytest.raises(OSError, match=r"File too large: '.*/results\.json'"):
                files.write_whole(path, content)
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))
    assert path.read_text() == "earlier"
    assert list(tmp_path.iterdir()) == [path]


def test_a_file_in_the_place_of_the_directory_is_named(tmp_path: Path) -> None:
    """The error names the requested path, not the temporary file beside it."""
    (tmp_path / "out").write_text("a file")
    with pytest.raises(OSError, match=r": '.*/out/results\.json'"):
        files.write_whole(tmp_path / "out" / "results.json", "new")


def test_links_devices_and_pipes_are_written_to(tmp_path: Path) -> None:
    """They are not replaced by a file, and a pipe that nobody reads does not block."""
    link, pipe = tmp_path / "link", tmp_path / "pipe"
    link.symlink_to(tmp_path / "target")
    files.write_whole(link, "\u00b1")
    assert link.is_symlink()
    assert (tmp_path / "target").read_bytes() == b"\xc2\xb1"
    null = tmp_path / "null"
    null.symlink_to(os.devnull)
    files.write_whole(null, "gone")
    assert not Path(os.devnull).is_file()
    os.mkfifo(pipe)
    with pytest.raises(OSError, match="No such device or address"):
        files.write_whole(pipe, "for nobody")
    with open(os.open(pipe, os.O_RDONLY | os.O_NONBLOCK), "rb") as reader:
        files.write_whole(pipe, "for one")
        assert reader.read() == b"for one"


@pytest.mark.parametrize("content", ["{", "[" * 100_000, "{}", "[1]", "\xff"])
def test_a_comparison_that_is_none(content: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """The sentence names the file, and nothing is written."""
    (tmp_path / "compare.json").write_bytes(content.encode("latin1"))
    with pytest.raises(SystemExit, match="2"):
        record.main([str(tmp_path / "out"), "--null", str(tmp_path)])
    assert f"{tmp_path / 'compare.json'} holds no comparison" in capsys.readouterr().err
    assert not (tmp_path / "out").exists()

"""The command `python -m benchmarks.lenet`: its arguments, its files, and its exit codes."""

import errno
import json
import os
import signal
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch

from benchmarks import mnist
from benchmarks.lenet import agreement, job, measure
from benchmarks.lenet.model import VARIANTS, Variant
from benchmarks.lenet.results import Result, Results
from benchmarks.lenet.training import Epoch, Settings, Trainer
from tests.benchmarks.lenet_data import one_thread, small_data, small_mnist  # noqa: F401

HELD = 10 * 2**20
SHORT = ["--epochs", "1", "--steps", "2", "--variants", "none"]
PNG = b"\x89PNG\r\n\x1a\n"

pytestmark = pytest.mark.usefixtures("one_thread")


@pytest.fixture
def small(monkeypatch: pytest.MonkeyPatch) -> None:
    """A job of a second: little data, few compared steps, few timed rounds."""
    monkeypatch.setattr(mnist, "load", lambda _: small_mnist())
    monkeypatch.setattr(agreement, "STEPS", 3)
    monkeypatch.setattr(measure, "ROUNDS", 2)
    monkeypatch.setattr(measure, "WARM_UP", 1)


def results(directory: Path) -> dict[str, Any]:
    loaded: dict[str, Any] = json.loads((directory / "results.json").read_text())
    return loaded


@pytest.mark.usefixtures("small")
def test_whole_job(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert job.main(["--epochs", "2", "--batch-size", "32", "--seed", "5", "--out", str(tmp_path)]) == 0
    captured = capsys.readouterr()
    found = results(tmp_path)
    assert found["format"] == 1
    assert found["interrupted"] is False
    assert found["arguments"]["seed"] == 5
    assert found["arguments"]["device"] == "cpu"
    assert found["environment"]["torch"] == torch.__version__
    assert found["environment"]["mnist"] == "stand-in"
    assert list(found["variants"]) == list(VARIANTS)
    for id, variant in found["variants"].items():
        assert [epoch["number"] for epoch in variant["epochs"]] == [1, 2]
        assert all(epoch["steps"] == 10 for epoch in variant["epochs"])
        assert variant["peak_bytes"] > 64 * 6 * 28 * 28 * 4 / 2
        assert (variant["norm_ms"] is None) == (id == "none")
        assert variant["step_ms"] > 0
    assert [(a["ours"], a["reference"]) for a in found["agreements"]] == list(agreement.PAIRS.items())
    for checked in found["agreements"]:
        assert checked["passed"]
        assert len(checked["differences"]) == 3
    for name in ("accuracy.png", "loss.png", "step_time.png"):
        assert (tmp_path / name).read_bytes().startswith(PNG)
    for id in VARIANTS:
        assert f"\n  {id} " in captured.out  # a row of the table
    assert captured.out.count("largest relative difference of the losses over 3 steps") == 2
    for part in ("loss", "accuracy", "images/s"):
        assert part in captured.err  # the progress bar


@pytest.mark.usefixtures("small")
def test_options(tmp_path: Path) -> None:
    argv = ["--epochs", "1", "--steps", "2", "--variants", "fused-relu", "none", "--recipe", "modern"]
    assert job.main([*argv, "--dtype", "bfloat16", "--out", str(tmp_path / "new" / "directory")]) == 0
    found = results(tmp_path / "new" / "directory")
    assert list(found["variants"]) == ["fused-relu", "none"]
    assert [variant["epochs"][0]["steps"] for variant in found["variants"].values()] == [2, 2]
    assert [a["ours"] for a in found["agreements"]] == ["fused-relu"]
    assert found["arguments"]["dtype"] == "bfloat16"


@pytest.mark.parametrize(
    ("argv", "message"),
    [
        (["--epochs", "0"], "must be at least 1"),
        (["--epochs", "x"], "argument --epochs: must be at least 1, a whole number, but got 'x'"),
        (["--batch-size", "1.5"], "argument --batch-size: must be at least 1, a whole number, but got '1.5'"),
        (["--batch-size", "-3"], "must be at least 1"),
        (["--variants", "torch", "other"], "invalid choice: 'other'"),
        (["--recipe", "other"], "invalid choice"),
        (["--dtype", "int8"], "invalid choice"),
        (["--device", "toaster"], "is no device"),
        (["--device", "meta"], "must be cpu, cuda or cuda:N"),
        (["--device", f"cuda:{torch.cuda.device_count()}"], "is not there"),
    ],
)
def test_wrong_arguments(argv: list[str], message: str, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit, match="2"):
        job.arguments(argv)
    assert message in capsys.readouterr().err


@pytest.mark.parametrize("epochs", [1, 2, 10])
def test_the_table_shows_a_published_figure_beside_the_same_epoch_only(epochs: int) -> None:
    """ "just over 98 %" was published for ten epochs, so it must not stand beside the accuracy after two."""
    finished = [Epoch(n + 1, 10, 1.0, 640.0, 1.0, 0.5, 1.0, 0.5) for n in range(epochs)]
    shown = Results(
        {"recipe": "article", "batch_size": 64, "dtype": "float32"},
        {"device": "cpu", "threads": 2, "torch": "2", "fused_bn": "0", "fused_bn_kernels": "compiled"},
        results=[Result(VARIANTS["none"], finished, None, 1)],
    ).table()
    first, last = (list(column.cells) for column in shown.columns[1:3])
    assert first == ["50.00 (≈ 93)"]
    assert last == ["50.00 (> 98)" if epochs == 10 else "50.00"]


def test_defaults() -> None:
    args = job.arguments([])
    assert (args.epochs, args.batch_size, args.recipe, args.steps) == (10, 64, "article", None)
    assert args.variants == ["none", "torch", "fused", "torch-relu", "fused-relu"]
    assert args.out == Path("results/lenet")


def test_help_names_options_and_variants() -> None:
    command = [sys.executable, "-m", "benchmarks.lenet", "--help"]
    shown = subprocess.run(command, capture_output=True, text=True, check=True).stdout
    for part in ("epochs", "steps", "batch-size", "device", "dtype", "variants", "recipe", "seed", "data"):
        assert f"--{part} " in shown
    for id in VARIANTS:
        assert f"{id}: " in shown


def test_no_data(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    asked = []

    def load(directory: Path | None) -> mnist.Mnist:
        asked.append(directory)
        raise mnist.MnistError("tried this and that")

    monkeypatch.setattr(mnist, "load", load)
    assert job.main(["--data", "somewhere", "--out", str(tmp_path / "out")]) == 1
    assert asked == [Path("somewhere")]
    assert capsys.readouterr().err == "tried this and that\n"


def interrupt_at(monkeypatch: pytest.MonkeyPatch, owner: Any, name: str, call: int) -> None:
    """Sends SIGINT, as Ctrl-C does, in the given call (counted from 1) of owner.name."""
    original, calls = getattr(owner, name), 0

    def interrupting(*args: Any, **kwargs: Any) -> Any:
        nonlocal calls
        calls += 1
        if calls == call:
            signal.raise_signal(signal.SIGINT)
        return original(*args, **kwargs)

    monkeypatch.setattr(owner, name, interrupting)


@pytest.mark.usefixtures("small")
def test_ctrl_c_in_the_second_epoch(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    interrupt_at(monkeypatch, Trainer, "evaluate", 5)  # variants 1, 2, 3, then 1 again, then 2
    argv = ["--epochs", "9", "--steps", "2", "--variants", "none", "torch", "fused", "--out", str(tmp_path)]
    assert job.main(argv) == 130
    found = results(tmp_path)
    assert found["interrupted"] is True
    finished = {id: len(variant["epochs"]) for id, variant in found["variants"].items()}
    assert finished == {"none": 2, "torch": 1, "fused": 1}
    assert (tmp_path / "accuracy.png").read_bytes().startswith(PNG)
    captured = capsys.readouterr()
    assert "Interrupted" in captured.err
    assert "\n  fused " in captured.out


@pytest.mark.usefixtures("small")
def test_ctrl_c_in_the_first_epoch_leaves_finished_variants(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    interrupt_at(monkeypatch, Trainer, "evaluate", 2)
    assert job.main(["--steps", "2", "--out", str(tmp_path)]) == 130
    assert list(results(tmp_path)["variants"]) == ["none"]


@pytest.mark.usefixtures("small")
@pytest.mark.parametrize("where", [(agreement, "follow"), (measure, "norm_times"), (Trainer, "evaluate")])
def test_ctrl_c_before_anything_is_finished_keeps_earlier_results(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, where: tuple[Any, str]
) -> None:
    (tmp_path / "results.json").write_text("earlier")
    interrupt_at(monkeypatch, *where, 1)
    assert job.main(["--steps", "2", "--out", str(tmp_path)]) == 130
    assert (tmp_path / "results.json").read_text() == "earlier"


@pytest.mark.usefixtures("small")
def test_losses_apart_fail_after_the_results_are_written(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    wrong = Variant("fused", "", lambda channels: torch.nn.BatchNorm2d(channels, eps=1e-2))
    monkeypatch.setitem(VARIANTS, "fused", wrong)
    argv = ["--epochs", "1", "--steps", "2", "--variants", "torch", "fused", "--out", str(tmp_path)]
    assert job.main(argv) == 1
    assert "BEYOND ROUNDING" in capsys.readouterr().out
    found = results(tmp_path)
    assert [a["passed"] for a in found["agreements"]] == [False]
    assert list(found["variants"]) == ["torch", "fused"]


@pytest.mark.usefixtures("small")
def test_norm_times_are_of_forward_and_backward_of_both_layers() -> None:
    class Counting(torch.nn.BatchNorm2d):
        forwards = 0
        backwards = 0

        def forward(self, input: torch.Tensor) -> torch.Tensor:
            assert input.shape[1:] in ((6, 28, 28), (16, 10, 10))
            Counting.forwards += 1
            output = super().forward(input)
            output.register_hook(lambda _: setattr(Counting, "backwards", Counting.backwards + 1))
            return output

    times = measure.norm_times([VARIANTS["none"], Variant("one", "", Counting)], small_data(), Settings())
    assert list(times) == ["one"]
    assert times["one"] > 0
    assert Counting.backwards == 2 * 3  # layers, and rounds with the warm-up
    assert Counting.forwards == 2 * 3 + 2  # and the step that gives their inputs


@pytest.mark.usefixtures("small")
def test_the_directory_is_made_again_where_it_went_meanwhile(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """If the output directory was removed, hours of training still end with files."""
    norm_times, out = measure.norm_times, tmp_path / "out"

    def tidied(*args: Any) -> dict[str, float]:
        out.rmdir()
        return norm_times(*args)

    monkeypatch.setattr(measure, "norm_times", tidied)
    assert job.main([*SHORT, "--out", str(out)]) == 0
    assert list(results(out)["variants"]) == ["none"]
    assert (out / "accuracy.png").read_bytes().startswith(PNG)


@pytest.mark.usefixtures("small")
def test_a_directory_in_the_place_of_the_results(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """They are kept beside the target and printed."""
    (tmp_path / "results.json").mkdir()
    with pytest.raises(IsADirectoryError) as error:
        job.main([*SHORT, "--out", str(tmp_path)])
    (kept,) = (path for path in tmp_path.iterdir() if path.is_file())
    assert str(kept) in str(error.value)
    assert str(tmp_path / "results.json") in str(error.value)
    assert list(json.loads(kept.read_text())["variants"]) == ["none"]
    assert "\n  none " in capsys.readouterr().out


@pytest.mark.usefixtures("small")
def test_a_full_disk_leaves_earlier_results(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """They are not overwritten by incomplete results, which are printed."""

    def full(_: int) -> None:
        raise OSError(errno.ENOSPC, "No space left on device")

    (tmp_path / "results.json").write_text("earlier")
    monkeypatch.setattr(os, "fsync", full)
    with pytest.raises(OSError, match=r"No space left on device: '.*/results\.json'"):
        job.main([*SHORT, "--out", str(tmp_path)])
    assert [path.name for path in tmp_path.iterdir()] == ["results.json"]
    assert (tmp_path / "results.json").read_text() == "earlier"
    assert "\n  none " in capsys.readouterr().out


class Hold(torch.autograd.Function):
    """Keeps HELD bytes alive from forward to backward."""

    @staticmethod
    def forward(ctx: Any, input: torch.Tensor) -> torch.Tensor:
        ctx.save_for_backward(torch.empty(HELD, dtype=torch.uint8))
        return input.clone()

    @staticmethod
    def backward(ctx: Any, *gradients: torch.Tensor) -> torch.Tensor:
        assert len(ctx.saved_tensors) == 1
        return gradients[0]


class Holding(torch.nn.Module):
    def __init__(self, _: int) -> None:
        super().__init__()

    def forward(self, input: torch.Tensor) -> torch.Tensor:
        output: torch.Tensor = Hold.apply(input)
        return output


def test_peak_memory_counts_what_a_norm_holds() -> None:
    none = measure.peak_memory(VARIANTS["none"], small_data(), Settings())
    holding = measure.peak_memory(Variant("holding", "", Holding), small_data(), Settings())
    assert holding - none == pytest.approx(2 * HELD, rel=0.1)  # two layers keep it

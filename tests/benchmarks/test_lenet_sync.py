"""The LeNet job in two processes: it trains as one process does, and it starts and ends as one job."""

import json
import os
import re
import signal
import subprocess
import sys
from dataclasses import replace
from datetime import timedelta
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, distributed
from torch.multiprocessing.spawn import spawn

import fused_bn
from benchmarks.lenet import agreement, job, processes, sharing
from benchmarks.lenet.model import VARIANTS
from benchmarks.lenet.sharing import SharedTrainer
from benchmarks.lenet.training import Data, Settings, Trainer
from benchmarks.mnist.idx import FILES, Mnist
from tests.benchmarks.lenet_data import real_mnist

pytestmark = pytest.mark.skipif(
    not distributed.is_available() or not distributed.is_gloo_available(), reason="torch has no gloo"
)

PROCESSES = 2
PATIENCE = 60
"""Seconds until a process stops waiting for a dead one, and until a test stops waiting for a job."""

IDS = ("fused", "fused-relu")
STEPS = 40
BATCHES = {"halves": 64, "a larger and a smaller share": 63, "an empty share": 1}
SMALL = {"halves": STEPS, "a larger and a smaller share": 12, "an empty share": 6}
"""Batch sizes of steps. A batch of one image leaves the norms 28x28 and 10x10 values per channel."""


class Unsynchronised(SharedTrainer):
    """A planted fault: each process normalises by its own share."""

    def __init__(self, *args: Any) -> None:
        super().__init__(*args)
        fused_bn.revert_sync_batchnorm(self.model)


class Unweighted(SharedTrainer):
    """A planted fault: the unweighted mean over processes of each share's mean."""

    def loss(self, images: Tensor, labels: Tensor) -> tuple[Tensor, Tensor]:
        loss, correct = super().loss(images, labels)
        mine = sharing.share(len(labels), processes.rank(), processes.count())
        weight = len(labels) / (processes.count() * (mine.stop - mine.start))
        return loss * weight, correct


def process(rank: int, folder: str, data: Data) -> None:
    """All work of these tests in the processes, which take seconds to start."""
    torch.set_num_threads(1)
    distributed.init_process_group(
        "gloo",
        init_method=f"file://{folder}/store",
        rank=rank,
        world_size=PROCESSES,
        timeout=timedelta(seconds=PATIENCE),
    )
    found: dict[tuple[str, str], agreement.Agreement] = {}
    try:
        for id in IDS:
            for name, size in BATCHES.items():
                agreement.STEPS = SMALL[name]
                settings = Settings(batch_size=size)
                found[id, name] = agreement.follow(VARIANTS[id], data, settings, SharedTrainer)
        agreement.STEPS = 5
        for wrong in (Unsynchronised, Unweighted):
            settings = Settings(batch_size=63)
            found["fused", wrong.__name__] = agreement.follow(VARIANTS["fused"], data, settings, wrong)
        trainer = SharedTrainer(VARIANTS["fused"].norm, True, data, Settings(batch_size=63))
        epoch = trainer.train_epoch(limit=3)
        torch.save((found, epoch, trainer.model.state_dict()), f"{folder}/{rank}.pt")
    finally:
        processes.leave()


def few(images: Mnist) -> Mnist:
    """As much data as the steps need, and a small test set."""
    count = STEPS * max(BATCHES.values())
    return replace(
        images,
        train_images=images.train_images[:count],
        train_labels=images.train_labels[:count],
        test_images=images.test_images[:200],
        test_labels=images.test_labels[:200],
    )


@pytest.fixture(scope="module")
def data() -> Data:
    return Data.of(few(real_mnist()), torch.device("cpu"))


@pytest.fixture(scope="module")
def ran(data: Data, tmp_path_factory: pytest.TempPathFactory) -> list[Any]:
    """Each process' results."""
    folder = tmp_path_factory.mktemp("processes")
    spawn(process, (str(folder), data), PROCESSES)
    return [torch.load(folder / f"{rank}.pt", weights_only=False) for rank in range(PROCESSES)]


@pytest.mark.parametrize("name", BATCHES)
@pytest.mark.parametrize("id", IDS)
def test_processes_follow_the_losses_of_one(id: str, name: str, ran: list[Any]) -> None:
    """On MNIST, with every way to split a batch: within `agreement`'s bounds."""
    for found, *_ in ran:
        checked = found[id, name]
        assert len(checked.differences) == SMALL[name]
        assert checked.passed, str(checked)
    assert ran[0][0][id, name].our_losses == ran[1][0][id, name].our_losses


@pytest.mark.parametrize("wrong", [Unsynchronised, Unweighted])
def test_a_wrong_way_to_share_fails(wrong: type[Trainer], ran: list[Any]) -> None:
    """Half a batch's statistics, and an unweighted mean for 31 and 32 images: the bound detects both."""
    for found, *_ in ran:
        assert not found["fused", wrong.__name__].passed


def test_an_epoch_is_that_of_one_process(data: Data, ran: list[Any]) -> None:
    """All processes report figures of whole batches and end with the same model as one process."""
    trainer = Trainer(VARIANTS["fused"].norm, True, data, Settings(batch_size=63))
    expected = trainer.train_epoch(limit=3)
    for _, epoch, state in ran:
        assert epoch.train_accuracy == expected.train_accuracy
        assert epoch.test_accuracy == expected.test_accuracy
        assert epoch.train_loss == pytest.approx(expected.train_loss, rel=1e-6)
        assert epoch.test_loss == pytest.approx(expected.test_loss, rel=1e-6)
        # Adam divides by the gradient's own size, so even a gradient of rounding errors moves a parameter by
        # the rate, 1e-3 per step. Statistics are averages that follow the parameters.
        for name, value in trainer.model.state_dict().items():
            torch.testing.assert_close(state[name], value, rtol=1e-4, atol=1e-4)
    for one, two in zip(ran[0][2].values(), ran[1][2].values(), strict=True):
        assert torch.equal(one, two)


@pytest.mark.parametrize(("total", "count"), [(64, 2), (63, 2), (1, 2), (10, 4), (3, 5)])
def test_shares_are_even_and_leave_nothing_out(total: int, count: int) -> None:
    shares = [range(total)[sharing.share(total, rank, count)] for rank in range(count)]
    assert [i for share in shares for i in share] == list(range(total))
    assert max(map(len, shares)) - min(map(len, shares)) <= 1


# The job itself, started by torchrun.


def torchrun(*argv: str) -> "subprocess.Popen[str]":
    command = [sys.executable, "-m", "torch.distributed.run", "--nproc-per-node", str(PROCESSES)]
    command += ["--master-port", "0", "--rdzv-backend", "c10d", "--rdzv-endpoint", "localhost:0"]
    return subprocess.Popen(
        [*command, "-m", "benchmarks.lenet", *argv],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        env={**os.environ, "PYTHONUNBUFFERED": "1"},
    )


def results(directory: Path) -> dict[str, Any]:
    loaded: dict[str, Any] = json.loads((directory / "results.json").read_text())
    return loaded


def test_job_leaves_one_table_and_one_file(tmp_path: Path) -> None:
    real_mnist()
    argv = ["--sync", "--epochs", "1", "--steps", "30", "--variants", "fused-relu"]
    started = torchrun(*argv, "--batch-size", "15", "--out", str(tmp_path))
    out, err = started.communicate(timeout=PATIENCE)
    assert started.returncode == 0, err
    found = results(tmp_path)
    assert found["environment"]["processes"] == PROCESSES
    assert list(found["variants"]) == ["fused-relu"]
    (epoch,) = found["variants"]["fused-relu"]["epochs"]
    assert epoch["steps"] == 30
    assert epoch["test_accuracy"] > 0.3  # some are right by chance: 0.1
    assert [(a["ours"], a["passed"]) for a in found["agreements"]] == [("fused-relu", True)]
    assert out.count("Measuring norm layers") == 1
    assert out.count("\n  fused-relu ") == 1  # a row of the table
    assert "2 synchronised processes" in out
    assert "Warning" not in err


def test_ctrl_c_ends_all_processes_and_keeps_what_was_finished(tmp_path: Path) -> None:
    real_mnist()
    argv = ["--sync", "--epochs", "999", "--steps", "3", "--variants", "none", "--out", str(tmp_path)]
    started = torchrun(*argv)
    assert started.stdout is not None
    while not (line := started.stdout.readline()).startswith("epoch"):
        assert line, "ended early"
    started.send_signal(signal.SIGINT)
    _, err = started.communicate(timeout=PATIENCE)  # waits for every process that has the pipes
    assert started.returncode != 0
    assert err.count("Interrupted: only what was finished before is written.") == 1
    assert err.count("Traceback") <= 1, err  # torchrun's own
    found = results(tmp_path)
    assert found["interrupted"] is True
    assert len(found["variants"]["none"]["epochs"]) >= 1


def test_missing_data_end_all_processes_with_one_message(tmp_path: Path) -> None:
    """The user named broken files, so no others are searched."""
    for file in FILES:
        (tmp_path / file.name).write_bytes(b"no images")
    started = torchrun("--sync", "--data", str(tmp_path), "--out", str(tmp_path / "out"))
    out, err = started.communicate(timeout=PATIENCE)
    assert started.returncode == 1
    assert len(re.findall(rf"^.*{FILES[0].name}.*$", err, re.MULTILINE)) == 1, err
    assert out == ""


def test_torchrun_without_sync_is_refused_once(tmp_path: Path) -> None:
    started = torchrun("--epochs", "1", "--out", str(tmp_path))
    _, err = started.communicate(timeout=PATIENCE)
    assert started.returncode != 0
    message = "error: torchrun started 2 processes, which would all do the same: torchrun --nproc-per-node 2"
    assert err.count(message) == 1, err


def test_sync_without_torchrun_says_how_to_start(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit, match="2"):
        job.main(["--sync"])
    message = "error: --sync needs processes that torchrun starts: torchrun --nproc-per-node 2 -m"
    assert message in capsys.readouterr().err


def test_variants_of_pytorch_are_refused(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """Converted norms with torch's name would be ours."""
    monkeypatch.setattr(processes, "started", lambda: True)
    assert job.arguments(["--sync"]).variants == ["none", "fused", "fused-relu"]
    with pytest.raises(SystemExit, match="2"):
        job.arguments(["--sync", "--variants", "none", "torch"])
    assert "--sync has no synchronised norm for torch" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("device", "message"),
    [("cuda:0", "without a number"), ("cuda", "2 processes need as many GPUs, but torch sees 1")],
)
def test_a_gpu_for_each_process(device: str, message: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(processes, "started", lambda: True)
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 1)
    monkeypatch.setenv("LOCAL_WORLD_SIZE", "2")
    assert message in str(processes.complaint(True, torch.device(device)))

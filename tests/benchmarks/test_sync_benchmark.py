"""The benchmark of synchronised norms: its models agree, and its file has what it measured."""

import json
from functools import partial
from pathlib import Path

import pytest
import torch
from torch import Tensor, distributed, nn

from benchmarks.resnet.model import ResNet50
from benchmarks.sync import job, lockstep
from benchmarks.sync.baseline import LeanSyncBatchNorm, PythonSyncBatchNorm, with_norms
from benchmarks.sync.comparison import LEAN, LOCAL, PYTHON, SYNCHRONISED
from benchmarks.sync.traffic import Traffic

pytestmark = pytest.mark.skipif(
    not distributed.is_available() or not distributed.is_gloo_available(), reason="torch has no gloo"
)

SMALL = partial(ResNet50, depths=(1, 1), width=8)
ARGV = ["--batch", "2", "--size", "32", "--rounds", "2"]


class OfItsBatch(ResNet50):
    """A planted fault: its results depend on which images share a process, even with synchronised norms."""

    def forward(self, x: Tensor) -> Tensor:
        return super().forward(x) * x.mean().exp()


def test_job_writes_what_it_measured(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert job.main([*ARGV, "--out", str(tmp_path)], SMALL) == 0
    written = json.loads((tmp_path / "results.json").read_text())
    assert written["environment"]["processes"] == 2
    rows = {row["row"]: row for row in written["rows"]}
    assert list(rows) == [LOCAL, SYNCHRONISED, PYTHON, LEAN]
    assert rows[PYTHON]["speedup"] == rows[LOCAL]["of_local"] == 1
    channels = [module.num_features for module in SMALL().modules() if isinstance(module, nn.BatchNorm2d)]
    calls = {LOCAL: 0, SYNCHRONISED: 1, PYTHON: 2, LEAN: 1}
    for name, row in rows.items():
        assert row["step_ms"] > 0
        assert row["norms"] == len(channels)
        for direction in ("forward", "backward"):
            assert row[direction]["calls"] == calls[name] * len(channels)
    ours = rows[SYNCHRONISED]
    assert ours["forward"]["bytes"] == sum(8 * (2 * count + 1) for count in channels)
    assert ours["backward"]["bytes"] == sum(8 * 2 * count for count in channels)
    assert rows[LEAN]["forward"]["bytes"] == rows[PYTHON]["backward"]["bytes"] == 4 * 2 * sum(channels)
    assert f" {SYNCHRONISED} " in capsys.readouterr().out


def test_a_wrong_result_is_not_timed(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """Half batches are not the batch. One message says so, and nothing is written."""
    assert job.main([*ARGV, "--out", str(tmp_path)], partial(OfItsBatch, depths=(1,), width=8)) == 1
    assert capsys.readouterr().err.startswith(f"{SYNCHRONISED}: gradients off one process by ")
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize("check", [True, False])
@pytest.mark.parametrize("seconds", [1.0, 1.29, 1.31])
def test_a_missed_figure_fails_only_with_check(
    seconds: float, check: bool, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The median ratio of rounds decides: in the third round the machine was slow."""
    times = {SYNCHRONISED: [1.0, 10.0, 9.0], PYTHON: [seconds, 10 * seconds, 1.0], LOCAL: [1.0, 1.0, 1.0]}
    traffic = {row: {"forward": Traffic(), "backward": Traffic()} for row in times}
    monkeypatch.setattr(lockstep, "run", lambda *_: lockstep.Findings(times, traffic, 1))
    argv = ["--out", str(tmp_path), *(["--check"] if check else [])]
    assert job.main(argv) == (1 if check and seconds < job.REQUIRED else 0)


@pytest.mark.parametrize("kind", [PythonSyncBatchNorm, LeanSyncBatchNorm])
def test_the_baseline_is_batch_norm(kind: type[PythonSyncBatchNorm], monkeypatch: pytest.MonkeyPatch) -> None:
    """Output, statistics and evaluation of one process. The benchmark itself checks only the output.

    E[x^2] - mean^2 in float32 loses what a mean of one deviation costs: some units in the last place.
    """
    monkeypatch.setattr(distributed, "all_reduce", lambda _: None)
    monkeypatch.setattr(distributed, "get_world_size", lambda: 1)
    torch.manual_seed(0)
    plain = nn.Sequential(nn.BatchNorm2d(4))
    nn.init.uniform_(plain.get_parameter("0.weight"))
    baseline = with_norms(nn.Sequential(nn.BatchNorm2d(4)), kind)
    baseline.load_state_dict(plain.state_dict())
    assert type(baseline[0]) is kind  # type: ignore[index]
    input = torch.randn(8, 4, 5, 5) + 1
    for _ in range(2):
        torch.testing.assert_close(baseline(input), plain(input), rtol=1e-5, atol=1e-5)
    torch.testing.assert_close(baseline.state_dict(), plain.state_dict(), rtol=1e-5, atol=1e-5)
    torch.testing.assert_close(baseline.eval()(input), plain.eval()(input), rtol=1e-5, atol=1e-5)

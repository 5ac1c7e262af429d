"""The benchmark of fuse: its models agree, and its file has what it measured."""

import json
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

import fused_bn
from benchmarks.comparison import WrongResultError
from benchmarks.resnet import job
from benchmarks.resnet.comparison import Case, Comparison
from benchmarks.resnet.model import ResNet50
from fused_bn.fusion import recompute

CPU = torch.device("cpu")
SMALL = partial(ResNet50, depths=(2, 1), width=8)
CASES = [Case(2, 32, layout, dtype) for layout, dtype in job.CELLS]


def test_the_model_is_resnet_50() -> None:
    """Checks its published number of parameters, and its number of norms."""
    model = ResNet50()
    assert sum(parameter.numel() for parameter in model.parameters()) == 25_557_032
    assert sum(isinstance(module, torch.nn.BatchNorm2d) for module in model.modules()) == 53


@pytest.mark.parametrize("case", CASES, ids=lambda case: case.id)
def test_rows_agree_and_most_norms_are_fused(case: Case) -> None:
    comparison = Comparison(case, CPU, make=SMALL)
    comparison.check()
    report: Any = comparison.models["fused"].fusion_report
    # All 12 norms are fused, except for two of shortcuts, which are another norm's residual.
    assert report.share == pytest.approx(10 / 12)


@pytest.mark.parametrize("case", CASES, ids=lambda case: case.id)
def test_the_fused_model_takes_less_memory(case: Case, monkeypatch: pytest.MonkeyPatch) -> None:
    """The required memory, in a model whose outputs are too small for recomputation by default.

    On smaller images the convolutions' own memory dominates.
    """
    monkeypatch.setattr(recompute, "WORTH_BYTES", 1)
    comparison = Comparison(
        replace(case, batch=4, size=160), CPU, make=partial(ResNet50, depths=(4, 4), width=8)
    )
    required = job.REQUIRED["cpu"]["memory"]
    assert comparison.peak_activations("fused, recomputed") <= required * comparison.peak_activations("eager")


def test_a_wrong_result_is_not_timed(monkeypatch: pytest.MonkeyPatch) -> None:
    class Wrong(ResNet50):
        def forward(self, x: Tensor) -> Tensor:
            return super().forward(x) * 1.01

    def spoil(model: ResNet50, **_: bool) -> ResNet50:
        model.__class__ = Wrong
        return model

    monkeypatch.setattr(fused_bn, "fuse", spoil)
    comparison = Comparison(CASES[0], CPU, make=SMALL)
    with pytest.raises(WrongResultError, match="fused: "):
        comparison.check()


def test_job_writes_what_it_measured(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(job, "Comparison", partial(Comparison, make=SMALL))
    argv = ["--batch", "2", "--size", "32", "--rounds", "1", "--out", str(tmp_path)]
    assert job.main(argv) == 0
    written = json.loads((tmp_path / "results.json").read_text())
    assert [(row["case"], row["row"]) for row in written["rows"]] == [
        (case.id, row) for case in CASES for row in ("eager", "fused", "fused, recomputed")
    ]
    assert all(row["images_per_second"] > 0 and row["peak_bytes"] > 0 for row in written["rows"])
    assert "fused" in capsys.readouterr().out


def test_missed_figures_are_named() -> None:
    """The speed of the fused model and the memory of the recomputing model have required values."""
    rows = [
        job.Row("right", "fused", 1.0, 1.11, 1, 0.84),
        job.Row("slow", "fused", 1.0, 1.09, 1, 0.84),
        job.Row("kept", "fused", 1.0, 1.11, 1, 1.01),
        job.Row("fat", "fused, recomputed", 1.0, 0.9, 1, 0.86),
        job.Row("eager", "eager", 1.0, 1.0, 1, 1.0),
    ]
    missed = job.missed_figures(rows, CPU)
    assert [text.split(":")[0] for text in missed] == ["slow", "fat"]
    assert "1.09x as fast, required 1.10x" in missed[0]

"""`python -m benchmarks.keras`: its models agree, and its file has what it measured."""

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from torch import Tensor

pytest.importorskip("keras")

import keras

from benchmarks.comparison import WrongResultError
from benchmarks.keras import job
from benchmarks.keras.comparison import ROWS, Case, Comparison
from fused_bn.keras import BatchNormalization

CASES = [Case(network, data_format, 8) for network, data_format in job.CELLS]


@pytest.mark.parametrize("case", CASES, ids=lambda case: case.id)
def test_rows_train_alike_and_by_the_layer_they_name(case: Case) -> None:
    comparison = Comparison(case, steps=2)
    before = [model.get_weights() for model in comparison.models.values()]
    comparison.check()
    for model, weights in zip(comparison.models.values(), before, strict=True):
        for found, weight, first in zip(model.get_weights(), weights, before[0], strict=True):
            np.testing.assert_array_equal(found, weight)  # state is as before the check
            np.testing.assert_array_equal(weight, first)
    for row, model in comparison.models.items():
        norms = [layer for layer in model.layers if isinstance(layer, keras.layers.BatchNormalization)]
        assert len(norms) == (2 if case.network == "conv" else 3)
        assert {type(norm) is BatchNormalization for norm in norms} == {row != "keras"}


class Wrong(BatchNormalization):
    def call(self, inputs: Tensor, training: Any = None, mask: Any = None) -> Any:
        return super().call(inputs, training=training, mask=mask) * 1.01


def test_a_wrong_result_is_not_timed(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    monkeypatch.setattr("benchmarks.keras.comparison.BatchNormalization", Wrong)
    with pytest.raises(WrongResultError, match="ours: weights off by"):
        Comparison(CASES[0], steps=2).check()
    assert job.main(["--batch", "8", "--steps", "2", "--rounds", "1", "--out", str(tmp_path)]) == 1
    assert "ours: weights off by" in capsys.readouterr().err
    assert not (tmp_path / "results.json").exists()


def test_job_writes_what_it_measured(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert job.main(["--batch", "8", "--steps", "2", "--rounds", "2", "--out", str(tmp_path)]) == 0
    written = json.loads((tmp_path / "results.json").read_text())
    assert [(row["case"], row["row"]) for row in written["rows"]] == [
        (case.id, row) for case in CASES for row in ROWS
    ]
    for row in written["rows"]:
        assert row["step_ms"] > 0
        assert row["speedup"] == 1 if row["row"] == "keras" else row["speedup"] > 0
    assert written["environment"]["keras"] == keras.__version__
    assert "ours with ReLU" in capsys.readouterr().out


def test_an_interrupted_job_keeps_what_it_measured(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    measure = job.measure

    def interrupted(case: Case, args: Any) -> Any:
        if case.network == "mlp":
            raise KeyboardInterrupt
        return measure(case, args)

    monkeypatch.setattr(job, "measure", interrupted)
    argv = ["--batch", "8", "--steps", "1", "--rounds", "1", "--out", str(tmp_path)]
    assert job.main(argv) == 130
    rows = json.loads((tmp_path / "results.json").read_text())["rows"]
    assert {row["case"] for row in rows} == {case.id for case in CASES[:2]}


def test_missed_figures_are_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Only our rows are required. With --check a miss is a failure."""
    rows = [
        job.Row("even", "ours", 1.0, 1.0),
        job.Row("slow", "ours", 1.0, 0.99),
        job.Row("slow", "keras", 1.0, 0.5),
    ]
    assert job.missed_figures(rows) == ["slow, ours: 0.99x as fast, required 1.00x"]
    monkeypatch.setattr(job, "measure", lambda *_: rows)
    assert job.main(["--out", str(tmp_path)]) == 0
    assert job.main(["--out", str(tmp_path), "--check"]) == 1


@pytest.mark.parametrize("argv", [["--rounds", "0"], ["--batch", "x"], ["--steps", "-1"]])
def test_wrong_arguments(argv: list[str], capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit, match="2"):
        job.arguments(argv)
    assert "must be at least 1" in capsys.readouterr().err

"""The figures in the README are those of the committed measurements, and its examples run."""

import json
import re
import statistics
from pathlib import Path
from typing import Any

import pytest

from benchmarks import history
from benchmarks.instructions import stored
from benchmarks.report import figures

ROOT = Path(__file__).resolve().parent.parent
DIRECTIONS = ("forward", "forward+backward")


def readme() -> str:
    return (ROOT / "README.md").read_text()


def measured(name: str) -> dict[str, Any]:
    loaded: dict[str, Any] = json.loads((ROOT / "benchmarks/results/cpu" / name).read_text())
    return loaded


def mean_speedup(direction: str) -> float:
    return statistics.geometric_mean(case["speedup"][direction] for case in measured("speed.json")["cases"])


def test_headline_rounds_the_measured_means() -> None:
    found = re.search(r"([\d.]+)x faster than eager PyTorch in forward and ([\d.]+)x", readme())
    assert found is not None
    assert list(found.groups()) == [f"{mean_speedup(direction):.1f}" for direction in DIRECTIONS]


def test_required_figures_are_the_measured_ones() -> None:
    figures = measured("speed.json")["required"]
    assert len(figures) == 6
    for figure in figures:
        line = f"- {figure['name']}: {figure['measured']:.2f} (required: "
        assert line in readme(), line
    for direction in DIRECTIONS:
        assert f"- {direction}, times faster than eager, geometric mean of 24 cases: " in readme()
        assert any(abs(figure["measured"] - mean_speedup(direction)) < 1e-9 for figure in figures)


def test_speedups_of_the_table_are_the_measured_ones() -> None:
    for case in measured("speed.json")["cases"]:
        begin = "| " + " | ".join(case["id"].split()) + " |"
        (line,) = (line for line in readme().splitlines() if line.startswith(begin))
        cells = [cell.strip() for cell in line.split("|")]
        assert [cells[7], cells[11]] == [f"{case['speedup'][direction]:.2f}" for direction in DIRECTIONS]


LENET_ROWS = {
    "none": "no batch norm",
    "torch": "tanh, `nn.BatchNorm2d`",
    "fused": "tanh, `fused_bn`",
    "torch-relu": "`nn.BatchNorm2d`, ReLU",
    "fused-relu": "`fused_bn` with ReLU",
}


def test_lenet_table_is_what_was_measured() -> None:
    found = measured("lenet/results.json")
    assert list(found["variants"]) == list(LENET_ROWS)
    for id, variant in found["variants"].items():
        first, last = (f"{100 * variant['epochs'][i]['test_accuracy']:.2f}" for i in (0, -1))
        norm = "" if variant["norm_ms"] is None else f" {variant['norm_ms']:.3f}"
        peak = f"{variant['peak_bytes'] / 2**20:.2f}"
        row = (
            f"| {LENET_ROWS[id]} | {first} | {last} | {variant['images_per_second']:,.0f} |{norm} | {peak} |"
        )
        assert row in readme(), row
    for checked in found["agreements"]:
        mantissa, exponent = f"{checked['largest']:.1e}".split("e")
        assert f"{mantissa}e{int(exponent)} with" in readme()


def test_resnet_table_is_what_was_measured() -> None:
    by_row: dict[str, dict[str, Any]] = {}
    for row in measured("resnet.json")["rows"]:
        by_row.setdefault(row["row"], {})[row["case"]] = row
    for case, eager in by_row["eager"].items():
        cells = [*case.split(), f"{eager['images_per_second']:.2f}"]
        for name in ("fused", "fused, recomputed"):
            cells += [f"{by_row[name][case][figure]:.2f}" for figure in ("speedup", "memory")]
        assert f"| {' | '.join(cells)} |" in readme(), cells


def test_grid_table_is_what_was_recorded() -> None:
    run = next(run for run in history.load() if f"commit {run.commit}:" in readme())
    for summary in figures.summaries(figures.measured(run))[:-1]:
        share = "" if summary.share is None else f" {summary.share:.0%}"
        cells = (
            f"{summary.name} | {summary.cells} | {summary.ratio:.2f} | {summary.over_compile:.2f} |{share}"
        )
        row = f"| {cells} | {summary.peak_share:.2f} | {summary.slower_than_eager} |"
        assert row in readme(), row


def test_instruction_counts_are_what_was_recorded() -> None:
    """And within the tolerance what is stored for that torch and Python, which a meant change renews."""
    (run,) = (run for run in history.load() if f"Counts of commit {run.commit}," in readme())
    found = {record.call: record.count for record in run.of(history.Instructions)}
    torch, python = run.environment["torch"], ".".join(run.environment["python"].split(".")[:2])
    begin = f"torch {torch}, python {python} "
    entries = [counts for key, counts in stored.load().items() if key.startswith(begin)]
    for call in ("forward", "forward+backward", "evaluation"):
        ours, eager = found[call], found[f"eager {call}"]
        row = f"| {call.replace('+', ' + ')} | {ours:,} | {eager:,} | {ours / eager:.2f} |"
        assert row in readme(), row
    assert any(
        all(abs(stored.change(found[call], entry[call])) <= stored.TOLERANCE for call in entry)
        for entry in entries  # one a compiler
    )


def test_keras_table_is_what_was_measured() -> None:
    by_case: dict[str, list[Any]] = {}
    for row in measured("keras.json")["rows"]:
        by_case.setdefault(row["case"], []).append(row)
    for case, (keras, *ours) in by_case.items():
        cells = [case, f"{keras['step_ms']:.2f}", *(f"{row['speedup']:.2f}x" for row in ours)]
        assert f"| {' | '.join(cells)} |" in readme(), cells


def test_examples_run(tmp_path: Path, monkeypatch: Any) -> None:
    pytest.importorskip("keras")
    examples = re.findall(r"```python\n(.*?)```", readme(), re.DOTALL)
    assert len(examples) == 5
    monkeypatch.chdir(tmp_path)
    for example in examples:
        exec(compile(example, "README.md", "exec"), {})
    assert (tmp_path / "norm.pt").exists()

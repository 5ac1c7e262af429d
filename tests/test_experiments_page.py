"""The page of the published experiments says what the committed results say."""

import json
import re
from pathlib import Path
from typing import Any

import pytest

from benchmarks.experiments.experiment import Curve
from benchmarks.experiments.published import EXPERIMENTS
from benchmarks.experiments.results import figure

ROOT = Path(__file__).resolve().parent.parent
PAGE = ROOT / "benchmarks/experiments/README.md"
RESULTS = ROOT / "benchmarks/results/cpu/experiments"


def section(name: str) -> str:
    """From the heading to the next one."""
    found = re.search(rf"^## {re.escape(name)}\n(.*?)(?=^## )", PAGE.read_text(), re.DOTALL | re.MULTILINE)
    assert found is not None, name
    return found[1]


def recorded(name: str, folder: Path = RESULTS) -> dict[str, Any]:
    loaded: dict[str, Any] = json.loads((folder / f"{name}.json").read_text())
    return loaded


def curves(variant: dict[str, Any]) -> list[Curve]:
    return [Curve(**curve) for curve in variant["curves"]]


@pytest.mark.parametrize("name", EXPERIMENTS)
def test_figures_and_verdicts_are_the_recorded_ones(name: str) -> None:
    text, found = section(name), recorded(name)
    experiment = EXPERIMENTS[name]
    assert found["length"]["epochs"] == experiment.full.epochs
    assert found["arguments"]["normalize"] == "none"
    assert [variant.id for variant in experiment.variants] == list(found["variants"])
    for variant in experiment.variants:
        of_seeds = curves(found["variants"][variant.id])
        cells = [figure(variant, column, of_seeds) for column in ("first epoch", *of_seeds[0].final)]
        assert f"| {variant.id} | {variant.description} | {' | '.join(cells)} |" in text
    assert [claim["claim"] for claim in found["claims"]] == [claim.text for claim in experiment.claims]
    for claim in found["claims"]:
        assert f"- {'PASS' if claim['holds'] else 'FAIL'}: {claim['claim']} ({claim['measured']})" in text


def test_pictures_and_links_are_there() -> None:
    targets = re.findall(r"\]\(([^)#]+)\)", PAGE.read_text())
    assert len(targets) >= len(EXPERIMENTS)
    for target in targets:
        assert (PAGE.parent / target).exists(), target


@pytest.mark.parametrize(("name", "id"), [("iris", "none"), ("iris", "norm"), ("mnist-mlp", "after")])
@pytest.mark.parametrize("scaler", ["minmax", "mean", "zscore"])
def test_figures_of_normalised_inputs_are_the_recorded_ones(name: str, id: str, scaler: str) -> None:
    (variant,) = (variant for variant in EXPERIMENTS[name].variants if variant.id == id)
    found = recorded(name, RESULTS / scaler)
    assert found["arguments"]["normalize"] == scaler
    cell = figure(variant, "test", curves(found["variants"][id])).split(" (")[0]
    (row,) = re.findall(rf"^\| {name}, {id} \|.*$", PAGE.read_text(), re.MULTILINE)
    assert f" {cell} " in row

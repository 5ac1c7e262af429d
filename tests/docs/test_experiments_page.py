"""The figures of the page of published experiments are those of the committed results."""

import json
import re
import statistics
from pathlib import Path
from typing import Any

import pytest

pytest.importorskip("sklearn")

from benchmarks.experiments.experiment import Curve, epochs_to
from benchmarks.experiments.published import EXPERIMENTS
from benchmarks.experiments.results import Results, accuracies, figure

ROOT = Path(__file__).resolve().parent.parent.parent
PAGE = ROOT / "docs/experiments.md"
RESULTS = ROOT / "benchmarks/results/cpu/experiments"


def section(name: str) -> str:
    """The page from this heading to the next one."""
    found = re.search(rf"^## {re.escape(name)}\n(.*?)(?=^## )", PAGE.read_text(), re.DOTALL | re.MULTILINE)
    assert found is not None, name
    return found[1]


def recorded(name: str) -> dict[str, Any]:
    loaded: dict[str, Any] = json.loads((RESULTS / f"{name}.json").read_text())
    return loaded


def conditions(environment: dict[str, Any]) -> str:
    torch, day = environment["torch"].split("+")[0], environment["date"][:10]
    cores = f"{environment['threads']} cores of a virtual machine"
    return f"{environment['device']} (Zen 5, {cores}), torch {torch}, {day}"


def by_variant(found: dict[str, Any]) -> dict[str, list[Curve]]:
    return {id: [Curve(**c) for c in variant["curves"]] for id, variant in found["variants"].items()}


@pytest.mark.parametrize("name", EXPERIMENTS)
def test_figures_and_verdicts_are_the_recorded_ones(name: str) -> None:
    text, found = section(name), recorded(name)
    experiment = EXPERIMENTS[name]
    assert found["length"]["epochs"] == experiment.full.epochs
    assert f"\n{found['length']['seeds']} seeds, {found['length']['epochs']} epochs:\n" in text
    assert found["arguments"]["normalize"] == "none"
    assert conditions(found["environment"]) in " ".join(PAGE.read_text().split())
    assert [variant.id for variant in experiment.variants] == list(found["variants"])
    results = Results(experiment, experiment.full, {}, {}, "", by_variant(found))
    for variant in experiment.variants:
        of_seeds = results.curves[variant.id]
        cells = [figure(accuracies(column, of_seeds)) for column in results.columns()]
        row = f"| {variant.id} | {variant.description} | {' | '.join(cells)} |"
        if variant.published:
            row += f"\n| | published | {' | '.join(results.published(variant))} |"
        assert row in text
    assert [str(judged) for judged in results.judged()] == [
        f"{'PASS' if claim['holds'] else 'FAIL'}  {claim['claim']} ({claim['measured']})"
        for claim in found["claims"]
    ]
    assert [claim["claim"] for claim in found["claims"]] == [claim.text for claim in experiment.claims]
    for claim in found["claims"]:
        assert f"- {'PASS' if claim['holds'] else 'FAIL'}: {claim['claim']} ({claim['measured']})" in text


def test_each_experiment_shows_its_picture() -> None:
    for name in EXPERIMENTS:
        assert f"](pictures/experiments/{name}.png)" in section(name)


SCALERS = ("none", "minmax", "mean", "zscore")


@pytest.mark.parametrize("name", ["iris", "mnist-mlp"])
def test_figures_of_normalised_inputs_are_the_recorded_ones(name: str) -> None:
    by_scaler = {scaler: recorded(name if scaler == "none" else f"{name}-{scaler}") for scaler in SCALERS}
    for scaler, found in by_scaler.items():
        assert found["arguments"]["normalize"] == scaler
    for id in by_scaler["none"]["variants"]:
        cells = [figure(accuracies("test", by_variant(found)[id])) for found in by_scaler.values()]
        assert f"| {name}, {id} | {' | '.join(cells)} |" in PAGE.read_text()


def test_figures_of_norm_before_and_after_the_activation() -> None:
    said = " ".join(section("Norm before or after the activation").split())
    curves = by_variant(recorded("circles"))
    ids = ("after", "before", "none")
    median = {id: f"{statistics.median(epochs_to(0.8)(curve) for curve in curves[id]):g}" for id in ids}
    mean = {id: f"{statistics.fmean(accuracies('test', curves[id])):.3f}" for id in ids}
    assert (
        f"a median of {median['after']} epochs with the norm after ReLU, {median['before']} before it and "
        f"{median['none']} without norm"
    ) in said
    assert f"{mean['after']} after, {mean['before']} before, {mean['none']} without" in said
    curves = by_variant(recorded("mnist-mlp"))
    first, last = (
        {id: f"{statistics.fmean(accuracies(column, curves[id])):.3f}" for id in ids}
        for column in ("epoch 1", "test")
    )
    assert (
        f"{first['after']} after the first epoch and {last['after']} in the end with the norm after ReLU, "
        f"{first['before']} and {last['before']} before it, {first['none']} and {last['none']} without norm"
    ) in said


@pytest.mark.parametrize("name", ["iris", "circles"])
def test_the_keras_form_gives_the_same_within_the_spread(name: str) -> None:
    """Means of five seeds and of twenty: at most four of their own deviations apart."""
    ours, theirs = by_variant(recorded(name)), by_variant(recorded(f"{name}-keras"))
    for id, curves in ours.items():
        found = [accuracies("test", of) for of in (curves, theirs[id])]
        variance = sum(statistics.variance(some) / len(some) for some in found)
        distance = abs(statistics.fmean(found[0]) - statistics.fmean(found[1]))
        assert distance <= 4 * variance**0.5, (id, distance, variance**0.5)

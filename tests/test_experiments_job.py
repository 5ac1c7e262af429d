"""The command `python -m benchmarks.experiments`: its arguments, what it leaves behind, and how it ends."""

import json
import signal
import subprocess
import sys
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from benchmarks import mnist
from benchmarks.experiments import data, job, torch_api
from benchmarks.experiments.experiment import (
    Claim,
    Curve,
    Curves,
    Experiment,
    Length,
    Variant,
    Verdict,
    ahead,
    at_least,
    at_most,
    epochs_to,
    final,
    first_epoch,
    repeats,
)
from benchmarks.experiments.layers import Sgd
from benchmarks.experiments.published import EXPERIMENTS
from benchmarks.experiments.results import Results, figure
from tests.lenet_data import one_thread, small_mnist  # noqa: F401

PNG = b"\x89PNG\r\n\x1a\n"
ROOT = Path(__file__).resolve().parent.parent

pytestmark = pytest.mark.usefixtures("one_thread")


@pytest.fixture
def short(monkeypatch: pytest.MonkeyPatch) -> None:
    """Every experiment in a second: a stand-in for MNIST, two epochs."""
    monkeypatch.setattr(data, "_mnist", lambda _: small_mnist())
    data._enlarged.cache_clear()
    shortened = {
        name: replace(experiment, quick=Length(seeds=2, epochs=2, examples=64))
        for name, experiment in EXPERIMENTS.items()
    }
    monkeypatch.setattr(job, "EXPERIMENTS", shortened)


def loaded(path: Path) -> dict[str, Any]:
    found: dict[str, Any] = json.loads(path.read_text())
    return found


@pytest.mark.usefixtures("short")
def test_all_experiments(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert job.main(["all", "--quick", "--normalize", "zscore", "--out", str(tmp_path)]) == 0
    captured = capsys.readouterr()
    assert len(list(tmp_path.iterdir())) == 2 * len(EXPERIMENTS)
    for name, experiment in EXPERIMENTS.items():
        found = loaded(tmp_path / f"{name}.json")
        assert found["experiment"] == name
        assert found["interrupted"] is False
        assert found["arguments"]["normalize"] == "zscore"
        assert found["length"] == {"seeds": 2, "epochs": 2, "examples": 64}
        assert list(found["variants"]) == [variant.id for variant in experiment.variants]
        for variant in found["variants"].values():
            assert [curve["seed"] for curve in variant["curves"]] == [0, 1]
            assert all(len(curve["watched_accuracy"]) == 2 for curve in variant["curves"])
        assert (tmp_path / f"{name}.png").read_bytes().startswith(PNG)
        assert experiment.title in captured.out
        for claim in found["claims"]:
            assert f"{'PASS' if claim['holds'] else 'FAIL'}  {claim['claim']}" in captured.out
            assert claim["measured"] in captured.out
    assert "100%" in captured.err


@pytest.mark.usefixtures("short")
def test_seeds_and_the_keras_form(tmp_path: Path) -> None:
    pytest.importorskip("keras")
    arguments = ["circles", "--quick", "--api", "keras", "--seeds", "1", "--out", str(tmp_path)]
    assert job.main(arguments) == 0
    found = loaded(tmp_path / "circles-keras.json")
    assert found["arguments"]["api"] == "keras"
    assert all(len(variant["curves"]) == 1 for variant in found["variants"].values())
    assert (tmp_path / "circles-keras.png").exists()


@pytest.mark.usefixtures("short")
def test_an_interruption_keeps_whole_seeds(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    calls: list[int] = []

    def interrupted(*args: Any) -> Curve:
        calls.append(args[2])
        if len(calls) == 4:  # of two variants a seed
            raise KeyboardInterrupt
        return torch_api.train(*args)

    monkeypatch.setattr(job, "_api", lambda _: interrupted)
    assert job.main(["iris", "--quick", "--out", str(tmp_path)]) == 130
    found = loaded(tmp_path / "iris.json")
    assert found["interrupted"] is True
    assert [len(variant["curves"]) for variant in found["variants"].values()] == [1, 1]


@pytest.mark.usefixtures("short")
def test_an_interruption_before_the_first_seed_leaves_earlier_files_alone(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "iris.json").write_text("earlier")

    def interrupted(*_: Any) -> Curve:
        raise KeyboardInterrupt

    monkeypatch.setattr(job, "_api", lambda _: interrupted)
    assert job.main(["iris", "--quick", "--out", str(tmp_path)]) == 130
    assert (tmp_path / "iris.json").read_text() == "earlier"
    assert "nothing is written" in capsys.readouterr().err


def test_without_mnist_there_is_one_message(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def absent(_: Path | None) -> mnist.Mnist:
        raise mnist.MnistError("MNIST was not found")

    monkeypatch.setattr(data, "_mnist", absent)
    assert job.main(["mnist-mlp", "--quick", "--out", str(tmp_path)]) == 1
    assert capsys.readouterr().err.count("MNIST was not found") == 1
    assert not list(tmp_path.iterdir())


def test_without_keras_there_is_one_message(tmp_path: Path) -> None:
    """In a process of its own, in which keras cannot be imported."""
    code = (
        "import sys; sys.modules['keras'] = None\n"
        "from benchmarks.experiments.job import main\n"
        f"sys.exit(main(['iris', '--api', 'keras', '--out', {str(tmp_path)!r}]))"
    )
    ended = subprocess.run(
        [sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, check=False
    )
    assert ended.returncode == 1
    assert "fused-bn[keras]" in ended.stderr
    assert "Traceback" not in ended.stderr


@pytest.mark.parametrize(
    ("arguments", "complaint"),
    [
        (["nothing"], "invalid choice: 'nothing'"),
        (["iris", "--seeds", "0"], "must be at least 1"),
        (["iris", "--normalize", "max"], "invalid choice: 'max'"),
        (["iris", "--api", "jax"], "invalid choice: 'jax'"),
    ],
)
def test_bad_arguments(arguments: list[str], complaint: str, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as ended:
        job.arguments(arguments)
    assert ended.value.code == 2
    assert complaint in capsys.readouterr().err


def test_ctrl_c_ends_the_command_without_a_traceback(tmp_path: Path) -> None:
    command = [sys.executable, "-m", "benchmarks.experiments", "circles", "--out", str(tmp_path)]
    process = subprocess.Popen(
        command,
        cwd=ROOT,
        stderr=subprocess.PIPE,
        text=True,
        preexec_fn=lambda: signal.signal(signal.SIGINT, signal.default_int_handler),
    )
    assert process.stderr is not None
    begun = ""
    while "circles none" not in begun:
        begun += process.stderr.read(1)
    process.send_signal(signal.SIGINT)
    assert "Traceback" not in process.stderr.read()
    assert process.wait(timeout=60) == 130


# Claims


def curves(*accuracies: list[float]) -> list[Curve]:
    """Of seeds whose accuracy on the test part is, after each epoch, what is given."""
    return [
        Curve(seed, [1.0] * len(a), a, a, {"train": a[-1], "test": a[-1]}, 1.0)
        for seed, a in enumerate(accuracies)
    ]


def test_epochs_to_an_accuracy() -> None:
    slow, never = curves([0.5, 0.7, 0.8, 0.7], [0.5, 0.6])
    assert epochs_to(0.8)(slow) == 3
    assert epochs_to(0.5)(slow) == 1
    assert epochs_to(0.8)(never) == float("inf")


def test_ahead_compares_means() -> None:
    found = {"a": curves([0.1, 0.9], [0.2, 0.7]), "b": curves([0.5, 0.79], [0.5, 0.79])}
    assert ahead("a", "b", final("test"))(found) == Verdict(True, "a 0.8000, b 0.7900")
    assert not ahead("b", "a", final("test"))(found).holds
    assert not ahead("a", "a", final("test"))(found).holds
    assert ahead("b", "a", first_epoch)(found).holds


def test_at_least_and_at_most_ask_every_seed() -> None:
    found = {"a": curves([0.95], [0.85])}
    assert at_least("a", 0.85, final("test"))(found).holds
    assert not at_least("a", 0.9, final("test"))(found).holds
    assert at_most("a", 0.95, final("test"))(found).holds
    assert not at_most("a", 0.9, final("test"))(found).holds


@pytest.mark.parametrize(
    ("published", "holds"), [(0.85, True), (0.95, True), (0.9504, True), (0.952, False), (0.84, False)]
)
def test_a_published_figure_repeats_within_the_seeds_range(published: float, holds: bool) -> None:
    variant = Variant("a", "", [], Sgd(0.1), {"test": published})
    assert repeats(variant).judge({"a": curves([0.95], [0.85])}).holds is holds


def test_circles_claims_can_fail() -> None:
    """Where norms help nothing, the claims that they do are not confirmed."""
    experiment = EXPERIMENTS["circles"]
    same = {variant.id: curves([0.5] * 34 + [0.85]) for variant in experiment.variants}
    verdicts = {claim.text: claim.judge(same).holds for claim in experiment.claims}
    assert verdicts["none: a test accuracy of 80 % takes 30 to 40 epochs"]
    assert not verdicts["after: a test accuracy of 80 % comes sooner than without norm"]
    assert not verdicts["after: a test accuracy of 80 % comes within 20 epochs"]
    assert not verdicts["after ends ahead of none"]


def experiment_with(judge: Any, needs_full: bool) -> Experiment:
    return replace(
        EXPERIMENTS["iris"],
        claims=(Claim("norms are good", judge, needs_full),),
        full=Length(seeds=1, epochs=2),
        quick=Length(seeds=1, epochs=1),
    )


@pytest.mark.parametrize(("needs_full", "count"), [(False, 1), (True, 0)])
def test_a_claim_that_needs_the_whole_training_is_not_judged_by_less(needs_full: bool, count: int) -> None:
    experiment = experiment_with(lambda _: Verdict(True, "1"), needs_full)
    found = {"none": curves([0.5]), "norm": curves([0.6])}
    for length, expected in ((experiment.quick, count), (experiment.full, 1)):
        results = Results(experiment, length, {"api": "torch"}, {}, dict(found))
        assert len(results.judged()) == expected


@pytest.mark.parametrize(("check", "holds", "code"), [(True, False, 1), (True, True, 0), (False, False, 0)])
def test_check_makes_a_failed_claim_an_exit_code(
    check: bool, holds: bool, code: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def judge(_: Curves) -> Verdict:
        return Verdict(holds, "")

    monkeypatch.setattr(job, "EXPERIMENTS", {"iris": experiment_with(judge, False)})
    arguments = ["iris", "--quick", "--out", str(tmp_path), *(["--check"] if check else [])]
    assert job.main(arguments) == code


def test_figures_stand_beside_the_published_ones() -> None:
    variant = Variant("a", "", [], Sgd(0.1), {"test": 0.846, "first epoch": 0.93})
    assert figure(variant, "test", curves([0.5, 0.85], [0.5, 0.83])) == "0.840 ± 0.014 (0.846)"
    assert figure(variant, "first epoch", curves([0.5, 0.85])) == "0.500 (0.930)"
    assert figure(variant, "train", curves([0.5, 0.85])) == "0.850"


def test_a_loss_that_is_not_finite_is_null_in_the_file(tmp_path: Path) -> None:
    (curve,) = curves([0.1])
    curve.train_loss = [float("nan")]
    arguments = {"api": "torch", "norm": "fused", "normalize": "none"}
    experiment = experiment_with(lambda _: Verdict(True, "1"), False)
    results = Results(experiment, experiment.quick, arguments, {}, {"none": [curve], "norm": [curve]})
    results.write(tmp_path / "iris.json")
    assert loaded(tmp_path / "iris.json")["variants"]["norm"]["curves"][0]["train_loss"] == [None]

"""The command `python -m benchmarks.experiments`: its arguments, its files, and its exit codes."""

import io
import itertools
import json
import signal
import subprocess
import sys
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from rich.console import Console
from torch import nn

pytest.importorskip("sklearn")

import fused_bn
from benchmarks import mnist
from benchmarks.experiments import data, job, plots, torch_api
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
from benchmarks.experiments.results import Results
from tests.benchmarks.lenet_data import one_thread, small_mnist  # noqa: F401

PNG = b"\x89PNG\r\n\x1a\n"
ROOT = Path(__file__).resolve().parent.parent.parent

pytestmark = pytest.mark.usefixtures("one_thread")


@pytest.fixture
def short(monkeypatch: pytest.MonkeyPatch) -> None:
    """Every experiment in a second: a stand-in for MNIST, and two epochs."""
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
    assert job.main(["--quick", "--normalize", "zscore", "--out", str(tmp_path)]) == 0
    captured = capsys.readouterr()
    assert len(list(tmp_path.iterdir())) == 2 * len(EXPERIMENTS)
    for name, experiment in EXPERIMENTS.items():
        stem = f"{name}-zscore-quick"
        found = loaded(tmp_path / f"{stem}.json")
        assert found["experiment"] == name
        assert found["watched"] == ("validation" if name == "iris" else "test")
        assert found["interrupted"] is False
        assert found["arguments"]["normalize"] == "zscore"
        assert found["length"] == {"seeds": 2, "epochs": 2, "examples": 64}
        assert list(found["variants"]) == [variant.id for variant in experiment.variants]
        for variant in found["variants"].values():
            assert [curve["seed"] for curve in variant["curves"]] == [0, 1]
            assert all(len(curve["watched_accuracy"]) == 2 for curve in variant["curves"])
        assert (tmp_path / f"{stem}.png").read_bytes().startswith(PNG)
        assert experiment.title in captured.out
        for claim in found["claims"]:
            assert f"{'PASS' if claim['holds'] else 'FAIL'}  {claim['claim']}" in captured.out
            assert claim["measured"] in captured.out
    assert "100%" in captured.err


@pytest.mark.usefixtures("short")
@pytest.mark.parametrize("api", job.APIS)
def test_options_are_in_the_names_of_files(
    api: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    if api == "keras":
        pytest.importorskip("keras")
    arguments = ["circles", "--quick", "--api", api, "--seeds", "1", "--norm", "framework"]
    assert job.main([*arguments, "--normalize", "mean", "--out", str(tmp_path)]) == 0
    stem = {"torch": "circles-framework-mean-quick", "keras": "circles-keras-framework-mean-quick"}[api]
    assert sorted(path.name for path in tmp_path.iterdir()) == [f"{stem}.json", f"{stem}.png"]
    found = loaded(tmp_path / f"{stem}.json")
    assert found["arguments"]["api"] == api
    assert "out" not in found["arguments"]
    assert ("keras" in found["environment"]) == (api == "keras")
    assert all(len(variant["curves"]) == 1 for variant in found["variants"].values())
    assert f"{api} API" in capsys.readouterr().out


@pytest.mark.usefixtures("short")
@pytest.mark.parametrize(("norm", "kind"), [("fused", fused_bn.BatchNorm1d), ("framework", nn.BatchNorm1d)])
def test_the_norm_that_was_asked_for_is_trained(
    norm: str, kind: type, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    built: list[nn.Module] = []
    real = torch_api.model

    def model(*args: Any) -> nn.Sequential:
        built.append(real(*args))
        return built[-1]  # type: ignore[return-value]

    monkeypatch.setattr(torch_api, "model", model)
    arguments = ["iris", "--quick", "--seeds", "1", "--norm", norm, "--out", str(tmp_path)]
    assert job.main(arguments) == 0
    kinds = {type(module) for module in built[1].children() if isinstance(module, nn.BatchNorm1d)}
    assert kinds == {kind}
    assert ("the framework's norm" in capsys.readouterr().out) == (norm == "framework")


def interrupted_after(calls: int, monkeypatch: pytest.MonkeyPatch) -> None:
    """Sends Ctrl-C after this many trained runs."""
    real, done = torch_api.train, itertools.count()

    def train(*args: Any) -> Curve:
        if next(done) == calls:
            raise KeyboardInterrupt
        return real(*args)

    monkeypatch.setattr(torch_api, "train", train)


@pytest.mark.usefixtures("short")
def test_an_interruption_keeps_whole_seeds_apart_from_finished_files(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    interrupted_after(3, monkeypatch)  # two variants per seed
    (tmp_path / "iris-quick.json").write_text("finished")
    assert job.main(["iris", "--quick", "--out", str(tmp_path)]) == 130
    found = loaded(tmp_path / "iris-quick-interrupted.json")
    assert found["interrupted"] is True
    assert [len(variant["curves"]) for variant in found["variants"].values()] == [1, 1]
    assert (tmp_path / "iris-quick.json").read_text() == "finished"


@pytest.mark.usefixtures("short")
def test_an_interruption_before_the_first_seed_leaves_nothing(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    interrupted_after(1, monkeypatch)
    assert job.main(["iris", "--quick", "--out", str(tmp_path)]) == 130
    assert not list(tmp_path.iterdir())
    assert "nothing is written" in capsys.readouterr().err


@pytest.mark.usefixtures("short")
def test_an_interruption_while_the_plot_is_drawn(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def write(*_: Any) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr(plots, "write", write)
    assert job.main(["iris", "--quick", "--seeds", "1", "--out", str(tmp_path)]) == 130


@pytest.mark.usefixtures("short")
def test_a_file_that_cannot_be_written_is_one_message_behind_the_figures(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "iris-quick.json").mkdir()
    assert job.main(["iris", "--quick", "--seeds", "1", "--out", str(tmp_path)]) == 1
    captured = capsys.readouterr()
    assert "iris-quick.json" in captured.err.splitlines()[-1]
    assert "published" in captured.out


def test_without_mnist_there_is_one_message(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def absent(_: Path | None) -> mnist.Mnist:
        raise mnist.MnistError("MNIST was not found")

    monkeypatch.setattr(data, "_mnist", absent)
    assert job.main(["all", "--quick", "--out", str(tmp_path)]) == 1
    assert capsys.readouterr().err == "MNIST was not found\n"  # before iris is trained
    assert not list(tmp_path.iterdir())


def test_without_keras_there_is_one_message(tmp_path: Path) -> None:
    """Runs in a new process in which keras cannot be imported."""
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
    while "%" not in begun:
        begun += (read := process.stderr.read(1))
        assert read, begun
    process.send_signal(signal.SIGINT)
    assert "Traceback" not in process.stderr.read()
    assert process.wait(timeout=60) == 130


# Claims


def curves(*accuracies: list[float]) -> list[Curve]:
    """Curves of seeds with the given test accuracies after each epoch."""
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
    assert ahead("a", "b", final("test"))(found) == Verdict(True, "a 0.8000, b 0.7900, ahead in 1 of 2 seeds")
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
    ("published", "holds"), [(0.90, True), (0.9632, True), (0.9636, True), (0.965, False), (0.83, False)]
)
def test_a_published_figure_repeats_within_two_deviations(published: float, holds: bool) -> None:
    """Mean 0.9 and deviation sqrt(4 / 4000) = 0.0316. The published figure is rounded to 0.001."""
    variant = Variant("a", "", [], Sgd(0.1), {"test": published})
    seeds = curves([0.86], [0.88], [0.9], [0.92], [0.94])
    assert repeats(variant).judge({"a": seeds}).holds is holds
    assert repeats(variant).needs_seeds == 5


def test_circles_claims_can_fail() -> None:
    """If norms do not help, the claims that they do are not confirmed."""
    experiment = EXPERIMENTS["circles"]
    same = {variant.id: curves(*[[0.5] * 34 + [0.85]] * 2) for variant in experiment.variants}
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
        results = Results(experiment, length, {}, {}, "test", dict(found))
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


def test_claims_that_need_seeds_are_not_judged_by_fewer() -> None:
    experiment = replace(
        EXPERIMENTS["iris"], claims=(Claim("c", lambda _: Verdict(True, ""), needs_seeds=2),)
    )
    for count in (1, 2):
        found = {id: curves(*[[0.5]] * count) for id in ("none", "norm")}
        assert len(Results(experiment, experiment.full, {}, {}, "test", found).judged()) == count - 1


def test_figures_stand_above_the_published_ones_on_80_columns() -> None:
    seeds = [
        Curve(0, [1.0], [0.5], [0.5], {"train": 0.5, "validation": 0.4, "test": 0.850}, 1.0),
        Curve(1, [1.0], [0.5], [0.5], {"train": 0.5, "validation": 0.4, "test": 0.830}, 1.0),
    ]
    experiment = EXPERIMENTS["iris"]
    results = Results(experiment, experiment.full, {}, {}, "validation", {"none": seeds, "norm": seeds})
    text = io.StringIO()
    Console(file=text, width=80).print(results.table())
    rows = [line.split() for line in text.getvalue().splitlines()]
    (norm,) = (number for number, row in enumerate(rows) if row[:1] == ["norm"])
    assert rows[norm][-4:] == ["0.840", "±", "0.014", "1.0"]
    assert rows[norm + 1] == ["published", "0.978", "0.933", "0.967"]
    assert "…" not in text.getvalue()


def test_a_loss_that_is_not_finite_is_null_in_the_file(tmp_path: Path) -> None:
    (curve,) = curves([0.1])
    curve.train_loss = [float("nan")]
    experiment = experiment_with(lambda _: Verdict(True, "1"), False)
    results = Results(experiment, experiment.quick, {}, {}, "test", {"none": [curve], "norm": [curve]})
    results.write(tmp_path / "iris.json")
    assert loaded(tmp_path / "iris.json")["variants"]["norm"]["curves"][0]["train_loss"] == [None]

"""The job behind `python -m benchmarks.experiments`: its arguments, its runs, and its files."""

import argparse
import math
import sys
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, Protocol

from rich.console import Console
from tqdm import tqdm  # type: ignore[import-untyped]

from benchmarks import console, mnist, options
from benchmarks.experiments import plots, torch_api
from benchmarks.experiments.data import Split
from benchmarks.experiments.experiment import Curve, Experiment, Length, Training
from benchmarks.experiments.normalization import SCALERS, normalized
from benchmarks.experiments.published import EXPERIMENTS
from benchmarks.experiments.results import Results

ALL = "all"
APIS = ("torch", "keras")

BAR = "{desc} {percentage:3.0f}% {bar} {remaining} left"


class Api(Protocol):
    """What the modules `torch_api` and `keras_api` provide."""

    def train(self, training: Training, report: Callable[[], object]) -> Curve: ...

    def conditions(self) -> dict[str, Any]: ...


def arguments(argv: Sequence[str] | None) -> argparse.Namespace:
    """Parses the command line. Exits with a message and status 2 if it is wrong."""
    parser = argparse.ArgumentParser(
        prog="python -m benchmarks.experiments",
        description="Repeats published experiments with batch norm: prints our figures beside the published, "
        "judges the claims, and writes a JSON file and a plot of each.",
    )
    parser.add_argument(
        "name", nargs="?", choices=(*EXPERIMENTS, ALL), default=ALL, help="which experiment; without it all"
    )
    parser.add_argument(
        "--api", choices=APIS, default="torch", help="whose modules and training (default: torch)"
    )
    parser.add_argument(
        "--seeds",
        type=options.positive,
        help="train each variant so often (default: as often as the experiment needs)",
    )
    parser.add_argument("--quick", action="store_true", help="less of everything, for a short look")
    parser.add_argument(
        "--normalize",
        choices=SCALERS,
        default="none",
        help="each input feature, fitted to the training examples: minmax to [0, 1], mean by mean and range, "
        "zscore by mean and deviation (default: none)",
    )
    parser.add_argument(
        "--norm",
        choices=("fused", "framework"),
        default="fused",
        help="framework: PyTorch's or Keras' own batch norm in place of ours (default: fused)",
    )
    parser.add_argument("--check", action="store_true", help="exit code 1 where a claim does not repeat")
    parser.add_argument(
        "--data",
        type=Path,
        help="directory with the four IDX files of MNIST, plain or .gz (default: FUSED_BN_DATA, then the "
        "user cache, then a download)",
    )
    parser.add_argument(
        "--out",
        type=options.directory,
        default="results/experiments",
        help="directory for JSON and plots, whose names tell options from each other; earlier ones of the "
        "same options are replaced (default: results/experiments)",
    )
    return parser.parse_args(argv)


def main(argv: Sequence[str] | None = None) -> int:
    """Runs the experiments. Returns 0, 1 (see the message, or --check and a failed claim) or 130."""
    args = arguments(argv)
    try:
        held = _job(args)
    except KeyboardInterrupt:
        return console.EXIT_INTERRUPTED
    except (ImportError, mnist.MnistError, OSError) as error:
        print(error, file=sys.stderr)
        return console.EXIT_FAILED
    return console.EXIT_FAILED if args.check and not held else 0


def _job(args: argparse.Namespace) -> bool:
    """Returns whether all claims hold. Writes the files of an experiment as soon as it is finished."""
    api = _api(args.api)
    experiments = list(EXPERIMENTS.values()) if args.name == ALL else [EXPERIMENTS[args.name]]
    for experiment in experiments:
        experiment.load(0, 1, args.data)  # loads all data first, to fail before hours of training
    recorded = {name: value for name, value in options.plain(args).items() if name not in ("data", "out")}
    held = True
    for experiment in experiments:
        results = Results(experiment, _length(experiment, args), recorded, api.conditions())
        try:
            _run(results, args, api)
        except KeyboardInterrupt:
            results.interrupted = True
            _write_results(results, args.out)
            raise
        _write_results(results, args.out)
        held = held and all(judged.verdict.holds for judged in results.judged())
    return held


def _api(name: str) -> Api:
    if name == "torch":
        return torch_api
    import fused_bn.keras  # noqa: F401 - which says what to do where Keras, an extra, is missing
    from benchmarks.experiments import keras_api

    return keras_api


def _length(experiment: Experiment, args: argparse.Namespace) -> Length:
    length = experiment.quick if args.quick else experiment.full
    return Length(args.seeds or length.seeds, length.epochs, length.examples)


def _run(results: Results, args: argparse.Namespace, api: Api) -> None:
    """Fills `results` seed by seed, so that an interruption leaves the same seeds for all variants."""
    experiment, length = results.experiment, results.length

    def split_of(seed: int) -> Split:
        return normalized(experiment.load(seed, length.examples, args.data), args.normalize)

    split = split_of(0)
    results.watched = split.watched
    steps = math.ceil(len(split.train.labels) / experiment.batch_size)
    total = length.seeds * len(experiment.variants) * length.epochs * steps
    interval = 0.1 if sys.stderr.isatty() else 10
    with tqdm(total=total, mininterval=interval, dynamic_ncols=True, bar_format=BAR) as bar:
        for seed in range(length.seeds):
            split = split_of(seed) if seed else split
            curves = {}
            for variant in experiment.variants:
                bar.set_description_str(f"{experiment.name} {variant.id}, seed {seed}", refresh=False)
                training = Training(variant, split, seed, length.epochs, experiment.batch_size, args.norm)
                curves[variant.id] = api.train(training, bar.update)
            results.add(curves)


def _write_results(results: Results, directory: Path) -> None:
    """Writes and prints the finished seeds, if any."""
    if results.interrupted:
        left = "only whole seeds are" if results.seeds else "before a seed was finished: nothing is"
        print(f"Interrupted: {left} written.", file=sys.stderr)
    if not results.seeds:
        return
    stem = directory / results.stem
    try:
        results.write(stem.with_suffix(".json"))
        plots.write(results, stem.with_suffix(".png"))
    finally:
        _print(results)
    print(f"{stem}.json and .png are written")


def _print(results: Results) -> None:
    print(f"\n{results.experiment.title}\n{results.conditions}")
    for variant in results.experiment.variants:
        print(f"  {variant.id}: {variant.description}")
    Console(width=None if sys.stdout.isatty() else 120).print(results.table())
    for judged in results.judged():
        print(judged)

"""The job behind `python -m benchmarks.experiments`: arguments, runs, and what is left."""

import argparse
import math
import sys
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Protocol

import torch
from rich.console import Console
from tqdm import tqdm  # type: ignore[import-untyped]

from benchmarks import mnist, options
from benchmarks.environment import environment
from benchmarks.experiments import plots, torch_api
from benchmarks.experiments.data import Split
from benchmarks.experiments.experiment import Curve, Experiment, Length, Variant
from benchmarks.experiments.normalization import SCALERS, normalized
from benchmarks.experiments.published import EXPERIMENTS
from benchmarks.experiments.results import Results

ALL = "all"
APIS = ("torch", "keras")

BAR = "{desc} {percentage:3.0f}% {bar} {remaining} left"


class Train(Protocol):
    """`torch_api.train` or `keras_api.train`."""

    def __call__(
        self,
        variant: Variant,
        split: Split,
        seed: int,
        epochs: int,
        batch_size: int,
        norm: str,
        report: Callable[[], None],
    ) -> Curve: ...


def arguments(argv: Sequence[str] | None) -> argparse.Namespace:
    """The parsed command line; exits with a message and status 2 where it is wrong."""
    parser = argparse.ArgumentParser(
        prog="python -m benchmarks.experiments",
        description="Repeats published experiments with batch norm: prints our figures beside the published, "
        "judges the claims, and writes a JSON file and a plot of each.",
        formatter_class=argparse.ArgumentDefaultsHelpFormatter,
    )
    parser.add_argument("name", choices=(*EXPERIMENTS, ALL), help="which experiment")
    parser.add_argument("--api", choices=APIS, default="torch", help="whose modules and training")
    parser.add_argument(
        "--seeds",
        type=options.positive,
        help="train each variant so often; without it, as often as the experiment needs",
    )
    parser.add_argument("--quick", action="store_true", help="less of everything, for a short look")
    parser.add_argument(
        "--normalize",
        choices=SCALERS,
        default="none",
        help="each input feature, fitted to the training examples: minmax to [0, 1], mean by mean and range, "
        "zscore by mean and deviation",
    )
    parser.add_argument(
        "--norm",
        choices=("fused", "framework"),
        default="fused",
        help="framework: PyTorch's or Keras' own batch norm in place of ours",
    )
    parser.add_argument("--check", action="store_true", help="exit code 1 where a claim does not repeat")
    parser.add_argument(
        "--data",
        type=Path,
        help="directory with the four IDX files of MNIST, plain or .gz; without it FUSED_BN_DATA, then the "
        "user cache, then a download",
    )
    parser.add_argument(
        "--out", type=options.directory, default="results/experiments", help="directory for JSON and plots"
    )
    return parser.parse_args(argv)


def main(argv: Sequence[str] | None = None) -> int:
    """Runs the experiments; returns 0, 1 (no data, no Keras, or --check and a claim failed) or 130."""
    args = arguments(argv)
    try:
        train = _api(args.api)
    except ImportError as error:
        print(error, file=sys.stderr)
        return options.EXIT_FAILED
    held = True
    for name in EXPERIMENTS if args.name == ALL else (args.name,):
        results = Results(
            EXPERIMENTS[name],
            _length(EXPERIMENTS[name], args),
            options.plain(args),
            environment(torch.device("cpu")),
        )
        try:
            _run(results, args, train)
        except mnist.MnistError as error:
            print(error, file=sys.stderr)
            return options.EXIT_FAILED
        except KeyboardInterrupt:
            results.interrupted = True
        _leave(results, args.out)
        if results.interrupted:
            return options.EXIT_INTERRUPTED
        held = held and all(judged.verdict.holds for judged in results.judged())
    return options.EXIT_FAILED if args.check and not held else 0


def _api(name: str) -> Train:
    if name == "torch":
        return torch_api.train
    import fused_bn.keras  # noqa: F401 - which says what to do where Keras, an extra, is missing
    from benchmarks.experiments import keras_api

    return keras_api.train


def _length(experiment: Experiment, args: argparse.Namespace) -> Length:
    length = experiment.quick if args.quick else experiment.full
    return Length(args.seeds or length.seeds, length.epochs, length.examples)


def _run(results: Results, args: argparse.Namespace, train: Train) -> None:
    """Fills `results` seed by seed, so that what an interruption leaves is the same for all variants."""
    experiment, length = results.experiment, results.length
    interval = 0.1 if sys.stderr.isatty() else 10
    with tqdm(mininterval=interval, dynamic_ncols=True, bar_format=BAR) as bar:
        for seed in range(length.seeds):
            split = normalized(experiment.load(seed, length.examples, args.data), args.normalize)
            steps = math.ceil(len(split.train.labels) / experiment.batch_size)
            bar.total = length.seeds * len(experiment.variants) * length.epochs * steps
            curves = {}
            for variant in experiment.variants:
                bar.set_description_str(f"{experiment.name} {variant.id}, seed {seed}", refresh=False)
                curves[variant.id] = train(
                    variant, split, seed, length.epochs, experiment.batch_size, args.norm, bar.update
                )
            results.add(curves)


def _leave(results: Results, directory: Path) -> None:
    """Writes and prints what was finished; without a finished seed, leaves earlier files alone."""
    if results.interrupted:
        left = "only whole seeds are" if results.seeds else "before a seed was finished: nothing is"
        print(f"Interrupted: {left} written.", file=sys.stderr)
    if not results.seeds:
        return
    stem = directory / results.stem
    results.write(stem.with_suffix(".json"))
    plots.write(results, stem.with_suffix(".png"))
    print(f"\n{results.experiment.title}\n{results.conditions}")
    Console(width=None if sys.stdout.isatty() else 120).print(results.table())
    for judged in results.judged():
        print(judged)
    print(f"{stem}.json and .png are written")

"""The job behind `python -m benchmarks.lenet`: its arguments, the order of work, and its results."""

import argparse
import sys
from collections.abc import Sequence
from functools import partial
from pathlib import Path

import torch
from rich.console import Console
from tqdm import tqdm  # type: ignore[import-untyped]

from benchmarks import console, mnist, options
from benchmarks.environment import environment
from benchmarks.lenet import agreement, measure, plots, processes, sharing
from benchmarks.lenet.model import RECIPES, VARIANTS
from benchmarks.lenet.results import Result, Results
from benchmarks.lenet.training import Data, Progress, Settings, Trainer

DTYPES = {"float32": torch.float32, "bfloat16": torch.bfloat16}

BAR = "{desc} {percentage:3.0f}% {bar} {remaining} left{postfix}"  # fits 80 columns


def arguments(argv: Sequence[str] | None) -> argparse.Namespace:
    """Parses the command line. Exits with a message and status 2 if it is wrong."""
    variants = "; ".join(f"{v.id}: {v.description}" for v in VARIANTS.values())
    parser = argparse.ArgumentParser(
        prog="python -m benchmarks.lenet",
        description="Trains LeNet-5 on MNIST with and without batch norm, by PyTorch and by fused_bn, checks "
        "that both follow the same losses, and writes a table, results.json and plots.",
        formatter_class=argparse.ArgumentDefaultsHelpFormatter,
    )
    parser.add_argument(
        "--epochs", type=options.positive, default=10, help="how often the training images are seen"
    )
    parser.add_argument(
        "--steps", type=options.positive, help="at most this many training steps an epoch, for a short look"
    )
    parser.add_argument("--batch-size", type=options.positive, default=64, help="images a step")
    parser.add_argument("--device", type=options.device, default="cpu", help="cpu, cuda or cuda:N")
    parser.add_argument(
        "--dtype", choices=DTYPES, default="float32", help="bfloat16: autocast, with float32 parameters"
    )
    parser.add_argument(
        "--variants",
        nargs="+",
        choices=VARIANTS,
        metavar="ID",
        help=f"{variants}; without it all, with --sync {', '.join(sharing.VARIANTS)}",
    )
    parser.add_argument(
        "--sync",
        action="store_true",
        help="each process takes its share of every batch, with synchronised norms, under "
        f"DistributedDataParallel: {processes.START}; variants {', '.join(sharing.VARIANTS)} only",
    )
    parser.add_argument(
        "--recipe",
        choices=RECIPES,
        default="article",
        help="article: softmax output into CrossEntropyLoss, as published; modern: logits",
    )
    parser.add_argument(
        "--seed", type=options.seed, default=0, help="of the parameters and the order of the images"
    )
    parser.add_argument(
        "--data",
        type=Path,
        help="directory with the four IDX files of MNIST, plain or .gz; without it FUSED_BN_DATA, then the "
        "user cache, then a download",
    )
    parser.add_argument(
        "--out", type=options.directory, default="results/lenet", help="directory for JSON and plots"
    )
    args = parser.parse_args(argv)
    if complaint := processes.complaint(args.sync, args.device):
        parser.error(complaint)
    possible = sharing.VARIANTS if args.sync else tuple(VARIANTS)
    args.variants = args.variants or list(possible)
    if impossible := set(args.variants) - set(possible):
        parser.error(f"--sync has no synchronised norm for {', '.join(sorted(impossible))}")
    return args


def main(argv: Sequence[str] | None = None) -> int:
    """Runs the job. Returns 0, 1 (no data, or losses apart beyond rounding) or 130 (interrupted)."""
    try:
        with processes.joined():
            return _job(argv)
    except KeyboardInterrupt:
        return console.EXIT_INTERRUPTED


def _job(argv: Sequence[str] | None) -> int:
    with processes.only_first_prints(errors=True):
        args = arguments(argv)
    images = processes.broadcast(partial(_images, args.data))
    if images is None:
        return console.EXIT_FAILED
    device = processes.own(args.device)
    settings = Settings(args.recipe, args.batch_size, device, DTYPES[args.dtype], args.seed)
    found = {"mnist": images.source, "processes": processes.count()}
    results = Results(options.plain(args), {**environment(device), **found})
    try:
        with processes.only_first_prints():
            _work(args, Data.of(images, device), settings, results)
    except KeyboardInterrupt:
        results.interrupted = True
        _write_results(results, args.out)
        raise
    _write_results(results, args.out)
    return 0 if all(a.passed for a in results.agreements) else console.EXIT_FAILED


def _images(directory: Path | None) -> mnist.Mnist | None:
    """Loads the data. Prints a message and returns None if there are none."""
    try:
        return mnist.load(directory)
    except mnist.MnistError as error:
        print(error, file=sys.stderr)
        return None


def _work(args: argparse.Namespace, data: Data, settings: Settings, results: Results) -> None:
    """Fills `results` as far as it gets."""
    variants = [VARIANTS[id] for id in dict.fromkeys(args.variants)]
    kind = sharing.SharedTrainer if args.sync else Trainer
    for variant in variants:
        if variant.id in agreement.PAIRS:
            print(f"Comparing the losses of {variant.id} with those of {agreement.PAIRS[variant.id]} ...")
            results.agreements.append(agreement.follow(variant, data, settings, kind))
    print("Measuring norm layers and memory ...")
    norm_ms = measure.norm_times(variants, data, settings, kind)
    trainers = []
    for variant in variants:
        peak = measure.peak_memory(variant, data, settings, kind)
        trainer = kind(variant.norm, variant.tanh, data, settings)
        trainers.append(trainer)
        results.results.append(Result(variant, trainer.epochs, norm_ms.get(variant.id), peak))
    _train(args, trainers, results)


def _train(args: argparse.Namespace, trainers: list[Trainer], results: Results) -> None:
    """Trains all variants in turn, epoch by epoch, so that a slow spell of the machine affects all."""
    steps = min(trainers[0].steps_per_epoch, args.steps or trainers[0].steps_per_epoch)
    turns = ((n, t, r) for n in range(args.epochs) for t, r in zip(trainers, results.results, strict=True))
    # Without a terminal every update of the bar is a new line, so one every ten seconds is enough.
    interval = 0.1 if sys.stderr.isatty() else 10
    look = {"mininterval": interval, "dynamic_ncols": True, "bar_format": BAR}
    with tqdm(total=args.epochs * len(trainers) * steps, disable=not processes.first(), **look) as bar:
        for turn, (number, trainer, result) in enumerate(turns):
            name = f"{number + 1}/{args.epochs} {result.variant.id}"
            bar.set_description_str(name, refresh=False)
            epoch = trainer.train_epoch(args.steps, partial(_show, bar, turn * steps))
            bar.update((turn + 1) * steps - bar.n)
            bar.write(
                f"epoch {name:<18} loss {epoch.train_loss:.4f}, accuracy {epoch.train_accuracy:.2%}, "
                f"test accuracy {epoch.test_accuracy:.2%}, {epoch.images_per_second:,.0f} images/s"
            )


def _show(bar: tqdm, done_before: int, progress: Progress) -> None:
    loss, accuracy, rate = progress.loss, progress.accuracy, progress.images_per_second
    bar.set_postfix_str(f"loss {loss:.4f}, accuracy {accuracy:.2%}, {rate:,.0f} images/s", refresh=False)
    bar.update(done_before + progress.steps - bar.n)


def _write_results(results: Results, directory: Path) -> None:
    """Writes and prints the finished epochs. If there are none, keeps earlier files.

    Only the first process does this.
    """
    if not processes.first():
        return
    results.results = [result for result in results.results if result.epochs]
    if not results.results:
        print("Interrupted before an epoch was finished: nothing is written.", file=sys.stderr)
        return
    if results.interrupted:
        print("Interrupted: only what was finished before is written.", file=sys.stderr)
    try:
        results.write(directory / "results.json")
        plots.write(results, directory)
    finally:
        Console().print(results.table())
        for checked in results.agreements:
            print(checked)
    print(f"results.json and plots are in {directory}")

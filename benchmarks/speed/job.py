"""The job behind `python -m benchmarks.speed`: its arguments, the order of work, and its results."""

import argparse
import random
import sys
from collections.abc import Sequence
from pathlib import Path

import torch
from rich.console import Console
from tqdm import tqdm  # type: ignore[import-untyped]

from benchmarks import console, files, options, timing
from benchmarks.comparison import DIRECTIONS, DTYPES, SHAPES, Case, Comparison, WrongResultError, grid
from benchmarks.environment import environment
from benchmarks.memory import kept_bytes, peak_bytes
from benchmarks.speed import plots, tables
from benchmarks.speed.results import CaseResult, Results

QUICK_SHAPES = SHAPES[:2]
QUICK_ROUNDS = 3
ROUNDS = 11
TINY = Case((2, 4, 2, 2), "contiguous", "float32")
"""A case so small that only the host's time counts."""
HOST_ROUNDS = 25


def arguments(argv: Sequence[str] | None) -> argparse.Namespace:
    """Parses the command line. Exits with a message and status 2 if it is wrong."""
    parser = argparse.ArgumentParser(
        prog="python -m benchmarks.speed",
        description="Times fused_bn.BatchNorm2d(activation='relu') beside eager nn.BatchNorm2d + nn.ReLU and "
        "a plain copy of the tensor, in training, and writes a table, results.json and a plot.",
        formatter_class=argparse.ArgumentDefaultsHelpFormatter,
    )
    parser.add_argument("--device", type=options.device, default="cpu", help="cpu, cuda or cuda:N")
    parser.add_argument("--threads", type=options.threads, help="of torch on the CPU; its default without")
    parser.add_argument("--rounds", type=options.positive, help=f"readings a cell; {ROUNDS} without")
    parser.add_argument("--shapes", nargs="+", type=_shape, metavar="NxCxHxW", help="instead of the grid's")
    parser.add_argument(
        "--dtypes", nargs="+", choices=DTYPES, default=["float32", "bfloat16"], help="of the input"
    )
    parser.add_argument("--only", default="", metavar="TEXT", help="the cases with TEXT in their names")
    kind = parser.add_mutually_exclusive_group()
    kind.add_argument("--compile", action="store_true", help="times torch.compile too, which takes minutes")
    kind.add_argument("--quick", action="store_true", help="a short look at the small shapes, in few rounds")
    parser.add_argument("--check", action="store_true", help="exit code 1 where a required figure is missed")
    parser.add_argument(
        "--seed", type=options.seed, default=0, help="of the data and the order of the readings"
    )
    parser.add_argument(
        "--out", type=options.directory, default="results/speed", help="directory for JSON and plot"
    )
    parser.add_argument("--markdown", type=Path, metavar="FILE", help="writes the table there as Markdown")
    args = parser.parse_args(argv)
    args.rounds = args.rounds or (QUICK_ROUNDS if args.quick else ROUNDS)
    args.shapes = args.shapes or list(QUICK_SHAPES if args.quick else SHAPES)
    if not _cases(args):
        parser.error(f"no case has {args.only!r} in its name; one is {grid()[0].id!r}")
    return args


def _shape(text: str) -> tuple[int, ...]:
    try:
        shape = tuple(map(int, text.split("x")))
    except ValueError:
        shape = ()
    if len(shape) != 4 or min(shape) < 1 or shape[0] * shape[2] * shape[3] < 2:
        raise argparse.ArgumentTypeError(
            f"must be NxCxHxW with two values a channel or more, but got {text!r}"
        )
    return shape


def _cases(args: argparse.Namespace) -> list[Case]:
    return grid(tuple(args.shapes), tuple(args.dtypes), args.only)


def main(argv: Sequence[str] | None = None) -> int:
    """Runs the job. Returns 1 for a wrong result or, with --check, a missed figure; 130 when interrupted."""
    args = arguments(argv)
    if args.threads:
        torch.set_num_threads(args.threads)
    results = Results(options.plain(args), environment(args.device))
    try:
        _work(args, results)
    except KeyboardInterrupt:
        results.interrupted = True
    return _write_results(results, args)


def _work(args: argparse.Namespace, results: Results) -> None:
    """Fills `results` as far as it gets."""
    order = random.Random(args.seed)
    cases = _cases(args)
    # Without a terminal every update of the bar is a new line, so one every ten seconds is enough.
    interval = 0.1 if sys.stderr.isatty() else 10
    total = 1 + len(cases) * (1 + len(DIRECTIONS))
    with tqdm(total=total, mininterval=interval, dynamic_ncols=True) as bar:
        bar.set_description("host time of a tiny call", refresh=False)
        results.host = _host_times(args, order)
        bar.update()
        for case in cases:
            bar.set_description(case.id, refresh=False)
            _measure(case, args, order, results, bar)


def _host_times(args: argparse.Namespace, order: random.Random) -> dict[str, list[float]]:
    comparison = Comparison(TINY, args.device, args.seed)
    comparison.check()
    slots = comparison.slots("forward+backward")
    rounds = args.rounds if args.quick else max(args.rounds, HOST_ROUNDS)
    return timing.interleaved(slots, rounds, args.device, order)


def _measure(case: Case, args: argparse.Namespace, order: random.Random, results: Results, bar: tqdm) -> None:
    """Checks results, then measures memory, then time. Each measurement is kept at once."""
    comparison = Comparison(case, args.device, args.seed, args.compile)
    result = CaseResult(case)
    try:
        comparison.check()
    except WrongResultError as error:
        result.wrong = str(error)
        results.results.append(result)
        bar.update(1 + len(DIRECTIONS))
        return
    _measure_memory(comparison, result, args.device)
    results.results.append(result)
    bar.update()
    for direction in DIRECTIONS:
        slots = comparison.slots(direction)
        result.timings[direction] = timing.interleaved(slots, args.rounds, args.device, order)
        bar.update()


def _measure_memory(comparison: Comparison, result: CaseResult, device: torch.device) -> None:
    modules = {"batch_norm": comparison.batch_norm, **comparison.modules}
    for row, module in modules.items():
        if row != "compile":  # its graph decides itself what to keep
            result.kept_bytes[row] = kept_bytes(module, comparison.input)
            comparison.clear_gradients()
            result.peak_bytes[row] = peak_bytes(comparison.step(module), device)
            comparison.clear_gradients()


def _write_results(results: Results, args: argparse.Namespace) -> int:
    """Writes and prints the measurements, if any, and returns the exit code."""
    if not results.results:
        print("Interrupted before a case was measured: nothing is written.", file=sys.stderr)
        return console.EXIT_INTERRUPTED
    try:
        results.write(args.out / "results.json")
        plots.write(results, args.out / "speedup.png")
        if args.markdown:
            files.write_whole(args.markdown, tables.markdown(results))
    finally:
        # If output is no terminal, rich assumes 80 columns, and the table is wider.
        Console(width=None if sys.stdout.isatty() else 120).print(tables.terminal(results))
        print(*results.requirements(), sep="\n")
    for result in results.wrong:
        print(f"WRONG, not timed: {result.case.id}: {result.wrong}", file=sys.stderr)
    print(f"results.json and speedup.png are in {args.out}")
    if results.interrupted:
        print("Interrupted: only what was measured before is there.", file=sys.stderr)
        return console.EXIT_INTERRUPTED
    missed = args.check and not all(figure.met for figure in results.requirements())
    return console.EXIT_FAILED if results.wrong or missed else 0

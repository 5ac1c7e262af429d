"""The job behind `python -m benchmarks.keras`: its arguments, the order of work, and its results."""

import argparse
import random
import statistics
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from functools import partial

import keras
import torch
from rich.table import Table
from tqdm import tqdm  # type: ignore[import-untyped]

from benchmarks import case_by_case, options, timing
from benchmarks.environment import environment
from benchmarks.keras.comparison import Case, Comparison

REQUIRED = 1.00
"""The required speedup of model.fit with our layer over Keras' layer."""

CELLS = (("conv", "channels_last"), ("conv", "channels_first"), ("mlp", "channels_last"))

UNTIMED_STEPS = 2
"""Untimed steps before each reading, because other models have used memory and caches."""


@dataclass(frozen=True)
class Row:
    """One model in one case: medians over rounds. The ratio is to Keras' time in the same round."""

    case: str
    row: str
    step_ms: float
    speedup: float


def arguments(argv: Sequence[str] | None) -> argparse.Namespace:
    """Parses the command line. Exits with a message and status 2 if it is wrong."""
    parser = argparse.ArgumentParser(
        prog="python -m benchmarks.keras",
        description="Times epochs of Keras' model.fit with keras.layers.BatchNormalization and with "
        "fused_bn.keras.BatchNormalization, in turns; writes a table and results.json.",
        formatter_class=argparse.ArgumentDefaultsHelpFormatter,
    )
    parser.add_argument("--batch", type=options.positive, default=64, help="images a step")
    parser.add_argument("--steps", type=options.positive, default=20, help="steps an epoch")
    parser.add_argument("--rounds", type=options.positive, default=11, help="epochs of each model")
    options.add_last_arguments(parser, turns="epochs", out="results/keras")
    return parser.parse_args(argv)


def main(argv: Sequence[str] | None = None) -> int:
    """Runs the job. Returns 0, 1 (a wrong result, or with --check a missed figure) or 130 (interrupted)."""
    args = arguments(argv)
    cases = (measure(Case(network, data_format, args.batch), args) for network, data_format in CELLS)
    return case_by_case.run(cases, partial(_write_results, args=args), missed_figures, args.check)


def measure(case: Case, args: argparse.Namespace) -> list[Row]:
    """Checks a case, then times epochs of all its rows in turns."""
    comparison = Comparison(case, args.steps)
    comparison.check(min(2, args.steps))
    device = _device()

    def read(row: str) -> float:
        comparison.epoch(row, min(UNTIMED_STEPS, args.steps))
        return timing.seconds(lambda: comparison.epoch(row), 1, device)

    rounds = tqdm(range(args.rounds), desc=case.id, dynamic_ncols=True)
    with timing.without_garbage_collection():
        times = timing.in_turns(comparison.models, rounds, random.Random(args.seed), read)
    return [
        Row(
            case.id,
            row,
            1e3 * statistics.median(found) / args.steps,
            timing.ratio(times["keras"], found),
        )
        for row, found in times.items()
    ]


def missed_figures(rows: Sequence[Row]) -> list[str]:
    """One sentence for each row of ours that is slower than Keras'."""
    return [
        f"{row.case}, {row.row}: {row.speedup:.2f}x as fast, required {REQUIRED:.2f}x"
        for row in rows
        if row.row != "keras" and row.speedup < REQUIRED
    ]


def _device() -> torch.device:
    """The device that Keras uses."""
    return torch.device(keras.ops.zeros(()).device)


def _write_results(rows: Sequence[Row], args: argparse.Namespace) -> None:
    table = Table("case", "model.fit with", "ms a step", "speed-up")
    for row in rows:
        table.add_row(row.case, row.row, f"{row.step_ms:,.2f}", f"{row.speedup:.2f}x")
    contents = {
        "arguments": options.plain(args),
        "environment": {**environment(_device()), "keras": keras.__version__},
        "rows": [asdict(row) for row in rows],
        "required": {"speedup": REQUIRED},
    }
    case_by_case.write(table, contents, args.out)

"""The job behind `python -m benchmarks.keras`: arguments, the order of work, and what is left at its end."""

import argparse
import json
import random
import statistics
import sys
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path

import keras
import torch
from rich.console import Console
from rich.table import Table
from tqdm import tqdm  # type: ignore[import-untyped]

from benchmarks import options, timing
from benchmarks.contest import WrongResultError
from benchmarks.environment import environment
from benchmarks.keras.contest import Case, Contest

REQUIRED = 1.00
"""model.fit with our layer beside Keras': at least so many times as fast."""

CELLS = (("conv", "channels_last"), ("conv", "channels_first"), ("mlp", "channels_last"))

UNTIMED_STEPS = 2
"""Before each reading: after the turns of others memory and caches are theirs."""


@dataclass(frozen=True)
class Row:
    """Of one model in one case: medians of rounds, the ratio to Keras' of the same round."""

    case: str
    row: str
    step_ms: float
    speedup: float


def arguments(argv: Sequence[str] | None) -> argparse.Namespace:
    """The parsed command line; exits with a message and status 2 where it is wrong."""
    parser = argparse.ArgumentParser(
        prog="python -m benchmarks.keras",
        description="Times epochs of Keras' model.fit with keras.layers.BatchNormalization and with "
        "fused_bn.keras.BatchNormalization, in turns; writes a table and results.json.",
        formatter_class=argparse.ArgumentDefaultsHelpFormatter,
    )
    parser.add_argument("--batch", type=options.positive, default=64, help="images a step")
    parser.add_argument("--steps", type=options.positive, default=20, help="steps an epoch")
    parser.add_argument("--rounds", type=options.positive, default=11, help="epochs of each model")
    parser.add_argument("--check", action="store_true", help="exit code 1 where a required figure is missed")
    parser.add_argument("--seed", type=int, default=0, help="of the order of the epochs")
    parser.add_argument(
        "--out", type=options.directory, default="results/keras", help="directory for the JSON"
    )
    return parser.parse_args(argv)


def main(argv: Sequence[str] | None = None) -> int:
    """Runs the job; returns 0, 1 (a wrong result, or with --check a missed figure) or 130 (interrupted)."""
    args = arguments(argv)
    rows: list[Row] = []
    try:
        for network, data_format in CELLS:
            rows += measure(Case(network, data_format, args.batch), args)
    except WrongResultError as error:
        print(error, file=sys.stderr)
        return options.EXIT_FAILED
    except KeyboardInterrupt:
        print("Interrupted: only what was finished before is written.", file=sys.stderr)
        _leave(rows, args)
        return options.EXIT_INTERRUPTED
    _leave(rows, args)
    missed = missed_figures(rows)
    for text in missed:
        print(text, file=sys.stderr)
    return options.EXIT_FAILED if missed and args.check else 0


def measure(case: Case, args: argparse.Namespace) -> list[Row]:
    """Checks, then times epochs of all rows of a case in turns."""
    contest = Contest(case, args.steps)
    contest.check(min(2, args.steps))
    times: dict[str, list[float]] = {row: [] for row in contest.models}
    order, device = random.Random(args.seed), _device()
    with timing.without_garbage_collection():
        for _ in tqdm(range(args.rounds), desc=case.id, dynamic_ncols=True):
            for row in order.sample(list(times), len(times)):
                contest.epoch(row, min(UNTIMED_STEPS, args.steps))
                times[row].append(timing.seconds(lambda row=row: contest.epoch(row), 1, device))  # type: ignore[misc]
    return [
        Row(
            case.id,
            row,
            1e3 * statistics.median(found) / args.steps,
            statistics.median(k / t for k, t in zip(times["keras"], found, strict=True)),
        )
        for row, found in times.items()
    ]


def missed_figures(rows: Sequence[Row]) -> list[str]:
    """A sentence for each row of ours that is slower than Keras'."""
    return [
        f"{row.case}, {row.row}: {row.speedup:.2f}x as fast, required {REQUIRED:.2f}x"
        for row in rows
        if row.row != "keras" and row.speedup < REQUIRED
    ]


def _device() -> torch.device:
    """Where Keras puts its models."""
    return torch.device(keras.ops.zeros(()).device)


def _leave(rows: Sequence[Row], args: argparse.Namespace) -> None:
    if not rows:
        return
    table = Table("case", "model.fit with", "ms a step", "speed-up")
    for row in rows:
        table.add_row(row.case, row.row, f"{row.step_ms:,.2f}", f"{row.speedup:.2f}x")
    Console().print(table)
    path: Path = args.out / "results.json"
    contents = {
        "arguments": options.plain(args),
        "environment": {**environment(_device()), "keras": keras.__version__},
        "rows": [asdict(row) for row in rows],
        "required": {"speedup": REQUIRED},
    }
    path.write_text(json.dumps(contents, indent=1) + "\n")
    print(f"{path} is written")

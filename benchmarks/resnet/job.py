"""The job behind `python -m benchmarks.resnet`: arguments, the order of work, and what is left at its end."""

import argparse
import json
import random
import statistics
import sys
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from rich.console import Console
from rich.table import Table
from tqdm import tqdm  # type: ignore[import-untyped]

from benchmarks import options, timing
from benchmarks.contest import WrongResultError
from benchmarks.environment import environment
from benchmarks.resnet.contest import Case, Contest

REQUIRED = {"cpu": {"speedup": 1.10, "memory": 0.85}, "cuda": {"speedup": 1.15}}
"""Fused beside eager: at least so many times as fast, at most so much of its peak memory."""

STEPS_A_TURN = 4
"""Behind one that is not timed: a change of models moves what malloc holds, and its pages are fetched anew
for a while, which training one model does not meet."""

CELLS = (("contiguous", "float32"), ("channels_last", "float32"), ("channels_last", "bfloat16"))


@dataclass(frozen=True)
class Row:
    """Of one model in one case: medians of rounds, the ratio to eager's of the same round."""

    case: str
    row: str
    images_per_second: float
    speedup: float
    peak_bytes: int
    memory: float


def arguments(argv: Sequence[str] | None) -> argparse.Namespace:
    """The parsed command line; exits with a message and status 2 where it is wrong."""
    parser = argparse.ArgumentParser(
        prog="python -m benchmarks.resnet",
        description="Times a training step of ResNet-50 before and after fused_bn.fuse, in turns, and takes "
        "the peak of its activations' memory; writes a table and results.json.",
        formatter_class=argparse.ArgumentDefaultsHelpFormatter,
    )
    parser.add_argument("--device", type=options.device, default="cpu", help="cpu, cuda or cuda:N")
    parser.add_argument("--batch", type=options.positive, default=8, help="images a step")
    parser.add_argument("--size", type=options.positive, default=224, help="pixels along an image's side")
    parser.add_argument("--rounds", type=options.positive, default=5, help="readings a cell")
    parser.add_argument("--compile", action="store_true", help="both under torch.compile too")
    parser.add_argument("--check", action="store_true", help="exit code 1 where a required figure is missed")
    parser.add_argument("--seed", type=int, default=0, help="of the order of the readings")
    parser.add_argument(
        "--out", type=options.directory, default="results/resnet", help="directory for the JSON"
    )
    return parser.parse_args(argv)


def main(argv: Sequence[str] | None = None) -> int:
    """Runs the job; returns 0, 1 (a wrong result, or with --check a missed figure) or 130 (interrupted)."""
    args = arguments(argv)
    rows: list[Row] = []
    try:
        for layout, dtype in CELLS:
            rows += measure(Case(args.batch, args.size, layout, dtype), args)
    except WrongResultError as error:
        print(error, file=sys.stderr)
        return options.EXIT_FAILED
    except KeyboardInterrupt:
        print("Interrupted: only what was finished before is written.", file=sys.stderr)
        _leave(rows, args)
        return options.EXIT_INTERRUPTED
    _leave(rows, args)
    missed = missed_figures(rows, args.device)
    for text in missed:
        print(text, file=sys.stderr)
    return options.EXIT_FAILED if missed and args.check else 0


def measure(case: Case, args: argparse.Namespace, **how: Any) -> list[Row]:
    """Checks, then times all rows of a case in turns, and measures their memory."""
    contest = Contest(case, args.device, args.compile, **how)
    contest.check()
    peaks = {row: contest.peak_activations(row) for row in contest.models}
    steps = {row: contest.step(row) for row in contest.models}
    times: dict[str, list[float]] = {row: [] for row in steps}
    order = random.Random(args.seed)
    rounds = tqdm(range(args.rounds), desc=case.id, dynamic_ncols=True)
    with timing.without_garbage_collection():
        for _ in rounds:
            for row in order.sample(list(steps), len(steps)):
                steps[row]()  # of the round, not timed: what the others left in caches and memory goes
                times[row].append(timing.seconds(steps[row], STEPS_A_TURN, args.device))
    eager = times["eager"]
    return [
        Row(
            case.id,
            row,
            case.batch / statistics.median(times[row]),
            statistics.median(e / t for e, t in zip(eager, times[row], strict=True)),
            peaks[row],
            peaks[row] / peaks["eager"],
        )
        for row in times
    ]


def missed_figures(rows: Sequence[Row], device: torch.device) -> list[str]:
    """A sentence for each required figure that "fused" misses."""
    required = REQUIRED[device.type]
    found = []
    for row in rows:
        if row.row != "fused":
            continue
        if row.speedup < required["speedup"]:
            found.append(f"{row.case}: {row.speedup:.2f}x as fast, required {required['speedup']:.2f}x")
        if row.memory > required.get("memory", 1.0):
            found.append(f"{row.case}: {row.memory:.2f} of the memory, at most {required['memory']:.2f}")
    return found


def _leave(rows: Sequence[Row], args: argparse.Namespace) -> None:
    if not rows:
        return
    table = Table("case", "model", "images/s", "speed-up", "activations", "of eager's")
    for row in rows:
        memory = f"{row.peak_bytes / 1e6:,.0f} MB"
        table.add_row(
            row.case,
            row.row,
            f"{row.images_per_second:,.1f}",
            f"{row.speedup:.2f}x",
            memory,
            f"{row.memory:.2f}",
        )
    Console().print(table)
    path: Path = args.out / "results.json"
    contents = {
        "arguments": options.plain(args),
        "environment": environment(args.device),
        "rows": [vars(row) for row in rows],
    }
    path.write_text(json.dumps(contents, indent=1) + "\n")
    print(f"{path} is written")

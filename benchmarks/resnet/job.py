"""The job behind `python -m benchmarks.resnet`: its arguments, the order of work, and its results."""

import argparse
import random
import statistics
from collections.abc import Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any

import torch
from rich.table import Table
from tqdm import tqdm  # type: ignore[import-untyped]

from benchmarks import case_by_case, options, timing
from benchmarks.environment import environment
from benchmarks.resnet.comparison import Case, Comparison

REQUIRED = {"cpu": {"speedup": 1.10, "memory": 0.85}, "cuda": {"speedup": 1.15}}
"""Required: the fused row's speedup over eager, and the most peak memory relative to eager's."""

STEPS_A_TURN = 4
"""Timed steps per reading, after an untimed one. A change of models makes malloc fetch pages again for a
while, which training of one model does not have."""

CELLS = (("contiguous", "float32"), ("channels_last", "float32"), ("channels_last", "bfloat16"))


@dataclass(frozen=True)
class Row:
    """One model in one case: medians over rounds. The ratio is to eager's time in the same round."""

    case: str
    row: str
    images_per_second: float
    speedup: float
    peak_bytes: int
    memory: float


def arguments(argv: Sequence[str] | None) -> argparse.Namespace:
    """Parses the command line. Exits with a message and status 2 if it is wrong."""
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
    options.add_last_arguments(parser, turns="readings", out="results/resnet")
    return parser.parse_args(argv)


def main(argv: Sequence[str] | None = None) -> int:
    """Runs the job. Returns 0, 1 (a wrong result, or with --check a missed figure) or 130 (interrupted)."""
    args = arguments(argv)
    cases = (measure(Case(args.batch, args.size, layout, dtype), args) for layout, dtype in CELLS)
    missed = partial(missed_figures, device=args.device)
    return case_by_case.run(cases, partial(_write_results, args=args), missed, args.check)


def measure(case: Case, args: argparse.Namespace, **how: Any) -> list[Row]:
    """Checks a case, times all its rows in turns, and measures their memory."""
    comparison = Comparison(case, args.device, args.compile, **how)
    comparison.check()
    peaks = {row: comparison.peak_activations(row) for row in comparison.models}
    steps = {row: comparison.step(row) for row in comparison.models}

    def read(row: str) -> float:
        steps[row]()  # not timed: warms up caches and memory after the other rows
        return timing.seconds(steps[row], STEPS_A_TURN, args.device)

    rounds = tqdm(range(args.rounds), desc=case.id, dynamic_ncols=True)
    with timing.without_garbage_collection():
        times = timing.in_turns(steps, rounds, random.Random(args.seed), read)
    return [
        Row(
            case.id,
            row,
            case.batch / statistics.median(times[row]),
            timing.ratio(times["eager"], times[row]),
            peaks[row],
            peaks[row] / peaks["eager"],
        )
        for row in times
    ]


def missed_figures(rows: Sequence[Row], device: torch.device) -> list[str]:
    """One sentence for each missed figure: the speed of "fused", the memory of "fused, recomputed"."""
    required = REQUIRED[device.type]
    found = []
    for row in rows:
        if row.row == "fused" and row.speedup < required["speedup"]:
            found.append(f"{row.case}: {row.speedup:.2f}x as fast, required {required['speedup']:.2f}x")
        if row.row == "fused, recomputed" and row.memory > required.get("memory", 1.0):
            found.append(f"{row.case}: {row.memory:.2f} of the memory, at most {required['memory']:.2f}")
    return found


def _write_results(rows: Sequence[Row], args: argparse.Namespace) -> None:
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
    contents = {
        "arguments": options.plain(args),
        "environment": environment(args.device),
        "rows": [vars(row) for row in rows],
    }
    case_by_case.write(table, contents, args.out)

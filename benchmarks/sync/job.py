"""The job behind `python -m benchmarks.sync`: its arguments, the order of work, and its results."""

import argparse
import statistics
import sys
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass

from rich import box
from rich.console import Console
from rich.table import Column, Table
from torch import nn

from benchmarks import case_by_case, console, options, timing
from benchmarks.comparison import LAYOUTS, WrongResultError
from benchmarks.environment import environment
from benchmarks.resnet.model import ResNet50
from benchmarks.sync import cost, lockstep
from benchmarks.sync.comparison import LOCAL, PYTHON, SYNCHRONISED
from benchmarks.sync.traffic import Traffic

REQUIRED = 1.30
"""The required speedup of ours over synchronised norms in Python."""


@dataclass(frozen=True)
class Row:
    """One model: medians over rounds. The ratios are to other models' times in the same round."""

    row: str
    step_ms: float
    images_per_second: float  # of all processes
    speedup: float  # over the norms in Python
    of_local: float  # time relative to norms without synchronisation
    norms: int
    forward: Traffic  # of one process, per step
    backward: Traffic


def arguments(argv: Sequence[str] | None) -> argparse.Namespace:
    """Parses the command line. Exits with a message and status 2 if it is wrong."""
    parser = argparse.ArgumentParser(
        prog="python -m benchmarks.sync",
        description=f"Times a training step of ResNet-50 on {lockstep.PROCESSES} processes of one thread on "
        "the CPU, under DistributedDataParallel over gloo, with synchronised norms of ours and in Python, in "
        "turns, and counts what norms exchange; writes a table and results.json.",
        formatter_class=argparse.ArgumentDefaultsHelpFormatter,
    )
    parser.add_argument("--batch", type=options.positive, default=4, help="images a step of each process")
    parser.add_argument("--size", type=options.positive, default=224, help="pixels along an image's side")
    parser.add_argument("--layout", choices=LAYOUTS, default="contiguous", help="of images and weights")
    parser.add_argument("--rounds", type=options.positive, default=5, help="readings a model")
    parser.add_argument(
        "--check", action="store_true", help="exit code 1 where the required figure is missed"
    )
    parser.add_argument("--seed", type=options.seed, default=0, help="of the order of the readings")
    parser.add_argument(
        "--model", action="store_true", help="measure nothing: print what many GPUs should cost, on paper"
    )
    parser.add_argument(
        "--out", type=options.directory, default="results/sync", help="directory for the JSON"
    )
    return parser.parse_args(argv)


def main(argv: Sequence[str] | None = None, make: Callable[[], nn.Module] = ResNet50) -> int:
    """Runs the job. Returns 0, 1 (a wrong result, or with --check a missed figure) or 130 (interrupted).

    Args:
        make: makes the model, with nn.BatchNorm2d; picklable.
    """
    args = arguments(argv)
    if args.model:
        print_model()
        return 0
    try:
        found = lockstep.run(args.batch, args.size, args.layout, args.rounds, args.seed, make)
    except WrongResultError as error:
        print(error, file=sys.stderr)
        return console.EXIT_FAILED
    except KeyboardInterrupt:
        print("Interrupted: nothing is written.", file=sys.stderr)
        return console.EXIT_INTERRUPTED
    measured = rows(found, args.batch)
    _write_results(measured, args)
    speedup = next(row.speedup for row in measured if row.row == SYNCHRONISED)
    if missed := speedup < REQUIRED:
        print(f"{speedup:.2f}x as fast as in Python, required {REQUIRED:.2f}x", file=sys.stderr)
    return console.EXIT_FAILED if missed and args.check else 0


def rows(found: lockstep.Findings, batch: int) -> list[Row]:
    """The rows of the table and of the file."""
    return [
        Row(
            row,
            1e3 * statistics.median(times),
            lockstep.PROCESSES * batch / statistics.median(times),
            timing.ratio(found.times[PYTHON], times),
            timing.ratio(times, found.times[LOCAL]),
            found.norms,
            **found.traffic[row],
        )
        for row, times in found.times.items()
    ]


def _write_results(measured: Sequence[Row], args: argparse.Namespace) -> None:
    images = f"{args.batch}x3x{args.size}x{args.size}"
    table = Table(
        title=f"ResNet-50, {lockstep.PROCESSES} processes, {images} each, {args.layout}",
        caption=f"speed-up: over norms in Python; required of {SYNCHRONISED}: {REQUIRED:.2f}x; calls and "
        "bytes: forward + backward, what one process hands over, mean over the norms",
        caption_justify="left",
        box=box.SIMPLE_HEAD,
    )
    table.add_column("norms", no_wrap=True)
    for heading in (
        "step\nms",
        "images\n/s",
        "speed-\nup",
        "of own\nstatistics",
        "calls\na norm",
        "bytes\na norm",
    ):
        table.add_column(heading, justify="right", no_wrap=True)
    for row in measured:
        table.add_row(
            row.row,
            f"{row.step_ms:,.0f}",
            f"{row.images_per_second:,.1f}",
            f"{row.speedup:.2f}x",
            f"{row.of_local:.2f}",
            f"{row.forward.calls / row.norms:g}+{row.backward.calls / row.norms:g}",
            f"{row.forward.bytes / row.norms:,.0f}+{row.backward.bytes / row.norms:,.0f}",
        )
    contents = {
        "arguments": options.plain(args),
        "environment": {
            **environment(lockstep.CPU),
            "processes": lockstep.PROCESSES,
            "threads": lockstep.THREADS,
        },
        "rows": [asdict(row) for row in measured],
        "required": {"speedup": REQUIRED},
    }
    case_by_case.write(table, contents, args.out)


def print_model() -> None:
    """The table of cost.py and its assumptions."""
    network, channels = cost.Network(), cost.resnet50_channels()
    table = Table(
        *(Column(heading.replace(", ", "\n"), justify="right", no_wrap=True) for heading in cost.HEADINGS),
        title=f"A model, not a measurement: ResNet-50's {len(channels)} norms, synchronised over all GPUs",
        caption=f"Assumed: nodes of {network.node} GPUs; within one {1e6 * network.node_latency:g} us a call "
        f"and {network.node_bandwidth / 1e9:g} GB/s; between them {1e6 * network.hop_latency:g} us a hop and "
        f"{network.port_bandwidth / 1e9:g} GB/s a GPU; a step of {1e3 * cost.STEP_SECONDS:g} ms. latency: "
        "recursive doubling between nodes; received: by a GPU, a step.",
        caption_justify="left",
        box=box.SIMPLE_HEAD,
    )
    for row in cost.rows():
        table.add_row(*row)
    Console().print(table)
    print(f"At most {cost.SHARE:.0%} of a step: up to {cost.largest_group(channels)} GPUs in a group.")

"""`python -m fused_bn`: the doctor; `python -m fused_bn plan`: what the launch planner decides."""

import argparse
import sys

from fused_bn import _doctor, planner
from fused_bn._activations import ACTIVATIONS
from fused_bn._version import __version__


def main() -> int:
    parser = argparse.ArgumentParser(prog="python -m fused_bn", description=__doc__)
    parser.add_argument("--version", action="version", version=f"fused_bn {__version__}")
    commands = parser.add_subparsers(dest="command")
    commands.add_parser("doctor", help="what is built, what works here, and what to do (the default)")
    add_plan(commands.add_parser("plan", help="how the CUDA kernels are launched for a shape, on any device"))
    arguments = parser.parse_args()
    return print_plans(arguments) if arguments.command == "plan" else _doctor.main()


def add_plan(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--shape", required=True, metavar="N,C,...", help="such as 256,64,112,112")
    parser.add_argument("--dtype", default="f32", help=", ".join(planner.DTYPES))
    parser.add_argument("--layout", default="channels_first", help=", ".join(planner.LAYOUTS))
    parser.add_argument("--device", default="h200", help=", ".join(planner.device_names()))
    parser.add_argument(
        "--direction", help=f"{', '.join(planner.DIRECTIONS)} (default: forward and backward)"
    )
    parser.add_argument("--residual", action="store_true", help="a tensor is added before the activation")
    parser.add_argument("--activation", default="relu", help=", ".join(ACTIVATIONS))
    parser.add_argument("--alignment", type=int, default=16, help="of the tensors' addresses, in bytes")
    parser.add_argument(
        "--forced", default="", help="parts of the plan, such as 'streamed' or 'exchange=words'"
    )


def print_plans(arguments: argparse.Namespace) -> int:
    directions = (arguments.direction,) if arguments.direction else ("forward", "backward")
    try:
        plans = [
            planner.plan(
                parse_shape(arguments.shape),
                arguments.dtype,
                arguments.layout,
                arguments.device,
                direction,
                arguments.residual,
                arguments.alignment,
                arguments.activation,
                arguments.forced,
            )
            for direction in directions
        ]
    except (ValueError, RuntimeError) as error:
        print(f"python -m fused_bn plan: {error}", file=sys.stderr)
        return 2
    print(f"{arguments.shape} {arguments.dtype} {arguments.layout} on {arguments.device}\n")
    print(planner.report(plans))
    print("\nTimes are predictions of a model, not measurements.")
    return 0


def parse_shape(text: str) -> tuple[int, ...]:
    try:
        return tuple(int(size) for size in text.replace("x", ",").split(","))
    except ValueError:
        raise ValueError(f"shape must be numbers between commas, but got {text!r}") from None


if __name__ == "__main__":
    sys.exit(main())

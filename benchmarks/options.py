"""Shared parts of the benchmarks' command lines: types of arguments, exit codes, arguments as JSON."""

import argparse
import os
from collections.abc import Callable
from pathlib import Path

import torch


def add_last_arguments(parser: argparse.ArgumentParser, turns: str, out: str) -> None:
    """Adds the last arguments of jobs with required figures and `turns`: --check, --seed and --out."""
    parser.add_argument("--check", action="store_true", help="exit code 1 where a required figure is missed")
    parser.add_argument("--seed", type=seed, default=0, help=f"of the order of the {turns}")
    parser.add_argument("--out", type=directory, default=out, help="directory for the JSON")


def _whole(least: int, most: int) -> Callable[[str], int]:
    """An argument's type: an integer within these bounds."""

    def value_of(text: str) -> int:
        try:
            value = int(text)
        except ValueError:
            value = least - 1
        if not least <= value <= most:
            bound = f"at most {most}" if value > most else f"at least {least}, a whole number"
            raise argparse.ArgumentTypeError(f"must be {bound}, but got {text!r}")
        return value

    return value_of


positive = _whole(1, 2**31 - 1)
seed = _whole(0, 2**32 - 1)
"""The seeds that NumPy, Keras and torch accept. torch also uses small multiples of them."""
threads = _whole(1, 1024)
"""More threads than the machine can start would end the process."""


def device(text: str) -> torch.device:
    """An argument's type: cpu, cuda or cuda:N, if torch sees that device."""
    try:
        device = torch.device(text)
    except RuntimeError as error:
        raise argparse.ArgumentTypeError(f"{text!r} is no device") from error
    if device.type not in ("cpu", "cuda"):
        raise argparse.ArgumentTypeError(f"must be cpu, cuda or cuda:N, but got {text!r}")
    if device.type == "cuda" and (device.index or 0) >= torch.cuda.device_count():
        raise argparse.ArgumentTypeError(f"{text} is not there: torch sees {torch.cuda.device_count()} GPUs")
    return device


def directory(text: str) -> Path:
    """An argument's type: a writable directory, created if missing."""
    path = Path(text)
    try:
        path.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise argparse.ArgumentTypeError(f"cannot be made or written: {error}") from error
    if not os.access(path, os.W_OK):
        raise argparse.ArgumentTypeError(f"{text} cannot be written to")
    return path


def plain(args: argparse.Namespace) -> dict[str, object]:
    """The arguments as JSON values."""
    plain = (bool, int, float, str, list, type(None))
    return {name: value if isinstance(value, plain) else str(value) for name, value in vars(args).items()}

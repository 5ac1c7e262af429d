"""Gathers runs of `compare` with a known outcome into one file, and counts how many were right.

python -m benchmarks.compare HEAD HEAD --always --seed 1 --out runs/null-1          # and so on
python -m benchmarks.compare HEAD SLOWER --only "..." --seed 1 --out runs/planted-1
python -m benchmarks.compare.record FILE --null runs/null-* --planted runs/planted-*
"""

import argparse
import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from benchmarks import console, files
from benchmarks.compare.verdicts import CONFIDENCE, LEAST, RULED_OUT, Verdict

FORMAT = 1
"""Increase it when a field of the JSON file changes its meaning or its name."""


def main(argv: Sequence[str] | None = None) -> int:
    """Writes the file and prints the two counts. Returns 1 if a run was wrong."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.compare.record", description=__doc__)
    parser.add_argument("file", type=Path, help="what is written")
    parser.add_argument("--null", nargs="+", type=_load, default=[], help="of a revision against itself")
    parser.add_argument("--planted", nargs="+", type=_load, default=[], help="of one with a slowdown in it")
    parser.add_argument("--note", default="", help="what was planted")
    args = parser.parse_args(argv)
    null, planted = args.null, args.planted
    if not null + planted:
        parser.error("no run is named")
    content = {
        "format": FORMAT,
        "confidence": CONFIDENCE,
        "least": LEAST,
        "ruled_out": RULED_OUT,
        "note": args.note,
        "environment": (null + planted)[0]["environment"],
        "arguments": {
            name: (null + planted)[0]["arguments"][name]
            for name in ("device", "threads", "rounds", "launches")
        },
        "alarms_of_null": [alarms(null), len(null)],
        "alarms_of_planted": [alarms(planted), len(planted)],
        "null": [summary(run) for run in null],
        "planted": [summary(run) for run in planted],
    }
    files.write_whole(args.file, json.dumps(content, indent=1) + "\n")
    print(f"{alarms(null)} of {len(null)} without a slowdown raised an alarm")
    print(f"{alarms(planted)} of {len(planted)} with one did")
    return console.EXIT_FAILED if alarms(null) or alarms(planted) < len(planted) else 0


def _load(directory: str) -> dict[str, Any]:
    """An argument's type: reads the run that was written to this directory."""
    path = Path(directory) / "compare.json"
    try:
        run: dict[str, Any] = json.loads(path.read_text())
        summary(run)
    except (OSError, ValueError, LookupError, TypeError, RecursionError) as error:
        raise argparse.ArgumentTypeError(f"{path} holds no comparison: {error!r}") from error
    return run


def alarms(runs: Sequence[dict[str, Any]]) -> int:
    """How many runs reported something slower."""
    return sum(run["exit_code"] == console.EXIT_FAILED for run in runs)


def summary(run: dict[str, Any]) -> dict[str, Any]:
    """A run without its readings: all cells' verdicts, and the figures of cells that are not "same"."""
    cells = run["cells"]
    figures = ("id", "verdict", "base", "head", "head_to_base", "noise")
    return {
        "date": run["environment"]["date"],
        "seed": run["arguments"]["seed"],
        "exit_code": run["exit_code"],
        "verdicts": {v.value: sum(cell["verdict"] == v for cell in cells) for v in Verdict},
        "measured_again": sum(len(cell["passes"]) > 1 for cell in cells),
        "largest_ratio": max(cell["head_to_base"]["ratio"] for cell in cells),
        "not_the_same": [
            {**{name: cell[name] for name in figures}, "passes": len(cell["passes"])}
            for cell in cells
            if cell["verdict"] != Verdict.SAME
        ],
    }


if __name__ == "__main__":
    console.run(main)

"""Writes table.txt and the plots from results.json in a directory: `python -m benchmarks.gpu.report DIR`."""

import json
import sys
from pathlib import Path

from benchmarks.gpu import tables


def main(directory: Path) -> int:
    """The table first: it needs nothing but Python."""
    results = json.loads((directory / "results.json").read_text())
    (directory / "table.txt").write_text(tables.text(results))
    from benchmarks.gpu import plots

    plots.write(results, directory)
    return 0


if __name__ == "__main__":
    sys.exit(main(Path(sys.argv[1])))

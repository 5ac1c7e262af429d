"""Entry point of `python -m benchmarks.speed`."""

import sys

from benchmarks.speed.job import main

if __name__ == "__main__":
    sys.exit(main())

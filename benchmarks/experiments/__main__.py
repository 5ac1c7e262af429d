"""Entry point of `python -m benchmarks.experiments`."""

import sys

from benchmarks.experiments.job import main

if __name__ == "__main__":
    sys.exit(main())

"""Entry point of `python -m benchmarks.report`."""

import sys

from benchmarks.report.job import main

if __name__ == "__main__":
    sys.exit(main())

"""Entry point of `python -m benchmarks.compare`."""

import sys

from benchmarks.compare.job import main

if __name__ == "__main__":
    sys.exit(main())

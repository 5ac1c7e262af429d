"""Entry point of `python -m benchmarks.lenet`."""

import sys

from benchmarks.lenet.job import main

if __name__ == "__main__":
    sys.exit(main())

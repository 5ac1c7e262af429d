"""Entry point of `python -m benchmarks.instructions`."""

import sys

from benchmarks.instructions.job import main

if __name__ == "__main__":
    sys.exit(main())

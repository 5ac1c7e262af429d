"""`python -m benchmarks.sync`: see job.py."""

import sys

from benchmarks.sync.job import main

if __name__ == "__main__":
    sys.exit(main())

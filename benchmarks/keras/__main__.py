"""`python -m benchmarks.keras`: see job.py."""

import sys

from benchmarks.keras.job import main

if __name__ == "__main__":
    sys.exit(main())

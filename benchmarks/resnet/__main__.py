"""`python -m benchmarks.resnet`: see job.py."""

import sys

from benchmarks.resnet.job import main

if __name__ == "__main__":
    sys.exit(main())

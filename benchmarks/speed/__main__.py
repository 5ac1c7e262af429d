"""Entry point of `python -m benchmarks.speed`."""

import os
import sys

# Beside another busy process, threads that spin while they wait made a call of 0.2 ms take 63 ms; asleep
# they do not. OMP_WAIT_POLICY=ACTIVE times spinning ones. Read when torch is first imported.
os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")

from benchmarks.speed.job import main

if __name__ == "__main__":
    sys.exit(main())

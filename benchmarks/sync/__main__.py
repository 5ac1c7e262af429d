"""`python -m benchmarks.sync`: see job.py."""

from benchmarks import console
from benchmarks.sync.job import main

if __name__ == "__main__":
    console.run(main)

"""Entry point of `python -m benchmarks.report`."""

from benchmarks import console
from benchmarks.report.job import main

if __name__ == "__main__":
    console.run(main)

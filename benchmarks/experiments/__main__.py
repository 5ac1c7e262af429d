"""Entry point of `python -m benchmarks.experiments`."""

from benchmarks import console
from benchmarks.experiments.job import main

if __name__ == "__main__":
    console.run(main)

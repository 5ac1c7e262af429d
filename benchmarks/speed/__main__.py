"""Entry point of `python -m benchmarks.speed`."""

from benchmarks import console
from benchmarks.speed.job import main

if __name__ == "__main__":
    console.run(main)

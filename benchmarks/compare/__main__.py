"""Entry point of `python -m benchmarks.compare`."""

from benchmarks import console
from benchmarks.compare.job import main

if __name__ == "__main__":
    console.run(main)

"""Entry point of `python -m benchmarks.lenet`."""

from benchmarks import console
from benchmarks.lenet.job import main

if __name__ == "__main__":
    console.run(main)

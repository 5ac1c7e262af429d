"""Entry point of `python -m benchmarks.instructions`."""

from benchmarks import console
from benchmarks.instructions.job import main

if __name__ == "__main__":
    console.run(main)

"""Entry point of `python -m benchmarks.compare`."""

from benchmarks import console
from benchmarks.compare.job import main
from benchmarks.compare.results import EXIT_ERROR

if __name__ == "__main__":
    console.run(main, EXIT_ERROR)

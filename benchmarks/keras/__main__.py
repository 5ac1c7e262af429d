"""`python -m benchmarks.keras`: see job.py."""

from benchmarks import console
from benchmarks.keras.job import main

if __name__ == "__main__":
    console.run(main)

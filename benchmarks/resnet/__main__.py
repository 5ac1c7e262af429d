"""`python -m benchmarks.resnet`: see job.py."""

from benchmarks import console
from benchmarks.resnet.job import main

if __name__ == "__main__":
    console.run(main)

"""Entry point of `python -m benchmarks.gpu`."""

from benchmarks import console
from benchmarks.gpu.driver import main

if __name__ == "__main__":
    console.run(main)

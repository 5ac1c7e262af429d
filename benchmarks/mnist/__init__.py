"""MNIST (LeCun, Cortes and Burges 1998): found on this machine or downloaded, and verified."""

from benchmarks.mnist.idx import Mnist, MnistError
from benchmarks.mnist.search import load

__all__ = ["Mnist", "MnistError", "load"]

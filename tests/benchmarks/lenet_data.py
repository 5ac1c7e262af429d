"""Images for tests of LeNet-5's training: a small stand-in that it learns in a few steps, and MNIST."""

import os
from collections.abc import Iterator

import numpy as np
import pytest
import torch

from benchmarks import mnist
from benchmarks.lenet.training import Data
from benchmarks.mnist import Mnist
from benchmarks.mnist.search import VARIABLE


def small_mnist(train: int = 320, test: int = 100) -> Mnist:
    """Noise images with a bright row in the label's place."""
    generator = np.random.default_rng(0)
    arrays = []
    for count in (train, test):
        labels = generator.integers(0, 10, count, np.uint8)
        images = generator.integers(0, 100, (count, 28, 28), np.uint8)
        images[np.arange(count), 4 + 2 * labels] += 150
        arrays += [images, labels]
    return Mnist("stand-in", *arrays)


def real_mnist() -> Mnist:
    """MNIST. Skips the test if this machine does not have it."""
    try:
        return mnist.load(download=False)
    except mnist.MnistError as error:
        if os.environ.get(VARIABLE):
            raise  # if the user names the data, a missing file is an error, not a skip
        pytest.skip(f"{VARIABLE} is not set, and {error}")


def small_data() -> Data:
    return Data.of(small_mnist(), torch.device("cpu"))


@pytest.fixture
def one_thread() -> Iterator[None]:
    """One thread: on a busy machine two threads that wait for each other take many times longer."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(threads)

"""LeNet-5 with our norm learns real MNIST."""

import os

import pytest
import torch

from benchmarks import mnist
from benchmarks.lenet.model import VARIANTS
from benchmarks.lenet.training import Data, Settings, Trainer
from benchmarks.mnist.search import VARIABLE
from tests.lenet_data import one_thread  # noqa: F401

pytestmark = pytest.mark.usefixtures("one_thread")


@pytest.fixture(scope="module")
def data() -> Data:
    try:
        images = mnist.load(download=False)
    except mnist.MnistError as error:
        if os.environ.get(VARIABLE):
            raise  # whoever names the data wants this test to run
        pytest.skip(f"{VARIABLE} is not set, and {error}")
    return Data.of(images, torch.device("cpu"))


@pytest.mark.parametrize(("id", "recipe"), [("fused", "article"), ("fused-relu", "modern")])
def test_reaches_90_percent_in_300_steps(id: str, recipe: str, data: Data) -> None:
    variant = VARIANTS[id]
    epoch = Trainer(variant.norm, variant.tanh, data, Settings(recipe)).train_epoch(limit=300)
    assert epoch.steps == 300
    assert epoch.test_accuracy >= 0.90

"""LeNet-5 with our norm learns real MNIST."""

import pytest
import torch

from benchmarks.lenet.model import VARIANTS
from benchmarks.lenet.training import Data, Settings, Trainer
from tests.benchmarks.lenet_data import one_thread, real_mnist  # noqa: F401

pytestmark = pytest.mark.usefixtures("one_thread")


@pytest.fixture(scope="module")
def data() -> Data:
    return Data.of(real_mnist(), torch.device("cpu"))


@pytest.mark.parametrize(("id", "recipe"), [("fused", "article"), ("fused-relu", "modern")])
def test_reaches_90_percent_in_300_steps(id: str, recipe: str, data: Data) -> None:
    variant = VARIANTS[id]
    epoch = Trainer(variant.norm, variant.tanh, data, Settings(recipe)).train_epoch(limit=300)
    assert epoch.steps == 300
    assert epoch.test_accuracy >= 0.90

"""The network is the published one. All variants start with the same parameters and see the same data."""

import math

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F

import fused_bn
from benchmarks.lenet.model import RECIPES, VARIANTS, Variant, lenet5
from benchmarks.lenet.training import LEARNING_RATE, Data, Settings, Trainer
from benchmarks.mnist import Mnist
from tests.benchmarks.lenet_data import one_thread, small_data, small_mnist  # noqa: F401

pytestmark = pytest.mark.usefixtures("one_thread")

TAIL = ["Flatten", "Linear 400-120", "Tanh", "Linear 120-84", "Tanh", "Linear 84-10"]
NO_NORM = ["Conv2d 1-6 (5, 5)", "Tanh", "AvgPool2d 2", "Conv2d 6-16 (5, 5)", "Tanh", "AvgPool2d 2"]
TANH = [*NO_NORM[:2], "BatchNorm2d 6", *NO_NORM[2:5], "BatchNorm2d 16", NO_NORM[5]]
RELU = [NO_NORM[0], "BatchNorm2d 6", "ReLU", *NO_NORM[2:4], "BatchNorm2d 16", "ReLU", NO_NORM[5]]
BLOCKS = {"none": NO_NORM, "torch": TANH, "fused": TANH, "torch-relu": RELU, "fused-relu": RELU}


def build(variant: Variant, recipe: str = "article") -> nn.Sequential:
    torch.manual_seed(3)
    return lenet5(variant.norm, tanh=variant.tanh, recipe=recipe)


def layer_names(module: nn.Module) -> list[str]:
    """The leaves in order. Our fused norm with ReLU counts as two layers."""
    names: list[str] = []
    for layer in module.modules():
        match layer:
            case nn.Conv2d():
                names.append(f"Conv2d {layer.in_channels}-{layer.out_channels} {layer.kernel_size}")
            case nn.Linear():
                names.append(f"Linear {layer.in_features}-{layer.out_features}")
            case nn.AvgPool2d():
                names.append(f"AvgPool2d {layer.kernel_size}")
            case nn.BatchNorm2d():
                names.append(f"BatchNorm2d {layer.num_features}")
                names += ["ReLU"] * (getattr(layer, "activation", "none") == "relu")
            case nn.Sequential():
                pass
            case _:
                names.append(type(layer).__name__)
    return names


@pytest.mark.parametrize("recipe", RECIPES)
@pytest.mark.parametrize("id", VARIANTS)
def test_layers(id: str, recipe: str) -> None:
    softmax = ["Softmax"] * (recipe == "article")
    assert layer_names(build(VARIANTS[id], recipe)) == BLOCKS[id] + TAIL + softmax


@pytest.mark.parametrize("id", VARIANTS)
def test_whose_norm(id: str) -> None:
    norms = [m for m in build(VARIANTS[id]).modules() if isinstance(m, nn.BatchNorm2d)]
    assert len(norms) == (0 if id == "none" else 2)
    for norm in norms:
        assert isinstance(norm, fused_bn.BatchNorm2d) == id.startswith("fused")


def test_initial_parameters() -> None:
    for layer in build(VARIANTS["none"]):
        if isinstance(layer, nn.Conv2d | nn.Linear):
            assert layer.bias is not None
            assert torch.equal(layer.bias, torch.full_like(layer.bias, 0.01))
            area = layer.weight[0, 0].numel() if isinstance(layer, nn.Conv2d) else 1
            limit = math.sqrt(6 / (area * (layer.weight.shape[0] + layer.weight.shape[1])))
            largest = layer.weight.abs().max().item()
            assert 0.9 * limit < largest <= limit  # one of 150 draws does, but for 1e-7


def test_all_variants_start_alike() -> None:
    reference = dict(build(VARIANTS["none"]).named_parameters())
    for variant in VARIANTS.values():
        for name, parameter in build(variant).named_parameters():
            if not name.startswith("norm"):
                assert torch.equal(parameter, reference[name])


@pytest.mark.parametrize("recipe", RECIPES)
def test_output(recipe: str) -> None:
    model = build(VARIANTS["torch"], recipe)
    output = model(torch.rand(5, 1, 32, 32))
    assert output.shape == (5, 10)
    sums = output.sum(1)
    assert torch.allclose(sums, torch.ones(5), atol=1e-6) == (recipe == "article")


def test_article_feeds_probabilities_into_cross_entropy() -> None:
    trainer = Trainer(None, True, small_data(), Settings("article"))
    images, labels = next(trainer.batches())
    probabilities = trainer.model(images)
    loss, correct = trainer.loss(images, labels)
    assert loss.item() == F.cross_entropy(probabilities, labels).item()
    assert correct.item() == (probabilities.argmax(1) == labels).sum().item()
    assert isinstance(trainer.optimizer, torch.optim.Adam)
    assert trainer.optimizer.defaults["lr"] == LEARNING_RATE == 1e-3


def test_an_epoch_sees_every_image_once_in_the_order_of_the_seed() -> None:
    data = small_data()

    def epochs(seed: int) -> list[Tensor]:
        trainer = Trainer(None, True, data, Settings(seed=seed))
        return [torch.cat([images for images, _ in trainer.batches()]) for _ in range(2)]

    first, second = epochs(0)
    assert first.shape == data.train_images.shape
    assert torch.equal(first.sum((1, 2, 3)).sort().values, data.train_images.sum((1, 2, 3)).sort().values)
    assert not torch.equal(first, second)
    assert torch.equal(first, epochs(0)[0])
    assert not torch.equal(first, epochs(1)[0])


def test_epoch_numbers() -> None:
    data = small_data()
    trainer = Trainer(VARIANTS["fused"].norm, True, data, Settings("modern"))
    for number in (1, 2, 3):
        epoch = trainer.train_epoch()
        assert epoch.number == number
        assert epoch.steps == trainer.steps_per_epoch == 5
        assert epoch.images_per_second == pytest.approx(320 / epoch.seconds)
    assert epoch.test_accuracy > trainer.epochs[0].test_accuracy
    trainer.model.eval()
    with torch.no_grad():
        output = trainer.model(data.test_images)
    assert epoch.test_loss == pytest.approx(F.cross_entropy(output, data.test_labels).item(), rel=1e-5)
    assert epoch.test_accuracy == (output.argmax(1) == data.test_labels).float().mean().item()
    assert trainer.train_epoch(limit=2).steps == 2


def test_bfloat16_is_autocast() -> None:
    trainer = Trainer(VARIANTS["fused"].norm, True, small_data(), Settings(dtype=torch.bfloat16))
    seen = []
    trainer.model.get_submodule("norm1").register_forward_hook(lambda *args: seen.append(args[2].dtype))
    trainer.step(*next(trainer.batches()))
    assert seen == [torch.bfloat16]
    assert {p.dtype for p in trainer.model.parameters()} == {torch.float32}


def test_resize_is_bilinear() -> None:
    """Pixel centres of the large image are at (i + 0.5) * 28 / 32 - 0.5 of the small one. Edges repeat."""
    mnist: Mnist = small_mnist(train=4, test=2)
    found = Data.of(mnist, torch.device("cpu")).train_images
    assert found.shape == (4, 1, 32, 32)
    assert found.dtype == torch.float32
    positions = ((torch.arange(32) + 0.5) * 28 / 32 - 0.5).clamp(0, 27)
    lower = positions.floor().long().clamp(max=26)
    weights = torch.zeros(32, 28)
    weights[torch.arange(32), lower] = 1 - (positions - lower)
    weights[torch.arange(32), lower + 1] = positions - lower
    expected = weights @ torch.from_numpy(mnist.train_images).float() @ weights.T
    assert (found.squeeze(1) * 255 - expected).abs().max() <= 1.01  # two passes, each rounded to uint8

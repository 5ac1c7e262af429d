"""The data: what breaks careless arithmetic, and what the two norms of LeNet-5 meet on MNIST."""

from collections.abc import Callable
from dataclasses import dataclass
from functools import lru_cache, partial

import torch
from torch import Tensor, nn

from benchmarks import mnist
from benchmarks.comparison import LAYOUTS
from benchmarks.lenet.model import NORM_LAYERS, VARIANTS
from benchmarks.lenet.training import Data as Images
from benchmarks.lenet.training import Settings, Trainer

SHAPE = (32, 8, 56, 56)
"""100,352 values a channel: enough for sums to go wrong, in a tenth of a second."""
LENET_STEPS = 100
"""Of training, after which the accuracy on MNIST is about 90 %."""


@dataclass(frozen=True)
class Data:
    """One input, made on demand; `far_mean`: its mean is a million times its standard deviation."""

    name: str
    make: Callable[[], Tensor]
    layout: str = "contiguous"
    dtype: str = "float32"
    far_mean: bool = False

    @property
    def id(self) -> str:
        return f"{self.name}, {self.layout}"

    def input(self) -> Tensor:
        """The (N, C, H, W) tensor in its dtype and layout; raises MnistError where LeNet finds no MNIST."""
        dtype = getattr(torch, self.dtype)
        return self.make().to(dtype).contiguous(memory_format=LAYOUTS[self.layout])


def normal(mean: float = 0.0, deviation: float = 1.0, shape: tuple[int, ...] = SHAPE) -> Tensor:
    """Drawn from one seed, in float64."""
    generator = torch.Generator().manual_seed(0)
    return mean + deviation * torch.randn(shape, generator=generator, dtype=torch.float64)


def first_is_far() -> Tensor:
    """N(0, 1), but 1e6 for the first value of each channel, which is the pivot of many a summation."""
    values = normal()
    values[0, :, 0, 0] = 1e6
    return values


def constant(value: float) -> Tensor:
    return torch.full(SHAPE, value, dtype=torch.float64)


def uniform(shape: tuple[int, ...]) -> Tensor:
    """Uniform on [0, 1), from one seed."""
    return torch.rand(shape, generator=torch.Generator().manual_seed(0), dtype=torch.float64)


def lenet_activations(layer: str, steps: int) -> Tensor:
    """What the norm `layer` of LeNet-5 gets of MNIST's first batch of 64 after that many training steps."""
    return _all_lenet_activations(steps)[layer]


@lru_cache(maxsize=2)
def _all_lenet_activations(steps: int) -> dict[str, Tensor]:
    """By layer; nn.BatchNorm2d and ReLU trained the model."""
    images = Images.of(mnist.load(download=False), torch.device("cpu"))
    variant = VARIANTS["torch-relu"]
    trainer = Trainer(variant.norm, variant.tanh, images, Settings())
    if steps:
        trainer.losses(steps)
    inputs: dict[str, Tensor] = {}

    def keep(layer: str, _: nn.Module, arguments: tuple[Tensor, ...]) -> None:
        inputs[layer] = arguments[0].detach()

    for layer in NORM_LAYERS:
        trainer.model.get_submodule(layer).register_forward_pre_hook(partial(keep, layer))
    with torch.no_grad():
        trainer.model(images.train_images[:64])
    return inputs


def adversarial(layout: str) -> list[Data]:
    """Means much larger than the deviation, a far first element, a constant; N(0, 1) beside them."""
    float32 = partial(Data, layout=layout)
    return [
        float32("N(0, 1)", normal),
        float32("1e4 +- 1e-2", partial(normal, 1e4, 1e-2), far_mean=True),
        float32("1e6 +- 1", partial(normal, 1e6, 1.0), far_mean=True),
        float32("first element 1e6", first_is_far),
        float32("constant 12345.678", partial(constant, 12345.678)),
        float32("5 +- 0.1", partial(normal, 5.0, 0.1, (2, 64, 32, 32)), dtype="bfloat16"),
    ]


DATA = [
    *adversarial("contiguous"),
    *adversarial("channels_last"),
    Data("uniform(0, 1)", partial(uniform, (16, 3, 224, 224)), "channels_last", "float16"),
]
LENET = [
    Data(f"LeNet {layer}, {steps or 'no'} training steps", partial(lenet_activations, layer, steps))
    for steps in (0, LENET_STEPS)
    for layer in NORM_LAYERS
]

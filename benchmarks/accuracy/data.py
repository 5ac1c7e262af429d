"""The data: inputs that break careless arithmetic, and the inputs of LeNet-5's two norms on MNIST."""

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
"""100,352 values per channel: enough to show the errors of sums, in a tenth of a second."""
LENET_STEPS = 100
"""Training steps. The accuracy on MNIST is about 90 % after them."""


@dataclass(frozen=True)
class Data:
    """One input, made on demand. `far_mean`: the mean is a million times the standard deviation."""

    name: str
    make: Callable[[], Tensor]
    layout: str = "contiguous"
    dtype: str = "float32"
    far_mean: bool = False

    @property
    def id(self) -> str:
        return f"{self.name}, {self.layout}"

    def input(self) -> Tensor:
        """Returns the (N, C, H, W) tensor in its dtype and layout.

        Raises MnistError if MNIST is needed and not found.
        """
        dtype = getattr(torch, self.dtype)
        return self.make().to(dtype).contiguous(memory_format=LAYOUTS[self.layout])


def normal(mean: float = 0.0, deviation: float = 1.0, shape: tuple[int, ...] = SHAPE) -> Tensor:
    """Draws from one seed, in float64."""
    generator = torch.Generator().manual_seed(0)
    return mean + deviation * torch.randn(shape, generator=generator, dtype=torch.float64)


def first_is_far() -> Tensor:
    """N(0, 1), but the first value of each channel is 1e6. Many summations use the first value as pivot."""
    values = normal()
    values[0, :, 0, 0] = 1e6
    return values


def constant(value: float) -> Tensor:
    return torch.full(SHAPE, value, dtype=torch.float64)


def uniform(shape: tuple[int, ...]) -> Tensor:
    """Uniform on [0, 1), from one seed."""
    return torch.rand(shape, generator=torch.Generator().manual_seed(0), dtype=torch.float64)


def lenet_activations(layer: str, steps: int) -> Tensor:
    """The input of LeNet-5's norm `layer` for MNIST's first batch of 64, after `steps` training steps."""
    return _all_lenet_activations(steps)[layer]


@lru_cache(maxsize=2)
def _all_lenet_activations(steps: int) -> dict[str, Tensor]:
    """The inputs by layer. The model is trained with nn.BatchNorm2d and ReLU."""
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
    """Means much larger than the deviation, a large first element, a constant, and N(0, 1) for comparison."""
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

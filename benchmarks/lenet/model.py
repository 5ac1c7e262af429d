"""LeNet-5 (LeCun et al. 1998) as the published experiment built it, and the variants of its batch norm.

Layers: conv 1-6 5x5, tanh, [norm], average pool 2, conv 6-16 5x5, tanh, [norm], average pool 2, then
400-120-84-10 with tanh. In the ReLU placement norm and ReLU stand where tanh and norm stood.
"""

from collections import OrderedDict
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial

from torch import nn

import fused_bn

NormFactory = Callable[[int], nn.Module]

RECIPES = ("article", "modern")
NORM_LAYERS = ("norm1", "norm2")
"""Names of the norm layers. In the ReLU placement each includes its ReLU."""


@dataclass(frozen=True)
class Variant:
    """A norm and its place in the network, and the published accuracies after epochs 1 and 10 in percent."""

    id: str
    description: str
    norm: NormFactory | None
    tanh: bool = True
    published: tuple[str, str] = ("-", "-")


def relu_after(norm: NormFactory) -> NormFactory:
    """Appends an nn.ReLU to `norm`."""
    return lambda channels: nn.Sequential(norm(channels), nn.ReLU())


VARIANTS = {
    variant.id: variant
    for variant in (
        Variant("none", "tanh, no norm", None, published=("≈ 93", "> 98")),
        Variant("torch", "tanh, nn.BatchNorm2d", nn.BatchNorm2d, published=("> 95", "≈ 98.5")),
        Variant("fused", "tanh, fused_bn", fused_bn.BatchNorm2d, published=("> 95", "≈ 98.5")),
        Variant("torch-relu", "nn.BatchNorm2d, ReLU", relu_after(nn.BatchNorm2d), tanh=False),
        Variant(
            "fused-relu", "fused_bn with ReLU", partial(fused_bn.BatchNorm2d, activation="relu"), tanh=False
        ),
    )
}


def lenet5(norm: NormFactory | None, *, tanh: bool = True, recipe: str = "article") -> nn.Sequential:
    """LeNet-5 for input of shape (N, 1, 32, 32) and output of shape (N, 10).

    In the recipe "article" the output is probabilities, and CrossEntropyLoss gets them, as in the published
    experiment. In "modern" the output is logits. Weights are Xavier-uniform (Glorot and Bengio 2010), biases
    0.01; a norm keeps its own. Draws the same numbers from torch's global generator for every norm.
    """
    layers: OrderedDict[str, nn.Module] = OrderedDict()
    for i, (inputs, outputs) in enumerate([(1, 6), (6, 16)], start=1):
        layers[f"conv{i}"] = nn.Conv2d(inputs, outputs, 5)
        if tanh:
            layers[f"tanh{i}"] = nn.Tanh()
        if norm is not None:
            layers[f"norm{i}"] = norm(outputs)
        layers[f"pool{i}"] = nn.AvgPool2d(2)
    layers["flatten"] = nn.Flatten()
    layers["full3"] = nn.Linear(400, 120)
    layers["tanh3"] = nn.Tanh()
    layers["full4"] = nn.Linear(120, 84)
    layers["tanh4"] = nn.Tanh()
    layers["full5"] = nn.Linear(84, 10)
    if recipe == "article":
        layers["softmax"] = nn.Softmax(dim=1)
    model = nn.Sequential(layers)
    for layer in model:
        if isinstance(layer, nn.Conv2d | nn.Linear):
            nn.init.xavier_uniform_(layer.weight)
            if layer.bias is not None:
                nn.init.constant_(layer.bias, 0.01)
    return model

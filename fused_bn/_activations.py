"""The activations that the kernels compute: names, numbers and PyTorch's equivalents."""

from collections.abc import Callable
from dataclasses import dataclass
from math import isfinite

import torch
from torch import Tensor, nn
from torch.nn import functional as F


@dataclass(frozen=True)
class Activation:
    """What an activation is in PyTorch.

    function: of the normalised tensor and `activation_param`.
    module: makes the `nn.Module` of the same activation from `activation_param`.
    param: the default of `activation_param`; None where the activation takes none.
    """

    function: Callable[[Tensor, float], Tensor]
    module: Callable[[float], nn.Module]
    param: float | None = None


def _hardsigmoid(z: Tensor) -> Tensor:
    # In float64 the slope of PyTorch's is 1/6 as rounded to float32.
    return F.relu6(z + 3) / 6 if z.dtype is torch.float64 else F.hardsigmoid(z)


ACTIVATIONS = {
    "none": Activation(lambda z, _: z, lambda _: nn.Identity()),
    "relu": Activation(lambda z, _: F.relu(z), lambda _: nn.ReLU()),
    "leaky_relu": Activation(F.leaky_relu, nn.LeakyReLU, param=0.01),
    "relu6": Activation(lambda z, _: F.relu6(z), lambda _: nn.ReLU6()),
    "hardswish": Activation(lambda z, _: F.hardswish(z), lambda _: nn.Hardswish()),
    "hardsigmoid": Activation(lambda z, _: _hardsigmoid(z), lambda _: nn.Hardsigmoid()),
    "elu": Activation(F.elu, nn.ELU, param=1.0),
    "silu": Activation(lambda z, _: F.silu(z), lambda _: nn.SiLU()),
    "gelu": Activation(lambda z, _: F.gelu(z), lambda _: nn.GELU()),
    "gelu_tanh": Activation(lambda z, _: F.gelu(z, approximate="tanh"), lambda _: nn.GELU("tanh")),
    "tanh": Activation(lambda z, _: z.tanh(), lambda _: nn.Tanh()),
    "sigmoid": Activation(lambda z, _: z.sigmoid(), lambda _: nn.Sigmoid()),
    "selu": Activation(lambda z, _: F.selu(z), lambda _: nn.SELU()),
    "softplus": Activation(F.softplus, nn.Softplus, param=1.0),
    "mish": Activation(lambda z, _: F.mish(z), lambda _: nn.Mish()),
}

DEFAULT_PARAMS = {name: activation.param or 0.0 for name, activation in ACTIVATIONS.items()}


def apply_activation(activation: str, param: float | None, z: Tensor) -> Tensor:
    """The activation in PyTorch's own call; the default of its number where `param` is None."""
    return ACTIVATIONS[activation].function(z, DEFAULT_PARAMS[activation] if param is None else param)


def check_activation(activation: object, param: object = None) -> None:
    """ValueError for what is not the name of an activation, or a number that it does not take."""
    if not isinstance(activation, str) or activation not in ACTIVATIONS:
        raise ValueError(f"activation must be one of {', '.join(ACTIVATIONS)}, but got {activation!r}")
    if param is None:
        return
    if ACTIVATIONS[activation].param is None:
        raise ValueError(f"activation {activation!r} takes no activation_param, but got {param!r}")
    if not isinstance(param, (int, float)) or not isfinite(param):
        raise ValueError(f"activation_param must be a finite number, but got {param!r}")
    if activation == "softplus" and param == 0:
        raise ValueError(f"activation_param of softplus is divided by and must not be 0, but got {param!r}")

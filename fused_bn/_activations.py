"""The activations that the kernels compute: names, numbers and PyTorch's equivalents."""

from collections.abc import Callable, Hashable
from dataclasses import dataclass
from difflib import get_close_matches
from math import isfinite
from typing import Literal, TypeAlias

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

ActivationName = Literal[
    "none",
    "relu",
    "leaky_relu",
    "relu6",
    "hardswish",
    "hardsigmoid",
    "elu",
    "silu",
    "gelu",
    "gelu_tanh",
    "tanh",
    "sigmoid",
    "selu",
    "softplus",
    "mish",
]
"""The names above, for type checkers."""

ActivationLike: TypeAlias = ActivationName | nn.Module | type[nn.Module] | Callable[..., Tensor] | None
"""What users give as an activation; `spelled` takes other spellings of the names too."""

DEFAULT_PARAMS = {name: activation.param or 0.0 for name, activation in ACTIVATIONS.items()}


def apply_activation(activation: str, param: float | None, z: Tensor) -> Tensor:
    """The activation in PyTorch's own call; the default of its number where `param` is None."""
    return ACTIVATIONS[activation].function(z, DEFAULT_PARAMS[activation] if param is None else param)


def module_of(activation: str, param: float | None) -> nn.Module:
    """The activation as a module of PyTorch."""
    return ACTIVATIONS[activation].module(DEFAULT_PARAMS[activation] if param is None else param)


SPELLINGS = {"swish": "silu", "identity": "none", "linear": "none"}
"""Other names, as some frameworks have them, in lower case and without underscores."""


def spelled(activation: object, param: float | None = None) -> tuple[str, float | None]:
    """The name and number of an activation that is given in any of the ways people write it.

    Args:
        activation: a name in any case ("ReLU", "swish"), a module or class of `torch.nn`, a function of
            `torch.nn.functional`, or None for none.
        param: `activation_param`.

    Raises:
        ValueError: it is none of ours, or `param` is given and does not fit.
    """
    from fused_bn.fusion import activations

    if activation is None:
        activation = "none"
    elif isinstance(activation, type) and activation in activations.MODULES:
        activation = activation()
    known: tuple[str, float | None] | None = None
    if isinstance(activation, nn.Module):
        known = activations.of_module(activation)
    elif isinstance(activation, str):
        plain = activation.lower().replace("_", "")
        plain = SPELLINGS.get(plain, plain)
        known = next(((name, None) for name in ACTIVATIONS if name.replace("_", "") == plain), None)
    elif isinstance(activation, Hashable) and activation in activations.FUNCTIONS:
        known = activations.FUNCTIONS[activation], None
    if known is None:
        close = get_close_matches(str(activation).lower(), ACTIVATIONS, n=1)
        hint = f": did you mean {close[0]!r}?" if close else ""
        raise ValueError(f"activation must be one of {', '.join(ACTIVATIONS)}, but got {activation!r}{hint}")
    name, own = known
    if own is not None and param is not None and own != param:
        raise ValueError(
            f"{activation!r} has a parameter of its own, so activation_param cannot be {param!r}"
        )
    check_activation(name, param)
    return name, own if param is None else param


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

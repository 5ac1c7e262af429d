"""The activations that the kernels compute: names, numbers and PyTorch's equivalents."""

from collections.abc import Callable, Hashable
from dataclasses import dataclass
from difflib import get_close_matches
from math import isfinite
from typing import Any, Literal, TypeAlias

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

    function: Callable[[Tensor, Any], Tensor]
    module: Callable[[Any], nn.Module]
    param: float | None = None


Param = float | Tensor
"""`activation_param`: a number. For prelu it may be a tensor of one slope, or of one slope per channel."""


def _hardsigmoid(z: Tensor) -> Tensor:
    # In float64 the slope of PyTorch's is 1/6 as rounded to float32.
    return F.relu6(z + 3) / 6 if z.dtype is torch.float64 else F.hardsigmoid(z)


def _prelu(z: Tensor, slope: Param) -> Tensor:
    return F.prelu(z, slope.to(z.dtype) if isinstance(slope, Tensor) else z.new_full((1,), slope))


def _prelu_module(slope: Param) -> nn.PReLU:
    if not isinstance(slope, Tensor):
        return nn.PReLU(init=slope)
    module = nn.PReLU(slope.numel())
    module.weight = slope if isinstance(slope, nn.Parameter) else nn.Parameter(slope)
    return module


ACTIVATIONS = {
    "none": Activation(lambda z, _: z, lambda _: nn.Identity()),
    "relu": Activation(lambda z, _: F.relu(z), lambda _: nn.ReLU()),
    "leaky_relu": Activation(F.leaky_relu, nn.LeakyReLU, param=0.01),
    "relu6": Activation(lambda z, _: F.relu6(z), lambda _: nn.ReLU6()),
    "prelu": Activation(_prelu, _prelu_module, param=0.25),
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
    "prelu",
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
"""What users may give as an activation. `spelled` also takes other spellings of the names."""

DEFAULT_PARAMS = {name: activation.param or 0.0 for name, activation in ACTIVATIONS.items()}


def apply_activation(activation: str, param: Param | None, z: Tensor) -> Tensor:
    """Applies the activation with PyTorch's own function. If `param` is None, its default is used."""
    return ACTIVATIONS[activation].function(z, DEFAULT_PARAMS[activation] if param is None else param)


def module_of(activation: str, param: Param | None) -> nn.Module:
    """Returns the activation as a module of PyTorch."""
    return ACTIVATIONS[activation].module(DEFAULT_PARAMS[activation] if param is None else param)


def param_of(norm: Any) -> Param | None:
    """Returns the `activation_param` of a norm of ours: the parameter with prelu's slopes, or a number."""
    return norm.prelu_weight if norm.activation == "prelu" else norm.activation_param


def split_param(activation: str, param: Param | None, input: Tensor) -> tuple[float, Tensor | None]:
    """Returns the `activation_param` and `negative_slope`, of shape (C,), that the operators take."""
    if param is None:
        param = DEFAULT_PARAMS[activation]
    if activation != "prelu":
        return param, None  # type: ignore[return-value]
    check_activation("prelu", param)
    if not isinstance(param, Tensor):
        dtype = torch.float64 if input.dtype is torch.float64 else torch.float32
        param = torch.full((1,), param, dtype=dtype, device=input.device)
    return 0.0, param.expand(input.shape[1]) if param.numel() == 1 and input.dim() > 1 else param


NamedActivation = tuple[str, Param | None]
"""The name of an activation, a key of `ACTIVATIONS`, and its parameter."""


def named_gelu(approximate: object) -> NamedActivation | None:
    """Returns nn.GELU with this approximation."""
    return {"none": ("gelu", None), "tanh": ("gelu_tanh", None)}.get(str(approximate))


def named_softplus(beta: object, threshold: object) -> NamedActivation | None:
    """Returns nn.Softplus with these numbers, or None if the threshold is not 20."""
    return ("softplus", float(beta)) if isinstance(beta, (int, float)) and beta and threshold == 20 else None


MODULES: dict[type[nn.Module], Callable[[Any], NamedActivation | None]] = {
    nn.ReLU: lambda _: ("relu", None),
    nn.LeakyReLU: lambda module: ("leaky_relu", module.negative_slope),
    nn.ReLU6: lambda _: ("relu6", None),
    nn.PReLU: lambda module: ("prelu", module.weight),
    nn.Hardswish: lambda _: ("hardswish", None),
    nn.Hardsigmoid: lambda _: ("hardsigmoid", None),
    nn.ELU: lambda module: ("elu", module.alpha),
    nn.SiLU: lambda _: ("silu", None),
    nn.GELU: lambda module: named_gelu(module.approximate),
    nn.Tanh: lambda _: ("tanh", None),
    nn.Sigmoid: lambda _: ("sigmoid", None),
    nn.SELU: lambda _: ("selu", None),
    nn.Softplus: lambda module: named_softplus(module.beta, module.threshold),
    nn.Mish: lambda _: ("mish", None),
    nn.Identity: lambda _: ("none", None),
}

FUNCTIONS: dict[Any, str] = {
    **dict.fromkeys((F.relu, F.relu_, torch.relu, torch.relu_, "relu", "relu_"), "relu"),
    **dict.fromkeys((F.leaky_relu, F.leaky_relu_), "leaky_relu"),
    F.relu6: "relu6",
    F.hardswish: "hardswish",
    F.hardsigmoid: "hardsigmoid",
    **dict.fromkeys((F.elu, F.elu_), "elu"),
    F.silu: "silu",
    F.gelu: "gelu",
    **dict.fromkeys((F.tanh, torch.tanh, torch.tanh_, "tanh", "tanh_"), "tanh"),
    **dict.fromkeys((F.sigmoid, torch.sigmoid, torch.sigmoid_, "sigmoid", "sigmoid_"), "sigmoid"),
    **dict.fromkeys((F.selu, F.selu_, torch.selu, torch.selu_), "selu"),
    F.softplus: "softplus",
    F.mish: "mish",
}
"""Functions, and methods by their names."""


def of_module(module: object) -> NamedActivation | None:
    """Returns the activation of a module of exactly one of these classes, or None."""
    recognise = MODULES.get(type(module))  # type: ignore[arg-type]
    return None if recognise is None else recognise(module)


SPELLINGS = {"swish": "silu", "identity": "none", "linear": "none"}
"""The names in other frameworks, in lower case and without underscores."""


def spelled(activation: object, param: Param | None = None) -> tuple[str, Param | None]:
    """Returns the name and the parameter of an activation in any of its spellings.

    Args:
        activation: a name in any case ("ReLU", "swish"), a module or class of `torch.nn`, a function of
            `torch.nn.functional`, or None for none.
        param: `activation_param`.

    Raises:
        ValueError: the activation is unknown, or `param` does not fit it.
    """
    if activation is None:
        activation = "none"
    elif activation is nn.PReLU or activation is F.prelu:  # whose slopes the caller makes
        activation = "prelu"
    elif isinstance(activation, type) and activation in MODULES:
        activation = activation()
    named: tuple[str, Param | None] | None = None
    if isinstance(activation, nn.Module):
        named = of_module(activation)
    elif isinstance(activation, str):
        plain = activation.lower().replace("_", "")
        plain = SPELLINGS.get(plain, plain)
        named = next(((name, None) for name in ACTIVATIONS if name.replace("_", "") == plain), None)
    elif isinstance(activation, Hashable) and activation in FUNCTIONS:
        named = FUNCTIONS[activation], None
    if named is None:
        close = get_close_matches(str(activation).lower(), ACTIVATIONS, n=1)
        hint = f": did you mean {close[0]!r}?" if close else ""
        raise ValueError(f"activation must be one of {', '.join(ACTIVATIONS)}, but got {activation!r}{hint}")
    name, own = named
    if own is not None and param is not None and (isinstance(own, Tensor) or own != param):
        raise ValueError(
            f"{activation!r} has a parameter of its own, so activation_param cannot be {param!r}"
        )
    check_activation(name, param)
    return name, own if param is None else param


def check_activation(activation: object, param: object = None) -> None:
    """Raises ValueError for an unknown name, or a parameter that the activation does not take."""
    if not isinstance(activation, str) or activation not in ACTIVATIONS:
        raise ValueError(f"activation must be one of {', '.join(ACTIVATIONS)}, but got {activation!r}")
    if param is None:
        return
    if activation == "prelu" and isinstance(param, Tensor):
        if param.dim() > 1 or not param.is_floating_point():
            raise ValueError(
                "activation_param of prelu must be a floating-point tensor of one slope or of one a channel, "
                f"but got {param.dtype} of shape {tuple(param.shape)}"
            )
        return
    if ACTIVATIONS[activation].param is None:
        raise ValueError(f"activation {activation!r} takes no activation_param, but got {param!r}")
    if not isinstance(param, (int, float)) or not isfinite(param):
        raise ValueError(f"activation_param must be a finite number, but got {param!r}")
    if activation == "softplus" and param == 0:
        raise ValueError(f"activation_param of softplus is divided by and must not be 0, but got {param!r}")

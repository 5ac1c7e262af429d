"""Which modules, functions and methods of PyTorch are activations that the kernels compute."""

import operator
from collections.abc import Callable
from typing import Any

import torch
from torch import fx, nn
from torch.nn import functional as F

Known = tuple[str, float | None]
"""The name of an activation in `ACTIVATIONS`, and its parameter."""


def _gelu(approximate: object) -> Known | None:
    return {"none": ("gelu", None), "tanh": ("gelu_tanh", None)}.get(str(approximate))


def _softplus(beta: object, threshold: object) -> Known | None:
    return ("softplus", float(beta)) if isinstance(beta, (int, float)) and beta and threshold == 20 else None


MODULES: dict[type[nn.Module], Callable[[Any], Known | None]] = {
    nn.ReLU: lambda _: ("relu", None),
    nn.LeakyReLU: lambda module: ("leaky_relu", module.negative_slope),
    nn.ReLU6: lambda _: ("relu6", None),
    nn.Hardswish: lambda _: ("hardswish", None),
    nn.Hardsigmoid: lambda _: ("hardsigmoid", None),
    nn.ELU: lambda module: ("elu", module.alpha),
    nn.SiLU: lambda _: ("silu", None),
    nn.GELU: lambda module: _gelu(module.approximate),
    nn.Tanh: lambda _: ("tanh", None),
    nn.Sigmoid: lambda _: ("sigmoid", None),
    nn.SELU: lambda _: ("selu", None),
    nn.Softplus: lambda module: _softplus(module.beta, module.threshold),
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

PARAMETERS: dict[str, tuple[str, float | str]] = {
    "leaky_relu": ("negative_slope", 0.01),
    "elu": ("alpha", 1.0),
    "gelu": ("approximate", "none"),
    "softplus": ("beta", 1.0),
}
"""The one argument behind the tensor that changes what the function computes, and its default."""

IN_PLACE_FUNCTIONS = {
    *(F.relu_, F.leaky_relu_, F.elu_, F.selu_),
    *(torch.relu_, torch.tanh_, torch.sigmoid_, torch.selu_, operator.iadd),
}


def of_module(module: object) -> Known | None:
    """The activation that exactly this type of module computes; None where it is another module."""
    recognise = MODULES.get(type(module))  # type: ignore[arg-type]
    return None if recognise is None else recognise(module)


def of_call(node: fx.Node) -> Known | None:
    """The activation that a call of a function or method computes of its first argument."""
    name = FUNCTIONS.get(node.target) if node.op in ("call_function", "call_method") else None
    if name is None or not node.args:
        return None
    parameter, default = PARAMETERS.get(name, ("", 0.0))
    second = "threshold" if name == "softplus" else "inplace"
    arguments = dict(zip((parameter, second), node.args[1:], strict=False)) if parameter else {}
    arguments.update(node.kwargs)
    value = arguments.pop(parameter, default)
    arguments.pop("inplace", None)
    threshold = arguments.pop("threshold", 20)
    if arguments:
        return None
    if name == "softplus":
        return _softplus(value, threshold)
    if name == "gelu":
        return _gelu(value)
    if not parameter:
        return name, None
    return (name, float(value)) if isinstance(value, (int, float)) else None

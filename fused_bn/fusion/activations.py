"""Recognises the activations in a traced graph."""

import operator

import torch
from torch import fx
from torch.nn import functional as F

from fused_bn._activations import FUNCTIONS, NamedActivation, named_gelu, named_softplus

PARAMETERS: dict[str, tuple[str, float | str]] = {
    "leaky_relu": ("negative_slope", 0.01),
    "elu": ("alpha", 1.0),
    "gelu": ("approximate", "none"),
    "softplus": ("beta", 1.0),
}
"""The argument after the tensor that changes what the function computes, and its default."""

IN_PLACE_FUNCTIONS = {
    *(F.relu_, F.leaky_relu_, F.elu_, F.selu_),
    *(torch.relu_, torch.tanh_, torch.sigmoid_, torch.selu_, operator.iadd),
}


def of_call(node: fx.Node) -> NamedActivation | None:
    """Returns the activation that this call applies to its first argument, or None."""
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
        return named_softplus(value, threshold)
    if name == "gelu":
        return named_gelu(value)
    if not parameter:
        return name, None
    return (name, float(value)) if isinstance(value, (int, float)) else None

"""A Keras layer run on a case of the common grid, and judged by the common reference."""

from dataclasses import replace
from typing import Any

import keras
import torch
from torch import Tensor

import fused_bn.keras
from tests.cases import HAS_EXTENSION, Case, Result, Tensors
from tests.reference import DEMANDS, beyond_rounding, error, passed, precision, reference

DEVICE = keras.ops.zeros(()).device
"""Where Keras puts layers."""

Ours: Any = fused_bn.keras.BatchNormalization
Theirs: Any = keras.layers.BatchNormalization

FUSED = {
    "linear": "none",
    "relu": "relu",
    "leaky_relu": "leaky_relu",
    "relu6": "relu6",
    "hard_silu": "hardswish",
    "elu": "elu",
    "silu": "silu",
    "gelu": "gelu",
    "tanh": "tanh",
    "sigmoid": "sigmoid",
}
"""Keras' names of the activations that the operator computes, and the operator's."""

POLICIES = {
    "float32": (torch.float32, torch.float32),
    "float64": (torch.float64, torch.float64),
    "mixed_float16": (torch.float16, torch.float32),
    "mixed_bfloat16": (torch.bfloat16, torch.float32),
    "float16": (torch.float16, torch.float16),
    "bfloat16": (torch.bfloat16, torch.bfloat16),
}
"""Keras' dtype policies as the grid has them: of inputs, of parameters and moving variables."""


class KerasCase(Case):
    """A case whose activations have Keras' default numbers."""

    @property
    def activation_param(self) -> float | None:
        return {"leaky_relu": 0.2, "elu": 1.0}.get(self.activation)


def options(case: Case, axis: int, policy: str) -> dict[str, Any]:
    """The constructor's arguments."""
    assert case.momentum is not None
    return {
        "axis": axis,
        "momentum": 1 - case.momentum,
        "epsilon": case.eps,
        "center": case.bias,
        "scale": case.weight,
        "dtype": policy,
    }


def run(case: Case, tensors: Tensors, layer: Any, axis: int, behind: Any = None) -> Result:
    """Forward and backward of `layer`, then `behind` it, on what `tensors` hold; results are (N, C, *)."""
    x = tensors.input.movedim(1, axis).detach().requires_grad_()
    layer.build(tuple(x.shape))
    values = {
        "gamma": tensors.weight,
        "beta": tensors.bias,
        "moving_mean": tensors.running_mean,
        "moving_variance": tensors.running_var,
    }
    for name, value in values.items():
        if value is not None:
            getattr(layer, name).assign(value)
    output = layer(x, training=case.training)
    output = output if behind is None else behind(output)
    output.backward(tensors.grad_output.movedim(1, axis))
    assert x.grad is not None
    return Result(
        output.detach().movedim(axis, 1),
        x.grad.movedim(axis, 1),
        layer.gamma.value.grad if case.weight else None,
        layer.beta.value.grad if case.bias else None,
        layer.moving_mean.value.detach(),
        layer.moving_variance.value.detach(),
        None,
    )


def errors(case: Case, tensors: Tensors, result: Result) -> dict[str, float]:
    """As `tests.reference.errors`, of a moving variance that blends the biased one in."""
    truth = reference(case, tensors, passed(case, tensors, result.output))
    if case.training:
        assert case.momentum is not None
        assert tensors.running_var is not None
        old = tensors.running_var.double().cpu()
        truth = replace(truth, running_var=(1 - case.momentum) * old + case.momentum * truth.var)
    found = {}
    for name, demanded in DEMANDS.items():
        actual = getattr(result, name)
        if actual is not None:
            expected, scale = getattr(truth, name), truth.scales[name]
            found[name] = error(actual, expected, scale, demanded * precision(case.dtype))
    return found


def wrong_results(case: Case, tensors: Tensors, ours: Result, theirs: Result) -> list[str]:
    """What is beyond the demands on the operator, or further from the truth than Keras' own."""
    our_errors, their_errors = errors(case, tensors, ours), errors(case, tensors, theirs)
    wrong = []
    for name, found in our_errors.items():
        demanded = DEMANDS[name] * precision(case.dtype)
        allowed = max(their_errors[name], beyond_rounding(name, case.dtype))
        if HAS_EXTENSION and not found <= demanded:
            wrong.append(f"{case} {name}: error {found:.2e}, demanded {demanded:.2e}")
        if not found <= allowed:
            wrong.append(f"{case} {name}: error {found:.2e}, Keras' {their_errors[name]:.2e}")
        mine, other = getattr(ours, name), getattr(theirs, name)
        if mine.dtype != other.dtype or mine.shape != other.shape:
            wrong.append(f"{case} {name}: {mine.dtype} {mine.shape}, Keras' {other.dtype} {other.shape}")
    return wrong


def same_bits(mine: Tensor, theirs: Tensor) -> bool:
    """Equal in dtype, shape and every value, NaN included."""
    return mine.dtype == theirs.dtype and torch.equal(mine.nan_to_num(7.0), theirs.nan_to_num(7.0))

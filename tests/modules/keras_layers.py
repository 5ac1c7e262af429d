"""Runs a Keras layer on a case of the common grid, and judges it by the common reference."""

from dataclasses import replace
from functools import partial
from typing import Any

import keras
import torch
from torch import Tensor

import fused_bn.keras
from tests import reference as common
from tests.cases import Case, Result, Tensors

DEVICE = keras.ops.zeros(()).device
"""The device that Keras uses."""

Ours: Any = fused_bn.keras.BatchNormalization
Theirs: Any = keras.layers.BatchNormalization

FUSED = {
    "linear": "none",
    "relu": "relu",
    "leaky_relu": "leaky_relu",
    "relu6": "relu6",
    "hard_silu": "hardswish",
    "hard_sigmoid": "hardsigmoid",
    "elu": "elu",
    "silu": "silu",
    "gelu": "gelu",
    "tanh": "tanh",
    "sigmoid": "sigmoid",
    "selu": "selu",
    "softplus": "softplus",
    "mish": "mish",
}
"""Keras' names of the activations that the operator computes, and the operator's names."""

POLICIES = {
    "float32": (torch.float32, torch.float32),
    "float64": (torch.float64, torch.float64),
    "mixed_float16": (torch.float16, torch.float32),
    "mixed_bfloat16": (torch.bfloat16, torch.float32),
    "float16": (torch.float16, torch.float16),
    "bfloat16": (torch.bfloat16, torch.bfloat16),
}
"""The grid's dtypes as Keras' policies: of inputs, of parameters and moving variables."""


class KerasCase(Case):
    """A case whose activations have Keras' default parameters."""

    @property
    def activation_param(self) -> float | None:
        return {"leaky_relu": 0.2, "elu": 1.0, "softplus": 1.0}.get(self.activation)


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
    """Forward and backward of `layer`, then `behind`, on the values of `tensors`. Results are (N, C, *)."""
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
    """As `tests.reference.errors`, for a moving variance that blends the biased variance."""
    truth = common.reference(case, tensors, common.passed(case, tensors, result.output))
    if case.training:
        assert case.momentum is not None
        assert tensors.running_var is not None
        old = tensors.running_var.double().cpu()
        truth = replace(truth, running_var=(1 - case.momentum) * old + case.momentum * truth.var)
    return common.errors_against(truth, case, result)


def wrong_results(case: Case, tensors: Tensors, ours: Result, theirs: Result) -> list[str]:
    """As `tests.reference.wrong_results`, compared with Keras' own layer."""
    wrong = common.wrong_results(case, ours, theirs, partial(errors, case, tensors), "Keras")
    return [f"{case} {text}" for text in wrong]


def same_bits(mine: Tensor, theirs: Tensor) -> bool:
    """Whether both are equal in dtype, shape and every value, including NaN."""
    return mine.dtype == theirs.dtype and torch.equal(mine.nan_to_num(7.0), theirs.nan_to_num(7.0))

"""Functions on tensors; the modules are thin holders of parameters around them."""

from numbers import Real
from typing import Any

import torch
from torch import Tensor
from torch.compiler import is_compiling

from fused_bn import _fallback, _tracing
from fused_bn._activations import DEFAULT_PARAMS, Param, spelled, split_param
from fused_bn._extension import devices_with_kernels, extension

if devices_with_kernels:
    _fused = torch.ops.fused_bn.batch_norm.default
    _fused_inference = torch.ops.fused_bn.batch_norm_inference.default


def batch_norm(
    input: Tensor,
    running_mean: Tensor | None,
    running_var: Tensor | None,
    weight: Tensor | None = None,
    bias: Tensor | None = None,
    training: bool = False,
    momentum: float | None = 0.1,
    eps: float = 1e-5,
    *,
    activation: Any = "none",
    activation_param: Param | None = None,
    residual: Tensor | None = None,
    num_batches_tracked: Tensor | None = None,
) -> Tensor:
    """Batch normalisation, the addition of a residual and an activation, in one pass over memory.

    Computes ``act(weight * (x - mean) / sqrt(var + eps) + bias + residual)``, which is
    `torch.nn.functional.batch_norm` followed by the addition and the activation (Ioffe and Szegedy 2015,
    https://arxiv.org/abs/1502.03167).

    Forward keeps the input and three numbers per channel for backward. With a residual it keeps more: one bit
    per element for relu, leaky_relu and relu6, nothing for "none", and the residual itself for the other
    activations, which is not copied but stays alive until backward.

    The same input on the same processor gives the same bits, for any number of threads.

    Programs that are exported, traced, or compiled for evaluation get PyTorch's own operators; see
    `fused_bn.fused_in_export`.

    Args:
        input: shape (N, C, *), floating point; contiguous and channels_last are read in place.
        running_mean: shape (C,). Training updates it in place if it is given, and evaluation normalises with
            it. Give both running statistics or neither.
        running_var: shape (C,), as running_mean.
        weight: shape (C,), or None. With half-precision input, parameters and running statistics have the
            dtype of the input or float32; with other inputs, that of the input.
        bias: shape (C,), or None.
        training: True normalises with the statistics of this batch.
        momentum: the weight of the new statistics in the running ones; None for a cumulative average over
            `num_batches_tracked`.
        eps: a number added to the variance; positive in training.
        activation: "none", "relu", "leaky_relu", "relu6", "prelu", "hardswish", "hardsigmoid", "elu", "silu",
            "gelu", "gelu_tanh", "tanh", "sigmoid", "selu", "softplus" or "mish"; or None, or the module,
            class or function of torch that computes one of them.
        activation_param: the negative slope of leaky_relu (None: 0.01), alpha of elu or beta of softplus
            (None: 1), or the slope of prelu (None: 0.25). For prelu it may be a tensor of one slope or of one
            per channel, which gets a gradient.
        residual: a tensor that is added before the activation, of the input's shape, dtype and device.
        num_batches_tracked: an int64 scalar, which training increments if it is given.

    Returns:
        A tensor of the input's shape, dtype and memory format.

    Raises:
        ValueError: there is one value per channel in training; eps is out of range; only one running
            statistic is given; the activation is unknown; activation_param is not finite; or beta of softplus
            is 0.
        TypeError: the residual is not a tensor; or momentum is not a number.
        RuntimeError: a shape, dtype or device does not fit; the text contains the wrong value.
    """
    if type(activation) is not str or activation not in DEFAULT_PARAMS:
        activation, activation_param = spelled(activation, activation_param)
    if activation_param is None:
        activation_param = DEFAULT_PARAMS[activation]
    if residual is not None and not isinstance(residual, Tensor):
        raise TypeError(f"residual must be a tensor or None, but got {residual!r}")
    if type(momentum) is not float and momentum is not None and not isinstance(momentum, Real):
        raise TypeError(f"momentum must be a number or None, but got {momentum!r}")
    has_kernel = input.device.type in devices_with_kernels
    if not has_kernel or (
        (type(input) is not Tensor or is_compiling()) and _tracing.wants_plain_calls(input, training)
    ):
        if not has_kernel and extension is not None:
            _fallback.warn_of_device(input.device.type)
        return _fallback.batch_norm(
            input,
            residual,
            running_mean,
            running_var,
            weight,
            bias,
            training,
            momentum,
            eps,
            activation,
            activation_param,
            num_batches_tracked,
        )
    negative_slope = None
    if activation == "prelu":
        activation_param, negative_slope = split_param(activation, activation_param, input)
    if not training:
        return _fused_inference(
            input,
            residual,
            weight,
            bias,
            running_mean,
            running_var,
            eps,
            activation,
            activation_param,
            negative_slope,
        )
    return _fused(
        input,
        residual,
        weight,
        bias,
        running_mean,
        running_var,
        num_batches_tracked,
        training,
        momentum,
        eps,
        activation,
        activation_param,
        negative_slope,
    )

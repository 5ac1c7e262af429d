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

    Computes ``act(weight * (x - mean) / sqrt(var + eps) + bias + residual)`` as
    `torch.nn.functional.batch_norm` followed by the addition and the activation does (Ioffe and Szegedy 2015,
    https://arxiv.org/abs/1502.03167).

    Backward keeps the input and three numbers a channel. With a residual, relu, leaky_relu and relu6 keep a
    bit an element besides, and the other activations the residual itself: no copy, but alive until then.

    The same input on the same processor gives the same bits, whatever the number of threads.

    Exported and traced programs get PyTorch's own operators, as do those compiled for evaluation; see
    `fused_bn.fused_in_export`.

    Args:
        input: shape (N, C, *), floating point; contiguous and channels_last are read in place.
        running_mean, running_var: shape (C,); in training updated in place where given, in evaluation
            the statistics used. Either both or neither.
        weight, bias: shape (C,), each optional. Half-precision input takes parameters and running
            statistics of its own dtype or float32; other inputs of their own dtype.
        training: normalise with the statistics of this batch.
        momentum: weight of the new statistics in the running ones; None for a cumulative average over
            `num_batches_tracked`.
        eps: added to the variance; positive in training.
        activation: "none", "relu", "leaky_relu", "relu6", "prelu", "hardswish", "hardsigmoid", "elu", "silu",
            "gelu", "gelu_tanh", "tanh", "sigmoid", "selu", "softplus" or "mish"; or None, or the module,
            class or function of torch that computes one of them.
        activation_param: leaky_relu's negative slope, 0.01 where None; elu's alpha or softplus' beta, 1
            where None; prelu's slope, 0.25 where None, or a tensor of one slope or of one a channel, which
            gets a gradient.
        residual: added before the activation; of the input's shape, dtype and device.
        num_batches_tracked: int64 scalar, incremented in training where given.

    Returns:
        A tensor of the input's shape, dtype and memory format.

    Raises:
        ValueError: one value a channel in training, eps out of range, only one running statistic, an
            unknown activation, an activation_param that is not finite, a softplus whose beta is 0.
        TypeError: a residual that is no tensor, a momentum that is no number.
        RuntimeError: a shape, dtype or device that does not fit; the text holds the offending value.
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

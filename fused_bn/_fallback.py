"""The same contract in plain PyTorch calls: for machines without a compiler and devices without a kernel."""

import warnings

import torch
from torch import Tensor
from torch.nn import functional as F

from fused_bn._activations import ACTIVATIONS, Param, apply_activation, check_activation

_warned_of: set[str] = set()


def warn_of_device(device_type: str) -> None:
    """Warns once for each type of device that has no kernels in the compiled extension."""
    if device_type not in _warned_of and not torch.compiler.is_compiling():
        _warned_of.add(device_type)
        warnings.warn(
            f"fused_bn has no kernels for {device_type!r} tensors in this build and computes them with plain "
            "PyTorch calls; `python -m fused_bn` says what is built and what to do.",
            RuntimeWarning,
            stacklevel=4,
        )


def batch_norm(
    input: Tensor,
    residual: Tensor | None,
    running_mean: Tensor | None,
    running_var: Tensor | None,
    weight: Tensor | None,
    bias: Tensor | None,
    training: bool,
    momentum: float | None,
    eps: float,
    activation: str,
    activation_param: Param,
    num_batches_tracked: Tensor | None,
) -> Tensor:
    """See `fused_bn.functional.batch_norm`."""
    check_activation(activation)
    if ACTIVATIONS[activation].param is not None:
        check_activation(activation, activation_param)
    if residual is not None:
        check_residual(input, residual)
    counter = num_batches_tracked if training else None
    if momentum is None and counter is not None and torch.compiler.is_compiling():
        z = _cumulative(input, running_mean, running_var, weight, bias, eps, counter)
    else:
        if momentum is None:
            momentum = 0.0 if counter is None else 1.0 / (float(counter) + 1)
        z = F.batch_norm(input, running_mean, running_var, weight, bias, training, momentum, eps)
    if counter is not None:  # after the checks, so that a refused call changes nothing
        counter.add_(1)
    if residual is not None:
        z = z + residual
    return apply_activation(activation, activation_param, z)


def _cumulative(
    input: Tensor,
    running_mean: Tensor | None,
    running_var: Tensor | None,
    weight: Tensor | None,
    bias: Tensor | None,
    eps: float,
    counter: Tensor,
) -> Tensor:
    """Trains with momentum=None in a recorded program, where the counter has no value."""
    if running_mean is None or running_var is None:
        return F.batch_norm(input, running_mean, running_var, weight, bias, True, 0.0, eps)
    # A program that is moved to evaluation reads the buffers that the operator gets here.
    mean, variance = running_mean.clone(), running_var.clone()
    z = F.batch_norm(input, running_mean, running_var, weight, bias, True, 1.0, eps)
    kept = 1 - 1 / (counter.to(running_mean.dtype) + 1)
    running_mean.lerp_(mean, kept)
    running_var.lerp_(variance, kept)
    return z


def check_residual(input: Tensor, residual: Tensor) -> None:
    """Raises the operator's errors. Only the names of dtypes differ."""
    for what, verb, theirs, ours in (
        ("has shape", "has", list(residual.shape), list(input.shape)),
        ("is of", "is of", residual.dtype, input.dtype),
        ("is on", "is on", residual.device, input.device),
    ):
        if theirs != ours:
            raise RuntimeError(f"fused_bn: the residual {what} {theirs}, but the input {verb} {ours}")

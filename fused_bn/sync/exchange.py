"""Batch norm over the batches of several processes: one collective forward, one backward, and autograd.

Each process sends the count, the mean and the sum of squared deviations of every channel. All processes merge
them in the same order (Chan, Golub, LeVeque 1979), so that all get the same bits. Backward adds two sums per
channel over the processes. Nothing waits for a device.
"""

from collections.abc import Callable
from types import ModuleType
from typing import Any

import torch
from torch import Tensor, distributed
from torch.autograd.function import once_differentiable

from fused_bn._activations import Param, check_activation, split_param
from fused_bn._extension import devices_with_kernels
from fused_bn.sync import fallback_pieces
from fused_bn.sync import pieces as kernel_pieces


def group_of(process_group: Any) -> Any:
    """Returns the group, by default that of all processes, or None if this process is alone."""
    if not distributed.is_available() or not distributed.is_initialized():
        return None
    group = distributed.group.WORLD if process_group is None else process_group
    return group if distributed.get_world_size(group) > 1 else None


def batch_norm(
    input: Tensor,
    residual: Tensor | None,
    weight: Tensor | None,
    bias: Tensor | None,
    running_mean: Tensor | None,
    running_var: Tensor | None,
    num_batches_tracked: Tensor | None,
    momentum: float | None,
    eps: float,
    activation: str,
    activation_param: Param | None,
    group: Any,
    layer: str,
) -> Tensor:
    """What `functional.batch_norm` computes in training, with the statistics of the whole group.

    Args:
        group: of torch.distributed, of more than one process.
        layer: what error texts call the caller.

    Raises:
        RuntimeError: besides what `functional.batch_norm` raises, where other processes cannot be reached.
    """
    check_activation(activation, activation_param)
    param, negative_slope = split_param(activation, activation_param, input)
    pieces = _pieces_of(input)
    counter = num_batches_tracked
    if counter is not None and (counter.dtype is not torch.int64 or counter.device != input.device):
        momentum = 1 / (float(counter) + 1) if momentum is None else momentum
        num_batches_tracked = None  # the pieces write only int64 counters on the device
    with torch.no_grad():
        pieces.check(input, residual, weight, bias, activation, param, negative_slope)
        moments = _exchange(_gather, pieces.moments(input), group, layer)
        statistics, count = pieces.merge(
            input, moments, running_mean, running_var, num_batches_tracked, momentum, eps
        )
        if counter is not num_batches_tracked and counter is not None:
            counter.add_(1)
    output: Tensor = _Elementwise.apply(
        input, residual, weight, bias, negative_slope, statistics, count, activation, param, group, layer
    )
    return output


class _Elementwise(torch.autograd.Function):
    """Forward after the exchange of moments, and all of backward."""

    @staticmethod
    def forward(
        ctx: Any,
        input: Tensor,
        residual: Tensor | None,
        weight: Tensor | None,
        bias: Tensor | None,
        negative_slope: Tensor | None,
        statistics: Tensor,
        count: Tensor,
        activation: str,
        param: float,
        group: Any,
        layer: str,
    ) -> Tensor:
        pieces = _pieces_of(input)
        output, mask = pieces.elementwise(
            input, residual, weight, bias, statistics, activation, param, negative_slope
        )
        ctx.options, ctx.group, ctx.layer = (activation, param), group, layer
        ctx.format = None if mask is None else torch._prims_common.suggest_memory_format(input)
        kept = residual if pieces.keeps_residual(activation) else None
        ctx.save_for_backward(input, kept, weight, bias, negative_slope, statistics, mask, count)
        return output

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad_output: Tensor) -> tuple[Tensor | None, ...]:
        wants_input, wants_residual, *wants_parameters = ctx.needs_input_grad[:5]
        input, *saved, count = ctx.saved_tensors
        pieces = _pieces_of(input)
        # The bits of a mask are in the order of the input's memory, which hooks may have changed.
        if ctx.format is not None:
            input = input.contiguous(memory_format=ctx.format)
        saved = [input, *saved]
        sums, *of_parameters = pieces.backward_sums(grad_output, *saved, *ctx.options, wants_parameters)
        if wants_input:
            sums = _exchange(_add_up, sums, ctx.group, ctx.layer)
        grad_input = grad_residual = None
        if wants_input or wants_residual:
            grad_input, grad_residual = pieces.backward_elementwise(
                grad_output, *saved, sums, count, *ctx.options, [wants_input, wants_residual]
            )
        return (
            grad_input if wants_input else None,
            grad_residual if wants_residual else None,
            *(grad if wanted else None for grad, wanted in zip(of_parameters, wants_parameters, strict=True)),
            *[None] * 6,
        )


def _pieces_of(input: Tensor) -> ModuleType:
    return kernel_pieces if input.device.type in devices_with_kernels else fallback_pieces


def _exchange(collective: Callable[[Tensor, Any], Tensor], message: Tensor, group: Any, layer: str) -> Tensor:
    if torch.compiler.is_compiling():
        return collective(message, group)
    try:
        return collective(message, group)
    except RuntimeError as error:
        raise RuntimeError(
            f"{layer}: the {distributed.get_world_size(group)} processes of its group could not exchange "
            f"their batch statistics: {error}"
        ) from error


_all_gather = getattr(distributed, "all_gather_single", None) or distributed.all_gather_into_tensor
"""torch later than 2.11 has the first name."""


def _gather(message: Tensor, group: Any) -> Tensor:
    """Returns the messages of all processes, one row each, by rank."""
    messages = message.new_empty(distributed.get_world_size(group) * len(message))
    _all_gather(messages, message, group=group)
    return messages.view(-1, message.shape[0])


def _add_up(message: Tensor, group: Any) -> Tensor:
    """Returns the sum over all processes."""
    distributed.all_reduce(message, group=group)
    return message

"""What the operators return, without computing it: for torch.compile, torch.export and the meta device.

What the kernels refuse is refused here too, by the same checks: else a wrong shape would pass for right until
the model meets data.
"""

import torch
from torch import Tensor


def _empty_output(input: Tensor) -> Tensor:
    """A dense tensor in the memory format that the kernels choose for this input."""
    format = torch._prims_common.suggest_memory_format(input)
    return torch.empty_like(input, memory_format=format)


def _statistics_dtype(input: Tensor) -> torch.dtype:
    return torch.float64 if input.dtype == torch.float64 else torch.float32


@torch.library.register_fake("fused_bn::batch_norm_forward")
def _forward(
    input: Tensor,
    residual: Tensor | None,
    weight: Tensor | None,
    bias: Tensor | None,
    running_mean: Tensor | None,
    running_var: Tensor | None,
    num_batches_tracked: Tensor | None,
    training: bool,
    momentum: float | None,
    eps: float,
    activation: str,
    activation_param: float,
    save_mask: bool,
) -> tuple[Tensor, Tensor, Tensor]:
    torch.ops.fused_bn.check_forward(
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
    )
    statistics = input.new_empty((3, input.shape[1]), dtype=_statistics_dtype(input))
    mask_size = torch.ops.fused_bn.mask_size(input, residual, activation, save_mask)
    return _empty_output(input), statistics, input.new_empty(mask_size, dtype=torch.uint8)


@torch.library.register_fake("fused_bn::batch_norm_elementwise")
def _elementwise(
    input: Tensor,
    residual: Tensor | None,
    weight: Tensor | None,
    bias: Tensor | None,
    statistics: Tensor,
    activation: str,
    activation_param: float,
    save_mask: bool,
) -> tuple[Tensor, Tensor]:
    torch.ops.fused_bn.check_elementwise(
        input, residual, weight, bias, statistics, activation, activation_param
    )
    mask_size = torch.ops.fused_bn.mask_size(input, residual, activation, save_mask)
    return _empty_output(input), input.new_empty(mask_size, dtype=torch.uint8)


@torch.library.register_fake("fused_bn::batch_norm_backward")
def _backward(
    grad_output: Tensor,
    input: Tensor,
    residual: Tensor | None,
    weight: Tensor | None,
    bias: Tensor | None,
    statistics: Tensor,
    mask: Tensor | None,
    training: bool,
    activation: str,
    activation_param: float,
    output_mask: list[bool],
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    torch.ops.fused_bn.check_backward(
        grad_output,
        input,
        residual,
        weight,
        bias,
        statistics,
        mask,
        training,
        activation,
        activation_param,
        output_mask,
    )

    def like_input(wanted: bool) -> Tensor:
        return _empty_output(input) if wanted else input.new_empty(0)

    def per_channel(wanted: bool, parameter: Tensor | None) -> Tensor:
        like = statistics if parameter is None else parameter
        return like.new_empty(input.shape[1] if wanted else 0)

    return (
        like_input(output_mask[0]),
        like_input(output_mask[1]),
        per_channel(output_mask[2], weight),
        per_channel(output_mask[3], bias),
    )


@torch.library.register_fake("fused_bn::batch_norm_moments")
def _moments(input: Tensor) -> Tensor:
    torch.ops.fused_bn.check_moments(input)
    return input.new_empty(2 * input.shape[1] + 1, dtype=torch.float64)


@torch.library.register_fake("fused_bn::batch_norm_merge")
def _merge(
    input: Tensor,
    moments: Tensor,
    running_mean: Tensor | None,
    running_var: Tensor | None,
    num_batches_tracked: Tensor | None,
    momentum: float | None,
    eps: float,
) -> tuple[Tensor, Tensor]:
    torch.ops.fused_bn.check_merge(
        input, moments, running_mean, running_var, num_batches_tracked, momentum, eps
    )
    statistics = input.new_empty((3, input.shape[1]), dtype=_statistics_dtype(input))
    return statistics, moments.new_empty(())


@torch.library.register_fake("fused_bn::batch_norm_backward_sums")
def _backward_sums(
    grad_output: Tensor,
    input: Tensor,
    residual: Tensor | None,
    weight: Tensor | None,
    bias: Tensor | None,
    statistics: Tensor,
    mask: Tensor | None,
    activation: str,
    activation_param: float,
    output_mask: list[bool],
) -> tuple[Tensor, Tensor, Tensor]:
    _, _, grad_weight, grad_bias = _backward(
        grad_output,
        input,
        residual,
        weight,
        bias,
        statistics,
        mask,
        True,
        activation,
        activation_param,
        [False, False, *output_mask],
    )
    return input.new_empty(2 * input.shape[1], dtype=torch.float64), grad_weight, grad_bias


@torch.library.register_fake("fused_bn::batch_norm_backward_elementwise")
def _backward_elementwise(
    grad_output: Tensor,
    input: Tensor,
    residual: Tensor | None,
    weight: Tensor | None,
    bias: Tensor | None,
    statistics: Tensor,
    mask: Tensor | None,
    sums: Tensor,
    count: Tensor,
    activation: str,
    activation_param: float,
    output_mask: list[bool],
) -> tuple[Tensor, Tensor]:
    torch.ops.fused_bn.check_sums(input, sums, count)
    grad_input, grad_residual, _, _ = _backward(
        grad_output,
        input,
        residual,
        weight,
        bias,
        statistics,
        mask,
        True,
        activation,
        activation_param,
        [*output_mask, False, False],
    )
    return grad_input, grad_residual

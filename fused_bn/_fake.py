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
    negative_slope: Tensor | None,
    save_for_backward: bool,
) -> tuple[Tensor, Tensor, Tensor, Tensor | None]:
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
        negative_slope,
    )
    statistics = input.new_empty((3, input.shape[1]), dtype=_statistics_dtype(input))
    mask_size = torch.ops.fused_bn.mask_size(input, residual, activation, save_for_backward)
    mask = input.new_empty(mask_size, dtype=torch.uint8)
    copies_bias = torch.ops.fused_bn.copies_bias(residual, bias, activation, save_for_backward)
    bias_copy = bias.new_empty(input.shape[1]) if bias is not None and copies_bias else None
    return _empty_output(input), statistics, mask, bias_copy


@torch.library.register_fake("fused_bn::batch_norm_inference")
def _inference(
    input: Tensor,
    residual: Tensor | None,
    weight: Tensor | None,
    bias: Tensor | None,
    running_mean: Tensor | None,
    running_var: Tensor | None,
    eps: float,
    activation: str,
    activation_param: float,
    negative_slope: Tensor | None = None,
) -> Tensor:
    torch.ops.fused_bn.check_forward(
        input,
        residual,
        weight,
        bias,
        running_mean,
        running_var,
        None,
        False,
        None,
        eps,
        activation,
        activation_param,
        negative_slope,
    )
    return _empty_output(input)


@torch.library.register_fake("fused_bn::batch_norm_elementwise")
def _elementwise(
    input: Tensor,
    residual: Tensor | None,
    weight: Tensor | None,
    bias: Tensor | None,
    statistics: Tensor,
    activation: str,
    activation_param: float,
    negative_slope: Tensor | None,
    save_mask: bool,
) -> tuple[Tensor, Tensor]:
    torch.ops.fused_bn.check_elementwise(
        input, residual, weight, bias, statistics, activation, activation_param, negative_slope
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
    negative_slope: Tensor | None,
    statistics: Tensor,
    mask: Tensor | None,
    training: bool,
    activation: str,
    activation_param: float,
    output_mask: list[bool],
) -> tuple[Tensor, Tensor, Tensor, Tensor, Tensor | None]:
    torch.ops.fused_bn.check_backward(
        grad_output,
        input,
        residual,
        weight,
        bias,
        negative_slope,
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
        None if negative_slope is None else per_channel(output_mask[4], negative_slope),
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
    negative_slope: Tensor | None,
    statistics: Tensor,
    mask: Tensor | None,
    activation: str,
    activation_param: float,
    output_mask: list[bool],
) -> tuple[Tensor, Tensor, Tensor, Tensor | None]:
    _, _, *of_parameters = _backward(
        grad_output,
        input,
        residual,
        weight,
        bias,
        negative_slope,
        statistics,
        mask,
        True,
        activation,
        activation_param,
        [False, False, *output_mask],
    )
    return input.new_empty(2 * input.shape[1], dtype=torch.float64), *of_parameters


@torch.library.register_fake("fused_bn::batch_norm_backward_elementwise")
def _backward_elementwise(
    grad_output: Tensor,
    input: Tensor,
    residual: Tensor | None,
    weight: Tensor | None,
    bias: Tensor | None,
    negative_slope: Tensor | None,
    statistics: Tensor,
    mask: Tensor | None,
    sums: Tensor,
    count: Tensor,
    activation: str,
    activation_param: float,
    output_mask: list[bool],
) -> tuple[Tensor, Tensor]:
    torch.ops.fused_bn.check_sums(input, sums, count)
    grad_input, grad_residual, *_ = _backward(
        grad_output,
        input,
        residual,
        weight,
        bias,
        negative_slope,
        statistics,
        mask,
        True,
        activation,
        activation_param,
        [*output_mask, False, False, False],
    )
    return grad_input, grad_residual

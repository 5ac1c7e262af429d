"""What the operators return, without computing it: for torch.compile, torch.export and the meta device."""

import torch
from torch import Tensor


def _empty_output(input: Tensor) -> Tensor:
    """A dense tensor in the memory format that the kernels choose for this input."""
    format = torch._prims_common.suggest_memory_format(input)
    return torch.empty_like(input, memory_format=format)


def _check_devices(input: Tensor, **others: Tensor | None) -> None:
    """Tensors of which some are on the meta device come here, and must not pass for a computation."""
    for name, other in others.items():
        if other is not None and other.device != input.device:
            raise RuntimeError(f"fused_bn: {name} is on {other.device}, but the input is on {input.device}")


def _statistics_dtype(input: Tensor) -> torch.dtype:
    return torch.float64 if input.dtype == torch.float64 else torch.float32


@torch.library.register_fake("fused_bn::batch_norm_forward")
def _forward(
    input: Tensor,
    weight: Tensor | None,
    bias: Tensor | None,
    running_mean: Tensor | None,
    running_var: Tensor | None,
    num_batches_tracked: Tensor | None,
    training: bool,
    momentum: float | None,
    eps: float,
    activation: str,
) -> tuple[Tensor, Tensor]:
    _check_devices(
        input,
        weight=weight,
        bias=bias,
        running_mean=running_mean,
        running_var=running_var,
        num_batches_tracked=num_batches_tracked,
    )
    statistics = input.new_empty((3, input.shape[1]), dtype=_statistics_dtype(input))
    return _empty_output(input), statistics


@torch.library.register_fake("fused_bn::batch_norm_backward")
def _backward(
    grad_output: Tensor,
    input: Tensor,
    weight: Tensor | None,
    bias: Tensor | None,
    statistics: Tensor,
    training: bool,
    activation: str,
    output_mask: list[bool],
) -> tuple[Tensor, Tensor, Tensor]:
    _check_devices(input, grad_output=grad_output, weight=weight, bias=bias, statistics=statistics)

    def per_channel(wanted: bool, parameter: Tensor | None) -> Tensor:
        like = statistics if parameter is None else parameter
        return like.new_empty(input.shape[1] if wanted else 0)

    grad_input = _empty_output(input) if output_mask[0] else input.new_empty(0)
    return grad_input, per_channel(output_mask[1], weight), per_channel(output_mask[2], bias)

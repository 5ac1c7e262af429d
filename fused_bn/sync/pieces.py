"""The pieces of forward and backward by the kernels' operators; `fallback_pieces` has the same functions.

`csrc/args.h` says what they take and return. What processes tell each other is float64, two numbers a
channel, and forward a count.
"""

from typing import Any

import torch
from torch import Tensor

WITH_A_MASK = frozenset({"relu", "leaky_relu", "relu6"})
"""With a residual these keep a bit an element for backward, and other activations but "none" the residual."""


def keeps_residual(activation: str) -> bool:
    """Whether backward reads the residual again."""
    return activation != "none" and activation not in WITH_A_MASK


def check(input: Tensor, residual: Tensor | None, weight: Any, bias: Any, *options: Any) -> None:
    """Raises what the later pieces would, before anything is told or written."""
    torch.ops.fused_bn.check_elementwise(input, residual, weight, bias, *options)


def moments(input: Tensor) -> Tensor:
    """Of one process, (2 * C + 1,): mean, sum of squared deviations, count."""
    return torch.ops.fused_bn.batch_norm_moments(input)


def merge(*arguments: Any) -> tuple[Tensor, Tensor]:
    """From all moments, (P, 2 * C + 1), to statistics, (3, C), and count; and into the running ones."""
    return torch.ops.fused_bn.batch_norm_merge(*arguments)


def elementwise(
    input: Tensor, residual: Tensor | None, weight: Any, bias: Any, statistics: Tensor, *options: Any
) -> tuple[Tensor, Tensor | None]:
    """The output, and the mask that backward needs.

    options: the activation, its number and prelu's slopes.
    """
    output, mask = torch.ops.fused_bn.batch_norm_elementwise(
        input, residual, weight, bias, statistics, *options, True
    )
    return output, mask if residual is not None and options[0] in WITH_A_MASK else None


def backward_sums(*arguments: Any) -> tuple[Tensor, Tensor, Tensor, Tensor | None]:
    """Of one process, (2 * C,), the sums of g and of g * xhat; the gradients of weight, bias and slopes.

    g is the gradient behind the activation.
    """
    return torch.ops.fused_bn.batch_norm_backward_sums(*arguments)


def backward_elementwise(*arguments: Any) -> tuple[Tensor, Tensor]:
    """The gradients of input and residual, from the sums over all processes."""
    return torch.ops.fused_bn.batch_norm_backward_elementwise(*arguments)

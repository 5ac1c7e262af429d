"""The exact results of batch norm and ReLU on given tensors, and the scale of each quantity."""

from dataclasses import dataclass

import torch
from torch import Tensor, nn

OVER_CHANNEL = (0, 2, 3)
NEAR_ZERO = 1e-3
"""If |z| is smaller than this, rounding may put it on either side of ReLU's kink and change its gradient."""


@dataclass(frozen=True)
class Truth:
    """Float64 results by quantity: (N, C, H, W) for "output" and "grad_input", (C,) for the others.

    `scales` are (1, C, 1, 1) and (C,), as `errors.ulps` takes them.
    """

    exact: dict[str, Tensor]
    scales: dict[str, Tensor]
    grad_output: Tensor


def truth(input: Tensor, grad_output: Tensor, norm: nn.BatchNorm2d) -> Truth:
    """Computes `norm` in training and ReLU on an (N, C, H, W) input, by nn.BatchNorm2d in float64.

    Each channel's mean, rounded to float32, is subtracted first and added to the running mean afterwards. In
    exact arithmetic this changes nothing. In float64 it keeps the digits that a mean much larger than the
    deviation would cost.

    `Truth.grad_output` is `grad_output` with 0 where |z| < NEAR_ZERO. The exact gradients belong to it.
    """
    values = input.detach().double()
    shift = values.mean(OVER_CHANNEL).float().double()
    centred = (values - _as_channel(shift)).requires_grad_()
    reference = nn.BatchNorm2d(norm.num_features, norm.eps, norm.momentum).double()
    reference.load_state_dict(norm.state_dict())
    z = reference(centred)
    grad_output = torch.where(z.detach().abs() < NEAR_ZERO, 0, grad_output)
    output = torch.relu(z)
    grad_input, grad_weight, grad_bias = torch.autograd.grad(
        output, [centred, reference.weight, reference.bias], grad_output.double()
    )
    assert reference.running_mean is not None
    assert reference.running_var is not None
    exact = {
        "output": output.detach(),
        "grad_input": grad_input,
        "grad_weight": grad_weight,
        "grad_bias": grad_bias,
        "mean": reference.running_mean + shift,
        "variance": reference.running_var,
    }
    return Truth(exact, _scales(centred.detach(), z.detach(), grad_output, reference), grad_output)


def _as_channel(values: Tensor) -> Tensor:
    return values.view(1, -1, 1, 1)


def _scales(centred: Tensor, z: Tensor, grad_output: Tensor, norm: nn.BatchNorm2d) -> dict[str, Tensor]:
    """Root mean squares: of z for the output, and of the summed terms for gradients and statistics."""
    count = centred.numel() // norm.num_features
    variance = centred.var(OVER_CHANNEL, correction=0) + norm.eps
    gradient = grad_output.double().square().mean(OVER_CHANNEL).sqrt()
    return {
        "output": _as_channel(z.square().mean(OVER_CHANNEL).sqrt()),
        "grad_input": _as_channel(norm.weight.detach().abs() * variance.rsqrt() * gradient),
        "grad_weight": count**0.5 * gradient,
        "grad_bias": count**0.5 * gradient,
        "mean": variance.sqrt(),
        "variance": variance,
    }

"""What `pieces` computes, in plain PyTorch calls. Masks are never made: backward reads the residual."""

from typing import Any

import torch
from torch import Tensor

from fused_bn._activations import Param, apply_activation
from fused_bn._fallback import check_residual


def keeps_residual(activation: str) -> bool:
    return activation != "none"


def check(
    input: Tensor, residual: Tensor | None, weight: Tensor | None, bias: Tensor | None, *options: Any
) -> None:
    if residual is not None:
        check_residual(input, residual)
    for name, vector in (("weight", weight), ("bias", bias)):
        if vector is not None and vector.shape != input.shape[1:2]:
            raise RuntimeError(f"{name} should contain {input.shape[1]} elements not {vector.numel()}")


def moments(input: Tensor) -> Tensor:
    values = input.double().transpose(0, 1).flatten(1)
    count = values.new_full((1,), values.shape[1])
    if input.numel() == 0:
        return torch.cat([values.new_zeros(2 * input.shape[1]), count])
    mean = values.mean(1, keepdim=True)
    return torch.cat([mean.squeeze(1), (values - mean).square().sum(1), count])


def merge(
    input: Tensor,
    moments: Tensor,
    running_mean: Tensor | None,
    running_var: Tensor | None,
    num_batches_tracked: Tensor | None,
    momentum: float | None,
    eps: float,
) -> tuple[Tensor, Tensor]:
    channels = input.shape[1]
    if eps <= 0:
        raise ValueError(f"batch_norm eps must be positive during training, but got {eps}")
    for name, vector in (("running_mean", running_mean), ("running_var", running_var)):
        if vector is not None and vector.shape != input.shape[1:2]:
            raise RuntimeError(f"{name} should contain {channels} elements not {vector.numel()}")
    counts = moments[:, -1:]
    total = counts.sum()
    mean = (moments[:, :channels] * counts).sum(0) / total.clamp(min=1)
    deviations = (moments[:, :channels] - mean).square() * counts
    m2 = (moments[:, channels:-1] + deviations).sum(0)
    if num_batches_tracked is not None:
        num_batches_tracked.add_(1)
    if momentum is None:
        momentum = 0.0 if num_batches_tracked is None else 1.0 / float(num_batches_tracked)
    for running, new in ((running_mean, mean), (running_var, m2 / (total - 1))):
        if running is not None:
            blended = (1 - momentum) * running.double() + momentum * new
            running.copy_(torch.where(total > 0, blended, running.double()))
    dtype = torch.float64 if input.dtype == torch.float64 else torch.float32
    high = mean.to(dtype)
    invstd = (m2 / total.clamp(min=1) + eps).rsqrt()
    return torch.stack([high, (mean - high.double()).to(dtype), invstd.to(dtype)]), total


def elementwise(
    input: Tensor,
    residual: Tensor | None,
    weight: Tensor | None,
    bias: Tensor | None,
    statistics: Tensor,
    activation: str,
    activation_param: float,
    negative_slope: Tensor | None,
) -> tuple[Tensor, Tensor | None]:
    z = _affine(_normalised(input, statistics), weight, bias, residual)
    param = activation_param if negative_slope is None else negative_slope
    return apply_activation(activation, param, z).to(input.dtype), None


def backward_sums(
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
    xhat = _normalised(input, statistics)
    z = _affine(xhat, weight, bias, residual)
    param = activation_param if negative_slope is None else negative_slope
    g = _behind_activation(grad_output, z, activation, param)
    dims = [d for d in range(input.dim()) if d != 1]
    of_g, of_g_xhat = g.double().sum(dims), (g.double() * xhat).sum(dims)
    grad_slope = None
    if negative_slope is not None:
        of_slope = torch.where(z > 0, 0, grad_output * z)
        grad_slope = of_slope.double().sum(dims).to(negative_slope.dtype)
    found = (
        sums.to(statistics.dtype if parameter is None else parameter.dtype)
        for sums, parameter in ((of_g_xhat, weight), (of_g, bias))
    )
    return torch.cat([of_g, of_g_xhat]), *found, grad_slope  # type: ignore[return-value]


def backward_elementwise(
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
    channels = input.shape[1]
    xhat = _normalised(input, statistics)
    z = _affine(xhat, weight, bias, residual)
    param = activation_param if negative_slope is None else negative_slope
    g = _behind_activation(grad_output, z, activation, param)
    means = (sums / count).to(g.dtype)
    centred = g - _over(means[:channels], g) - xhat * _over(means[channels:], g)
    scale = statistics[2] if weight is None else statistics[2] * weight
    return (centred * _over(scale, g)).to(input.dtype), g.to(input.dtype)


def _over(vector: Tensor, like: Tensor) -> Tensor:
    return vector.view(1, -1, *[1] * (like.dim() - 2))


def _normalised(input: Tensor, statistics: Tensor) -> Tensor:
    centred = input - _over(statistics[0], input) - _over(statistics[1], input)
    return centred * _over(statistics[2], input)


def _affine(xhat: Tensor, weight: Tensor | None, bias: Tensor | None, residual: Tensor | None) -> Tensor:
    z = xhat if weight is None else xhat * _over(weight, xhat)
    z = z if bias is None else z + _over(bias, xhat)
    return z if residual is None else z + residual


def _behind_activation(grad: Tensor, z: Tensor, activation: str, param: Param) -> Tensor:
    if activation == "none":
        return grad.to(z.dtype)
    with torch.enable_grad():
        z = z.detach().requires_grad_()
        return torch.autograd.grad(apply_activation(activation, param, z), z, grad.to(z.dtype))[0]

"""Pairs of modules: ours, and the nn.BatchNorm*, addition and activation that it replaces."""

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

import fused_bn
from fused_bn._activations import ACTIVATIONS
from tests.cases import NEWER_TORCH, PARAMS, hardsigmoid, in_layout
from tests.modules.test_module import GRADIENT_TOLERANCE, RANKS
from tests.reference import precision

FP64_TOLERANCE = GRADIENT_TOLERANCE * precision(torch.float64)
"""The largest tolerance of outputs and gradients. No activation's slope or curvature exceeds 1.8 (selu)."""


class StepwiseHardswish(nn.Module):
    """nn.Hardswish in steps. On CUDA PyTorch multiplies by 1/6 rounded to float32, even in float64."""

    def forward(self, z: Tensor) -> Tensor:
        return z * F.relu6(z + 3) / 6


class StepwiseHardsigmoid(nn.Module):
    def forward(self, z: Tensor) -> Tensor:
        return hardsigmoid(z)


class Original(nn.Module):
    """The original of one of our modules: three of PyTorch's steps."""

    def __init__(self, norm: nn.Module, activation: str, param: float | None = None) -> None:
        super().__init__()
        self.norm = norm
        known = ACTIVATIONS[activation]
        self.activation = known.module(known.param or 0.0 if param is None else param)

    def forward(self, input: Tensor, residual: Tensor | None = None) -> Tensor:
        z = self.norm(input)
        return self.activation(z if residual is None else z + residual)


def ours_and_original(
    kind: str = "2d",
    activation: str = "relu",
    *,
    device: str = "cpu",
    dtype: torch.dtype = torch.float64,
    **options: Any,
) -> tuple[nn.Module, Original]:
    """Our module and the original, with the same random parameters and statistics."""
    ours_type, theirs_type, shape, _ = RANKS[kind]
    param = PARAMS.get(activation)
    ours = ours_type(shape[1], activation=activation, activation_param=param, **options)
    options.pop("frozen", None)
    bias = options.pop("bias", True)
    theirs = theirs_type(shape[1], **options, **({"bias": bias} if NEWER_TORCH else {}))
    if not bias:
        theirs.register_parameter("bias", None)
    generator = torch.Generator().manual_seed(8)
    for name, value in theirs.state_dict().items():
        if value.is_floating_point():
            low = 1.0 if name == "running_var" else -1.5
            value.copy_(torch.empty_like(value).uniform_(low, low + 3, generator=generator))
    missing, unexpected = ours.load_state_dict(theirs.state_dict(), strict=False)
    assert missing == (["prelu_weight"] if activation == "prelu" else [])
    assert not unexpected
    original = Original(theirs, activation, param).to(device, dtype)
    if (activation, device, dtype) == ("hardswish", "cuda", torch.float64):
        original.activation = StepwiseHardswish()
    if activation == "hardsigmoid":
        original.activation = StepwiseHardsigmoid()
    return ours.to(device, dtype), original


def batch(
    kind: str = "2d", *, seed: int = 0, device: str = "cpu", dtype: torch.dtype = torch.float64
) -> tuple[Tensor, Tensor, Tensor]:
    """Input, residual and grad_output in the layout of the kind."""
    shape, layout = RANKS[kind][2:]
    generator = torch.Generator().manual_seed(seed)

    def normal() -> Tensor:
        return in_layout(torch.randn(shape, generator=generator, dtype=torch.float64), layout)

    return (
        (normal() * 3 + 1).to(device, dtype),
        normal().to(device, dtype),
        normal().to(device, dtype),
    )


def step(
    module: nn.Module, x: Tensor, residual: Tensor | None, grad_output: Tensor | None = None
) -> list[Tensor | None]:
    """Output and gradients of one call: of the input, the residual and the parameters.

    By default grad_output has a different value everywhere.
    """
    module.zero_grad()
    given = [t.detach().requires_grad_() for t in (x, residual) if t is not None]
    output = module(*given)
    if grad_output is None:
        grad_output = torch.linspace(-1, 1, output.numel(), device=x.device, dtype=x.dtype).view(output.shape)
    output.backward(grad_output)
    return [output.detach(), *(t.grad for t in given), *(p.grad for p in module.parameters())]


def assert_near(
    mine: Sequence[Tensor | None], theirs: Sequence[Tensor | None], tolerance: float = FP64_TOLERANCE
) -> None:
    for one, other in zip(mine, theirs, strict=True):
        assert one is not None
        assert other is not None
        torch.testing.assert_close(one, other, rtol=tolerance, atol=tolerance)


def assert_same_buffers(ours: nn.Module, theirs: nn.Module, tolerance: float = FP64_TOLERANCE) -> None:
    names = [name for name, _ in ours.named_buffers()]
    assert names == [name.removeprefix("norm.") for name, _ in theirs.named_buffers()]
    assert_near(list(ours.buffers()), list(theirs.buffers()), tolerance)


class WithResidual(nn.Module):
    """One of our modules in a model that calls it with a residual, for export and compilation."""

    def __init__(self, activation: Any = "relu", **options: Any) -> None:
        super().__init__()
        self.norm = fused_bn.BatchNorm2d(
            6, activation=activation, activation_param=PARAMS.get(activation), **options
        )

    def forward(self, input: Tensor, residual: Tensor) -> Tensor:
        return self.norm(input, residual)

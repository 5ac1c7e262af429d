"""Activations alone: a norm without parameters passes values on unchanged, in every digit."""

from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor

import fused_bn
from fused_bn import _fallback, functional
from tests.cases import PARAMS, Case, activate, same_bits
from tests.ops.test_adversarial import INF, NAN, classes

pytestmark = pytest.mark.needs_extension

Exact = Any
"""An array of np.longdouble, which has 64 bits of significand on x86."""


def alone(activation: str, z: Tensor, param: float | None = None) -> tuple[Tensor, Tensor]:
    """Values and slopes at z, by the kernels."""
    x = z[:, None].requires_grad_()
    mean, variance = torch.zeros(1, device=z.device), torch.ones(1, device=z.device)
    output = fused_bn.functional.batch_norm(
        x,
        mean.to(z.dtype),
        variance.to(z.dtype),
        eps=0.0,
        activation=activation,
        activation_param=param,
    )
    output.backward(torch.ones_like(output))
    assert x.grad is not None
    return output.detach()[:, 0], x.grad[:, 0]


def by_torch(activation: str, z: Tensor) -> tuple[Tensor, Tensor]:
    z = z.detach().requires_grad_()
    output = activate(Case((1, 1), activation=activation), z)
    (slope,) = torch.autograd.grad(output.sum(), z)
    return output.detach(), slope


LARGEST = 3e38


@pytest.mark.core
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64, torch.bfloat16], ids=str)
@pytest.mark.parametrize("activation", ["hardsigmoid", "selu", "softplus", "mish"])
def test_extremes_and_edges_are_pytorchs(activation: str, dtype: torch.dtype, device: str) -> None:
    """NaN and infinities, 0 and 1 are where PyTorch has them, also in the slopes."""
    edge = 20 / PARAMS["softplus"]
    places = [INF, -INF, NAN, 0.0, -0.0, 3.0, -3.0, LARGEST, -LARGEST, 1e-38, -200.0]
    # More than a vector's lanes, so that there is a remainder.
    z = torch.tensor([*places, edge - 0.25, edge + 0.25] * 5, dtype=dtype, device=device)
    (output, slope), (their_output, their_slope) = (
        alone(activation, z, PARAMS.get(activation)),
        by_torch(activation, z),
    )
    if activation == "selu":  # in PyTorch its slope at NaN is NaN in whole vectors, but not in the remainder
        their_slope[z.isnan()] = slope[z.isnan()]
    for mine, theirs in ((output, their_output), (slope, their_slope)):
        assert same_bits(classes(mine), classes(theirs))
        for value in (0.0, 1.0, LARGEST):
            where = theirs == torch.tensor(value, dtype=dtype)
            assert torch.equal(mine[where], theirs[where]), value


def logistic(z: Exact) -> Exact:
    return 1 / (1 + np.exp(-z))


def mish_slope(z: Exact) -> tuple[Exact, Exact]:
    tangent = np.tanh(np.log1p(np.exp(z)))
    bend = z * logistic(z) * (1 - tangent) * (1 + tangent)
    return tangent + bend, abs(tangent) + abs(bend)


ALPHA, SCALE = (
    np.longdouble("1.6732632423543772848170429916717"),
    np.longdouble("1.0507009873554804934193349852946"),
)
BETA = 0.5
"""A power of two makes beta * z exact. exp() multiplies its rounding by z, in PyTorch too."""


def known(function: Callable[[Exact], Exact]) -> Callable[[Exact], tuple[Exact, Exact]]:
    """The exact values, and the scale of the errors: the value itself."""
    return lambda z: (function(z), abs(function(z)))


EXACT: dict[str, tuple[Callable[[Exact], tuple[Exact, Exact]], float]] = {
    "hardsigmoid": (known(lambda z: np.clip((z + 3) / 6, 0, 1)), 2),
    "slope of hardsigmoid": (known(lambda z: (abs(z) < 3) / np.longdouble(6)), 1),
    "selu": (known(lambda z: SCALE * np.where(z > 0, z, ALPHA * np.expm1(np.minimum(z, 0)))), 4 + 2),
    "slope of selu": (known(lambda z: SCALE * np.where(z > 0, 1, ALPHA * np.exp(np.minimum(z, 0)))), 4 + 2),
    "softplus": (known(lambda z: np.where(BETA * z > 20, z, np.log1p(np.exp(BETA * z)) / BETA)), 4 + 4 + 2),
    "slope of softplus": (known(lambda z: np.where(BETA * z > 20, 1, logistic(BETA * z))), 4 + 3),
    "mish": (known(lambda z: z * np.tanh(np.log1p(np.exp(z)))), 13),
    "slope of mish": (mish_slope, 34),
}
"""The exact results, and the allowed roundings of 2^-24 (float64: 2^-53).

exp, expm1 and log1p are within 2 units in the last place on either device: 4 roundings. An operation adds one
to the roundings of its arguments. A sum takes over an argument's roundings in proportion to its share of the
result. So logistic(z) has 4 + 3. For mish with s = exp(-z), z > 0: the numerator 1 + 2 s has 2.7 + 1. The
denominator, in which 2 s^2 is up to 0.4, has 2.2 + 3.6 + 1. The product has 12.5. The slope s^2 (4 + 4 s) z /
denominator^2 has 8 + 3 + 3 + 15.6 + 3, and its sum one more. A negative z has fewer."""


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64], ids=str)
@pytest.mark.parametrize("activation", ["hardsigmoid", "selu", "softplus", "mish"])
def test_values_and_slopes_to_the_last_digits(activation: str, dtype: torch.dtype, device: str) -> None:
    """Only the activation can be wrong here, and no scale of a norm hides its error."""
    far = torch.logspace(-6, 1.9, 5000, dtype=torch.float64)
    z = torch.cat([torch.linspace(-45, 45, 100_003, dtype=torch.float64), far, -far]).to(dtype)
    found = alone(activation, z.to(device), BETA if activation == "softplus" else None)
    rounding = torch.finfo(dtype).eps / 2
    exact_z = z.double().numpy().astype(np.longdouble)
    for name, mine in zip((activation, f"slope of {activation}"), found, strict=True):
        truth, most = EXACT[name]
        value, scale = truth(exact_z)
        scale = np.maximum(scale, np.longdouble(torch.finfo(dtype).smallest_normal) / rounding)
        error = float((abs(mine.double().cpu().numpy() - value) / scale).max()) / rounding
        assert error <= most, f"{name}: {error:.2f} roundings, of at most {most}"


@pytest.mark.parametrize("beta", [-1.0, -0.3, 1e-3, 1e3])
def test_softplus_of_any_beta_is_pytorchs(beta: float, device: str) -> None:
    """A negative beta turns the function upside down, as in PyTorch, within 30 roundings of its terms."""
    z = torch.linspace(-70, 70, 1001, dtype=torch.float64, device=device)
    given = z.clone().requires_grad_()
    expected = torch.nn.functional.softplus(given, beta)
    (slope,) = torch.autograd.grad(expected.sum(), given)
    mine, my_slope = alone("softplus", z, beta)
    torch.testing.assert_close(mine, expected.detach(), rtol=30 * 2.0**-53, atol=0)
    torch.testing.assert_close(my_slope, slope, rtol=30 * 2.0**-53, atol=0)


@pytest.mark.parametrize("beta", [0.0, INF, NAN])
def test_meaningless_betas_are_refused(beta: float, monkeypatch: pytest.MonkeyPatch) -> None:
    """Tests the operator and plain PyTorch calls, for arguments at which F.softplus would give inf or NaN."""
    for with_kernels in (True, False):
        if not with_kernels:
            monkeypatch.setattr(functional, "devices_with_kernels", frozenset())
            monkeypatch.setattr(_fallback, "_warned_of", {"cpu"})
        with pytest.raises(ValueError, match="activation_param"):
            alone("softplus", torch.ones(3), beta)

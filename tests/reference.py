"""The fp64 reference, and how far from it an implementation may be.

Notation: u = 2^-24 is half the distance from 1 to the next fp32 number, the largest relative error of one
rounding. The demands are those of the project's kernel design, stated for fp32 arithmetic. For fp64 input the
arithmetic is fp64, and every demand shrinks by `precision(dtype)` = 2^-29. The reference is then as precise
as the results: it computes each value in a few roundings, and the demands (17 to 67 roundings) include those.
"""

import math
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial

import torch
from torch import Tensor

from tests.cases import (
    HAS_EXTENSION,
    Case,
    Result,
    Tensors,
    activate,
    momentum_factor,
    present,
    run_fused,
    run_torch,
)

U = 2.0**-24

DEMANDED_MEAN = 1e-6
"""|mean_hi + mean_lo - mean| / sigma. An error of the mean moves every output by this many sigmas."""

DEMANDED_MEAN_ADVERSARIAL = 2e-5
"""The same if the pivot of the summation is an outlier. Such a pivot is no better than any other shift."""

DEMANDED_INVSTD = 1e-6
"""Relative error of 1 / sqrt(var + eps)."""

DEMANDED_OUTPUT = 2e-6
"""|y - reference| / (|w xhat| + |w| + |b|): 1e-6 sigma from the mean (|w|) and 1e-6 from invstd (|w xhat|).
The arithmetic of x - mean, scale and fma takes as much again (4 roundings, 4u = 2.4e-7). If |y| is larger,
the demand is relative to it: sigmoid(0) is 1/2 for any w, and rounds in several steps."""

DEMANDED_GRAD_INPUT = 4e-6
"""|dx - reference| / (|w invstd| (1 + |dy| + |xhat|)), for dy of about unit size. xhat and invstd contribute
1e-6 each; the two per-channel sums and 6 roundings contribute the rest."""

DEMANDED_GRAD_PARAMETER = 2e-6
"""|dw - reference| / sqrt(sum (dy xhat)^2), and the same for db. Each of n terms of size rms has an
independent error of about 2e-6 rms, so the sum has sqrt(n) of them."""

DEMANDED_GRAD_RESIDUAL = DEMANDED_OUTPUT
"""|dr - reference| / (|dr| + |act''(z) dy| scale of z). The derivative is taken at a z with the output's
error, and has up to 10 roundings (6e-7) of its own. Without curvature it is one multiplication by a slope."""

DEMANDED_RUNNING = 2.5e-6
"""Relative to the two blended terms: twice 1e-6 from invstd, and 4 roundings (2.4e-7) of (1 - m) r + m v with
m as fp32."""


def beyond_rounding(name: str, dtype: torch.dtype) -> float:
    """Up to this error in the quantity `name`, being further off than PyTorch means nothing.

    output, grad_input, running_mean: the shortest computation of an output (x - hi, - lo, w * invstd with
    invstd itself rounded, fma) has 5 roundings, that of grad_input 8: 8u. running_var: invstd = var^(-1/2)
    may be off by 8u in the above, so var by 16u. grad_weight, grad_bias: in a sequential sum of m terms the
    partial sums grow as a random walk, and their roundings too: u sqrt(m / 6) of the terms' sqrt(m) rms on
    average. A vectorised loop adds up to 128 terms in sequence, which gives 4.6u. The worst of some hundred
    channels has 3.5 times that: 16u. fp64: the reference is no better, so as many again.
    """
    roundings = 16 if name in ("grad_weight", "grad_bias", "grad_negative_slope", "running_var") else 8
    return 2 * roundings * 2.0**-53 if dtype is torch.float64 else roundings * U


_SIGNIFICAND_BITS = {torch.float64: 53, torch.float32: 24, torch.float16: 11, torch.bfloat16: 8}


def precision(dtype: torch.dtype) -> float:
    """How much smaller the errors must be than in fp32. Half precision computes in fp32."""
    return 2.0**-29 if dtype is torch.float64 else 1.0


def half_ulp(values: Tensor, dtype: torch.dtype) -> Tensor:
    """The error of rounding `values` (fp64) to `dtype`: half the distance between neighbours."""
    _, exponent = torch.frexp(values.abs())
    smallest_normal = torch.finfo(dtype).smallest_normal
    smallest_exponent = torch.frexp(torch.tensor(smallest_normal, dtype=torch.float64))[1]
    exponent = exponent.clamp(min=int(smallest_exponent)) - _SIGNIFICAND_BITS[dtype] - 1
    return torch.ldexp(torch.ones_like(values), exponent)


@dataclass
class Reference:
    """The exact results in fp64, per channel (C,) or per element, and the scale of each quantity's error."""

    mean: Tensor
    var: Tensor
    invstd: Tensor
    xhat: Tensor
    z: Tensor
    output: Tensor
    grad_input: Tensor
    grad_weight: Tensor
    grad_bias: Tensor
    running_mean: Tensor | None
    running_var: Tensor | None
    grad_residual: Tensor
    grad_negative_slope: Tensor | None
    scales: dict[str, Tensor]


def per_channel(values: Tensor, like: Tensor) -> Tensor:
    """(C,) as (1, C, 1, ...), to broadcast against `like`."""
    return values.view(1, -1, *[1] * (like.dim() - 2))


def _fp64(tensor: Tensor | None) -> Tensor | None:
    return None if tensor is None else tensor.detach().to("cpu", torch.float64)


KINKS = {"relu": (0.0,), "leaky_relu": (0.0,), "prelu": (0.0,), "relu6": (0.0, 6.0)}
"""The kinks of activations whose slope has two values."""


def _gelu_tanh_slope(z: Tensor) -> Tensor:
    inner = GELU_SCALE * (z + 0.044715 * z**3)
    return inner.sigmoid() * (1 + z * (-inner).sigmoid() * GELU_SCALE * (1 + 3 * 0.044715 * z**2))


def _mish_slope(z: Tensor) -> Tensor:
    s, c = z.sigmoid(), (-z).sigmoid()
    return s * ((1 + c) / (1 + c**2) + z * (2 * c / (1 + c**2)) ** 2)


GELU_SCALE = 2 * math.sqrt(2 / math.pi)
SLOPES: dict[str, Callable[[Tensor], Tensor]] = {
    "silu": lambda z: z.sigmoid() * (1 + z * (-z).sigmoid()),
    "gelu": lambda z: torch.special.erfc(-z / math.sqrt(2)) / 2 + z * _gauss(z),
    "gelu_tanh": _gelu_tanh_slope,
    "tanh": lambda z: 4 * (2 * z).sigmoid() * (-2 * z).sigmoid(),
    "sigmoid": lambda z: z.sigmoid() * (-z).sigmoid(),
    "mish": _mish_slope,
}
"""Derivatives without cancellation. 1 - tanh(z)^2 loses all digits if it is small, even in fp64."""


def _gauss(z: Tensor) -> Tensor:
    return (-z.square() / 2).exp() / math.sqrt(2 * math.pi)


def derivatives(case: Case, z: Tensor, negative_slope: Tensor | None = None) -> tuple[Tensor, Tensor]:
    """The activation's first and second derivative at z. The second is 0 where the activation is linear."""
    with torch.enable_grad():
        z = z.detach().requires_grad_()
        if case.activation in SLOPES:
            first = SLOPES[case.activation](z)
        else:
            (first,) = torch.autograd.grad(activate(case, z, negative_slope).sum(), z, create_graph=True)
        if not first.requires_grad or case.activation in KINKS or case.activation == "none":
            return first.detach(), torch.zeros_like(z)
        (second,) = torch.autograd.grad(first.sum(), z)
    return first.detach(), second


def passed(case: Case, tensors: Tensors, output: Tensor) -> Tensor | None:
    """The `mask` of an output: the reference's own, except for values within rounding of a kink.

    The output's sign tells on which side of 0 such a value fell. The output itself tells on which side of 6,
    unless it was rounded to half precision afterwards.
    """
    if case.activation not in KINKS:
        return None
    mask = ~(output <= 0)
    if case.activation == "relu6":
        mask &= (reference(case, tensors).z < 6).to(mask.device) if output.element_size() == 2 else output < 6
    return mask


def reference(case: Case, tensors: Tensors, mask: Tensor | None = None) -> Reference:
    """Forward, backward and running statistics of `case` in fp64 on the CPU, by the textbook formulas.

    `mask` is True where the tested activation passed a value. A value within rounding of a kink may fall on
    either side, and its gradient follows it. The default is the reference's own mask.
    """
    x, grad_output = tensors.input.detach().double().cpu(), tensors.grad_output.double().cpu()
    over_channel = [dim for dim in range(x.dim()) if dim != 1]
    n = x.numel() // case.channels
    ones = torch.ones(case.channels, dtype=torch.float64)
    weight, bias = _fp64(tensors.weight), _fp64(tensors.bias)
    w = ones if weight is None else weight
    b = 0 * ones if bias is None else bias
    running_mean, running_var = _fp64(tensors.running_mean), _fp64(tensors.running_var)

    if case.training:
        mean = x.mean(over_channel)
        residual = x - per_channel(mean, x)
        correction = residual.mean(over_channel)  # the mean's rounding error
        mean = mean + correction
        var = (residual - per_channel(correction, x)).square().mean(over_channel)
    else:
        mean, var = present(running_mean), present(running_var)
    invstd = (var + case.eps).rsqrt()
    xhat = (x - per_channel(mean, x)) * per_channel(invstd, x)
    z = xhat * per_channel(w, x) + per_channel(b, x)
    added = 0 * z if tensors.residual is None else tensors.residual.detach().double().cpu()
    z = z + added

    z_scale = per_channel(w.abs(), x) * (xhat.abs() + 1) + per_channel(b.abs(), x) + added.abs()
    negative_slope = _fp64(tensors.negative_slope)
    output = activate(case, z, negative_slope)
    first, second = derivatives(case, z, negative_slope)
    if mask is not None:
        one_slope = case.activation_param or 0.0
        other = one_slope if negative_slope is None else per_channel(negative_slope, x)
        first = torch.where(mask.cpu(), torch.ones_like(z), other)
    dy = first * grad_output
    # The change of g = act'(z) * grad_output if z moves by its scale, plus the size of g. Without curvature
    # there is no change, even if z is NaN.
    dy_scale = dy.abs() + torch.where(second == 0, 0, (second * grad_output).abs() * z_scale)
    sum_dy, sum_dy_xhat = dy.sum(over_channel), (dy * xhat).sum(over_channel)
    grad = dy
    if case.training:
        grad = grad - per_channel(sum_dy / n, x) - xhat * per_channel(sum_dy_xhat / n, x)
    scale = w * invstd

    scales = {
        "mean": (var + case.eps).sqrt(),
        "invstd": invstd,
        "output": torch.maximum(z_scale, output.abs()),
        "grad_input": per_channel(scale.abs(), x) * (1 + dy_scale + xhat.abs()),
        "grad_weight": (dy_scale * xhat).square().sum(over_channel).sqrt(),
        "grad_bias": dy_scale.square().sum(over_channel).sqrt(),
        "grad_residual": dy_scale,
        "grad_negative_slope": (grad_output * z_scale).square().sum(over_channel).sqrt(),
    }
    if case.training and running_mean is not None and running_var is not None:
        momentum = momentum_factor(case, tensors)
        kept, new = 1 - momentum, momentum
        unbiased = n / max(n - 1, 1)
        old_mean, old_var = running_mean, running_var
        running_mean, running_var = kept * old_mean + new * mean, kept * old_var + new * unbiased * var
        scales["running_mean"] = kept * old_mean.abs() + new * (mean.abs() + scales["mean"])
        scales["running_var"] = kept * old_var.abs() + new * unbiased * (var + case.eps)
    elif running_mean is not None and running_var is not None:  # evaluation does not change them
        scales["running_mean"], scales["running_var"] = 0 * running_mean, 0 * running_var
    return Reference(
        mean,
        var,
        invstd,
        xhat,
        z,
        output,
        per_channel(scale, x) * grad,
        sum_dy_xhat,
        sum_dy,
        running_mean,
        running_var,
        dy,
        None if negative_slope is None else (grad_output * z.clamp(max=0)).sum(over_channel),
        scales,
    )


def error(actual: Tensor, expected: Tensor, scale: Tensor, demanded: float = 0.0) -> float:
    """The largest |actual - expected|, minus the rounding to `actual`'s dtype, in units of `scale`.

    The rounding is the larger one, at the far end of the allowed interval. If only one of the two is NaN or
    infinite, the error is infinite.
    """
    if actual.numel() == 0:
        return 0.0
    dtype = actual.dtype
    actual = actual.detach().double().cpu()
    distance = (actual - expected).abs() - half_ulp(expected.abs() + demanded * scale, dtype)
    both_nan = actual.isnan() & expected.isnan()
    same = both_nan | (actual == expected)
    distance = torch.where(same, 0.0, distance.clamp(min=0))
    relative = torch.where(distance == 0, 0.0, distance / scale)
    return float(relative.nan_to_num(nan=float("inf"), posinf=float("inf")).max())


DEMANDS = {
    "output": DEMANDED_OUTPUT,
    "grad_input": DEMANDED_GRAD_INPUT,
    "grad_weight": DEMANDED_GRAD_PARAMETER,
    "grad_bias": DEMANDED_GRAD_PARAMETER,
    "running_mean": DEMANDED_RUNNING,
    "running_var": DEMANDED_RUNNING,
    "grad_residual": DEMANDED_GRAD_RESIDUAL,
    "grad_negative_slope": DEMANDED_GRAD_PARAMETER,
}


def errors(case: Case, tensors: Tensors, result: Result) -> dict[str, float]:
    """Each quantity's error against the reference, in units of its scale, for the case's quantities."""
    return errors_against(reference(case, tensors, passed(case, tensors, result.output)), case, result)


def errors_against(truth: Reference, case: Case, result: Result) -> dict[str, float]:
    """The same for given exact results."""
    found = {}
    for name, demanded in DEMANDS.items():
        actual = getattr(result, name)
        if actual is not None:
            expected, scale = getattr(truth, name), truth.scales[name]
            found[name] = error(actual, expected, scale, demanded * precision(case.dtype))
    return found


def assert_meets_demands(case: Case, tensors: Tensors, demands: dict[str, float] = DEMANDS) -> Result:
    """Checks that no result is worse than PyTorch's and that the counter is the same. Returns our results."""
    ours, theirs = run_fused(case, tensors), run_torch(case, tensors)
    wrong = wrong_results(case, ours, theirs, partial(errors, case, tensors), "PyTorch", demands)
    counts = ours.num_batches_tracked, theirs.num_batches_tracked
    if counts != (None, None) and counts[0] != counts[1]:
        wrong.append(f"num_batches_tracked: {counts[0]}, PyTorch's {counts[1]}")
    assert not wrong, "\n".join(wrong)
    return ours


def wrong_results(
    case: Case,
    ours: Result,
    theirs: Result,
    judge: Callable[[Result], dict[str, float]],
    whose: str,
    demands: dict[str, float] = DEMANDS,
) -> list[str]:
    """Our results that exceed their demand, differ from theirs in dtype or shape, or are further off.

    "Further off" compares the largest errors of the two, each minus the rounding to the result's dtype. Ours
    may be up to theirs, or up to `beyond_rounding` if both are that small. The fallback is PyTorch, so only
    this comparison applies to it.

    Args:
        judge: computes a result's `errors`.
        whose: whose results theirs are, for messages.
    """
    our_errors, their_errors = judge(ours), judge(theirs)
    wrong = []
    for name, found in our_errors.items():
        demanded = demands[name] * precision(case.dtype)
        allowed = max(their_errors[name], beyond_rounding(name, case.dtype))
        if HAS_EXTENSION and not found <= demanded:
            wrong.append(f"{name}: error {found:.2e}, demanded {demanded:.2e}")
        if not found <= allowed:
            wrong.append(f"{name}: error {found:.2e}, {whose}'s {their_errors[name]:.2e}")
        mine, other = getattr(ours, name), getattr(theirs, name)
        if mine.dtype != other.dtype or mine.shape != other.shape or mine.device != other.device:
            wrong.append(f"{name}: {mine.dtype} {mine.shape}, {whose}'s {other.dtype} {other.shape}")
    return wrong

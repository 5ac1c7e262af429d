"""The kernels on data that breaks careless arithmetic: huge means, outliers, extremes, inf and NaN."""

from collections.abc import Callable
from dataclasses import replace
from itertools import product
from typing import Any

import pytest
import torch
from torch import Tensor

from tests.cases import HAS_EXTENSION, Case, Tensors, in_layout, make_tensors, present, run_torch, same_bits
from tests.reference import DEMANDS, errors
from tests.simt.grid import PLANS, possible, possible_or_any, small
from tests.simt.harness import Launch, Outcome, assert_right, run

pytestmark = pytest.mark.needs_extension

INF, NAN = float("inf"), float("nan")

SHAPES = (
    ((2, 3, 4104), "contiguous"),
    ((3, 5, 1001), "contiguous"),
    ((40, 20, 8), "contiguous"),
    ((1500, 24), "contiguous"),
    ((37, 20, 7, 7), "contiguous"),
)
"""Rows and columns, with vectors and single elements; `on_each_plan` splits each among blocks."""

LAUNCHES = {plan: small(plan, group=3, groups=1) for plan in PLANS}


def on_each_plan(test: Callable[..., None]) -> Any:
    trials = [
        pytest.param(shape, layout, launch, id=f"{'x'.join(map(str, shape))}-{plan}")
        for (shape, layout), (plan, launch) in product(SHAPES, LAUNCHES.items())
        if HAS_EXTENSION and possible(Case(shape, layout), launch)
    ]
    return pytest.mark.parametrize(("shape", "layout", "launch"), trials)(test)


def noise(shape: tuple[int, ...]) -> Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(2), dtype=torch.float64)


def tensors_with(case: Case, values: Tensor) -> Tensors:
    """The case's tensors with `values` (fp64) as input."""
    tensors = make_tensors(case)
    tensors.input = in_layout(values.to(case.dtype), case.layout)
    return tensors


def own_means(shape: tuple[int, ...]) -> Tensor:
    means = torch.linspace(-1e5, 1e5, shape[1], dtype=torch.float64)
    return noise(shape) + means.view(1, -1, *[1] * (len(shape) - 2))


HARD_DATA: dict[str, Callable[[tuple[int, ...]], Tensor]] = {
    "N(0, 1)": noise,
    "1e4 +- 1e-2": lambda shape: 1e4 + 1e-2 * noise(shape),
    "1e6 +- 1": lambda shape: 1e6 + noise(shape),
    "own mean each channel": own_means,
}


@on_each_plan
@pytest.mark.parametrize("data", HARD_DATA)
def test_huge_means_cost_no_accuracy(data: str, shape: tuple[int, ...], layout: str, launch: Launch) -> None:
    """Has ordinary tolerances: on the second mean, sums of squares are wrong by 6e7, and Welford by 7%."""
    case = Case(shape, layout)
    tensors = tensors_with(case, HARD_DATA[data](shape))
    assert_right(case, tensors, run(case, tensors, launch))


@on_each_plan
def test_an_outlier_of_a_million_sigmas(shape: tuple[int, ...], layout: str, launch: Launch) -> None:
    """The outlier may be anywhere: if it were the pivot, all other values would lose digits."""
    case = Case(shape, layout, activation="none")
    tensors = tensors_with(case, noise(shape))
    for image, pixel in ((0, 0), (-1, -1), (shape[0] // 2, 0)):
        index: Any = (image, slice(None), *[pixel] * (len(shape) - 2))
        tensors.input = in_layout(noise(shape).to(case.dtype), layout)
        tensors.input[index] = 1e6
        # With a smaller one, dweight would be small compared to what a shift of the mean adds to it.
        tensors.grad_output[index] = 1.0
        assert_right(case, tensors, run(case, tensors, launch))


@on_each_plan
@pytest.mark.parametrize("mean", [5.0, -5.0])
def test_bfloat16_with_a_mean_of_fifty_sigmas(
    mean: float, shape: tuple[int, ...], layout: str, launch: Launch
) -> None:
    """E[x^2] - E[x]^2 in half precision is negative here, and its root NaN."""
    case = Case(shape, layout, torch.bfloat16)
    launch = possible_or_any(case, launch)
    tensors = tensors_with(case, mean + 0.1 * noise(shape))
    assert_right(case, tensors, run(case, tensors, launch))


@on_each_plan
@pytest.mark.parametrize("value", [0.0, 0.1, 12345.678, -3.3e7, 1e10])
def test_a_constant_channel_has_no_variance_at_all(
    value: float, shape: tuple[int, ...], layout: str, launch: Launch
) -> None:
    """Exactly 0, so that the output is the bias bit for bit and the weight has no gradient."""
    case = Case(shape, layout, activation="none")
    tensors = tensors_with(case, torch.full(shape, value, dtype=torch.float64))
    outcome = run(case, tensors, launch)
    bias = present(tensors.bias).view(1, -1, *[1] * (len(shape) - 2))
    assert torch.equal(outcome.result.output, bias.expand(shape))
    assert (outcome.statistics[2] == torch.tensor(case.eps, dtype=torch.float64).rsqrt().float()).all()
    assert (present(outcome.result.grad_weight) == 0).all()
    assert outcome.result.grad_input.isfinite().all()


# ---- sums that overflow


def all_huge(shape: tuple[int, ...]) -> Tensor:
    return 1e30 * (1 + 0.1 * noise(shape))


def one_channel_huge(shape: tuple[int, ...]) -> Tensor:
    values = noise(shape)
    values[:, shape[1] // 2] = all_huge(shape)[:, shape[1] // 2]
    return values


def huge_in_the_middle(shape: tuple[int, ...]) -> Tensor:
    """Only one block has the few large values."""
    values = noise(shape)
    flat = values.transpose(0, 1).flatten(1)
    middle = flat.shape[1] // 2
    flat[shape[1] // 2, middle : middle + 4] = 1e30
    in_order = flat.view(shape[1], shape[0], *shape[2:]).transpose(0, 1)
    return in_order.contiguous()


HUGE = {"all": all_huge, "one channel": one_channel_huge, "the middle of a channel": huge_in_the_middle}


@on_each_plan
@pytest.mark.parametrize("what", HUGE)
@pytest.mark.parametrize("gradient", [1.0, 1e30])
def test_values_near_1e30_are_normalised_although_their_squares_overflow(
    gradient: float, what: str, shape: tuple[int, ...], layout: str, launch: Launch
) -> None:
    """Sums that overflow are computed again from scaled values, only in the channels that need it.

    The variance itself, 1e58, is infinite in fp32, and so is the running one.
    """
    case = Case(shape, layout, activation="leaky_relu")
    tensors = tensors_with(case, HUGE[what](shape))
    tensors.grad_output *= gradient
    result = run(case, tensors, launch).result
    # The demands on gradients are for those of about unit size.
    tensors.grad_output = tensors.grad_output.double() / gradient
    for name in ("grad_input", "grad_weight", "grad_bias"):
        setattr(result, name, getattr(result, name).double() / gradient)
    found = errors(case, tensors, result)
    for name in ("output", "grad_input", "grad_weight", "grad_bias", "running_mean"):
        assert found[name] <= DEMANDS[name], f"{name}: {found[name]:.2e}"
    overflows = tensors.input.double().var([d for d in range(len(shape)) if d != 1]) > 3e39
    assert torch.equal(present(result.running_var) == INF, overflows)


def test_fp64_values_near_1e150_are_normalised() -> None:
    """Protects fp64 from any step in fp32."""
    case = Case((37, 20, 7, 7), dtype=torch.float64, parameter_dtype=torch.float64)
    tensors = tensors_with(case, 1e150 * (1 + 0.1 * noise(case.shape)))
    for launch in (small(), LAUNCHES["streamed"]):
        assert_right(case, tensors, run(case, tensors, launch))


# ---- values that are not finite


def classes(tensor: Tensor) -> Tensor:
    """For each element: 0 finite, 1 NaN, 2 inf, 3 -inf."""
    return tensor.isnan() * 1 + (tensor == INF) * 2 + (tensor == -INF) * 3


NAMES = ("output", "grad_input", "grad_weight", "grad_bias", "running_mean", "running_var")


def assert_spoils_as_pytorch(
    case: Case, tensors: Tensors, found: Outcome, clean: Outcome, spoilt: int
) -> None:
    theirs = run_torch(case, tensors)
    if case.training and present(theirs.running_mean).isinf().any():
        # As in PyTorch on CUDA, an infinite value makes the mean NaN.
        present(theirs.running_mean)[spoilt] = NAN
    for name in NAMES:
        mine, other, before = (getattr(result, name) for result in (found.result, theirs, clean.result))
        assert same_bits(classes(mine), classes(other)), name
        kept = [c for c in range(case.channels) if c != spoilt]
        channel = min(1, mine.dim() - 1)
        index = torch.tensor(kept)
        assert torch.equal(mine.index_select(channel, index), before.index_select(channel, index)), name


@on_each_plan
@pytest.mark.parametrize("training", [True, False], ids=["training", "evaluation"])
@pytest.mark.parametrize("poison", [INF, -INF, NAN])
def test_non_finite_input_spoils_its_channel_and_no_other(
    poison: float, training: bool, shape: tuple[int, ...], layout: str, launch: Launch
) -> None:
    """As in PyTorch on CUDA: NaN, inf and finite in the same places.

    The bad value comes first, in the middle or last, and so hits pivots, vector bodies and tails.
    """
    case = Case(shape, layout, training=training)
    spoilt = shape[1] // 2
    clean = run(case, make_tensors(case), launch)
    for where in (0, -1, 1):
        tensors = make_tensors(case)
        last = [size - 1 if where < 0 else (size // 2) * where for size in (shape[0], *shape[2:])]
        index = (last[0], spoilt, *last[1:])
        tensors.input[index] = poison
        assert_spoils_as_pytorch(case, tensors, run(case, tensors, launch), clean, spoilt)


@on_each_plan
@pytest.mark.parametrize("value", [INF, -INF])
def test_an_infinite_gradient_reaches_the_parameters(
    value: float, shape: tuple[int, ...], layout: str, launch: Launch
) -> None:
    """As in PyTorch: mean_lo must not turn an infinite result into NaN."""
    case = Case(shape, layout, activation="none")
    tensors = make_tensors(case)
    place = (-1, 1, *[0] * (len(shape) - 2))
    tensors.grad_output[place] = value
    ours, theirs = run(case, tensors, launch).result, run_torch(case, tensors)
    for name in ("grad_weight", "grad_bias"):
        assert torch.equal(classes(getattr(ours, name)), classes(getattr(theirs, name))), name
        assert getattr(theirs, name)[1].isinf(), name


@on_each_plan
@pytest.mark.parametrize("residual", [False, True])
def test_nan_passes_through_relu_and_its_gradient_too(
    residual: bool, shape: tuple[int, ...], layout: str, launch: Launch
) -> None:
    """fmaxf(NaN, 0) is 0, and z > 0 is false for NaN: the mask is !(z <= 0), as PyTorch's.

    All gradients of the channel pass, so that they are those without an activation, bit for bit.
    """
    case = Case(shape, layout, training=False, residual=residual)
    tensors = make_tensors(case)
    present(tensors.bias)[1] = NAN
    outcome = run(case, tensors, launch)
    assert outcome.result.output[:, 1].isnan().all()
    assert not outcome.result.output[:, 0].isnan().any()
    linear = run(replace(case, activation="none"), make_tensors(case), launch).result
    assert torch.equal(outcome.result.grad_input[:, 1], linear.grad_input[:, 1])
    assert torch.equal(present(outcome.result.grad_weight)[1], present(linear.grad_weight)[1])
    assert torch.equal(present(outcome.result.grad_bias)[1], present(linear.grad_bias)[1])

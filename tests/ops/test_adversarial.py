"""Data that breaks careless arithmetic: huge means, outliers, constants, extremes, and non-finite values."""

from itertools import product
from math import prod

import pytest
import torch
from torch import Tensor

from fused_bn._activations import ACTIVATIONS
from tests.cases import (
    DTYPES,
    HALF_DTYPES,
    Case,
    Tensors,
    in_layout,
    make_tensors,
    present,
    run_fused,
    run_torch,
    same_bits,
)
from tests.reference import (
    DEMANDED_MEAN_ADVERSARIAL,
    DEMANDS,
    KINKS,
    assert_meets_demands,
    beyond_rounding,
    errors,
)

INF, NAN = float("inf"), float("nan")
LAYOUTS = ["contiguous", "channels_last"]


def tensors_with(case: Case, values: Tensor, device: str) -> Tensors:
    """The case's tensors with `values` (fp64, of the case's shape) as input."""
    tensors = make_tensors(case, device)
    tensors.input = in_layout(values.to(device=device, dtype=case.dtype), case.layout)
    return tensors


def noise(*shape: int) -> Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(2), dtype=torch.float64)


def first_is_outlier(shape: tuple[int, ...]) -> Tensor:
    values = noise(*shape)
    values[0, :, 0, 0] = 1e6
    return values


def one_sample_far_away(shape: tuple[int, ...]) -> Tensor:
    values = noise(*shape)
    values[-1] += 1e4
    return values


def own_mean_each_channel(shape: tuple[int, ...]) -> Tensor:
    """Means from -1e5 to 1e5: using the neighbouring channel's pivot or mean would lose all digits."""
    return noise(*shape) + torch.linspace(-1e5, 1e5, shape[1], dtype=torch.float64).view(1, -1, 1, 1)


HARD_DATA = {
    "1e4 +- 1e-2": lambda shape: 1e4 + 1e-2 * noise(*shape),
    "-1e4 +- 1e-2": lambda shape: -1e4 + 1e-2 * noise(*shape),
    "1e6 +- 1": lambda shape: 1e6 + noise(*shape),
    "rising from 0 to 1e4": lambda shape: torch.linspace(0, 1e4, prod(shape)).double().view(shape),
    "one sample at 1e4": one_sample_far_away,
    "own mean each channel": own_mean_each_channel,
}
SHAPES = ((64, 6, 28, 28), (8, 20, 56, 56), (4, 1030, 3, 3))
"""Few channels split over N and S; many rows of a channel; many channels."""


@pytest.mark.parametrize("layout", LAYOUTS)
@pytest.mark.parametrize("shape", SHAPES, ids=lambda shape: "x".join(map(str, shape)))
@pytest.mark.parametrize("data", HARD_DATA)
def test_huge_means_and_drifts_cost_no_accuracy(
    data: str, shape: tuple[int, ...], layout: str, device: str
) -> None:
    """The ordinary demands hold. On the first data, sums of squares err by 6e7, Welford's method by 7 %."""
    case = Case(shape, layout)
    assert_meets_demands(case, tensors_with(case, HARD_DATA[data](shape), device))


@pytest.mark.parametrize("layout", LAYOUTS)
@pytest.mark.parametrize("shape", SHAPES, ids=lambda shape: "x".join(map(str, shape)))
def test_first_element_a_million_sigmas_off(shape: tuple[int, ...], layout: str, device: str) -> None:
    """The pivot is the outlier, so the mean may be off by 2e-5 sigma, and the output by |w| times as much."""
    case = Case(shape, layout)
    looser = {name: demand + DEMANDED_MEAN_ADVERSARIAL for name, demand in DEMANDS.items()}
    assert_meets_demands(case, tensors_with(case, first_is_outlier(shape), device), looser)


@pytest.mark.parametrize("layout", LAYOUTS)
@pytest.mark.parametrize("mean", [5.0, -5.0])
@pytest.mark.parametrize(("dtype", "parameter_dtype"), DTYPES[2:], ids=lambda dtype: str(dtype)[6:])
def test_half_input_with_a_mean_of_fifty_sigmas(
    dtype: torch.dtype, parameter_dtype: torch.dtype, mean: float, layout: str, device: str
) -> None:
    """In half precision E[x^2] - E[x]^2 is negative here, and its root NaN."""
    case = Case((2, 64, 32, 32), layout, dtype, parameter_dtype)
    tensors = tensors_with(case, mean + 0.1 * noise(*case.shape), device)
    result = assert_meets_demands(case, tensors)
    assert result.output.isfinite().all()
    assert result.grad_input.isfinite().all()


@pytest.mark.parametrize("gradient", ["random", "ones"])
@pytest.mark.parametrize("dtype", HALF_DTYPES, ids=lambda dtype: str(dtype)[6:])
def test_large_half_channels_last_has_finite_accurate_gradients(
    dtype: torch.dtype, gradient: str, device: str
) -> None:
    """Half-precision sums over 802,816 values would overflow and give NaN in grad_input."""
    case = Case((16, 3, 224, 224), "channels_last", dtype)
    generator = torch.Generator().manual_seed(3)
    tensors = tensors_with(case, torch.rand(case.shape, generator=generator).double(), device)
    if gradient == "random":
        assert_meets_demands(case, tensors)
        return
    tensors.grad_output = torch.ones_like(tensors.input)
    ours, theirs = run_fused(case, tensors), run_torch(case, tensors)
    our_errors, their_errors = errors(case, tensors, ours), errors(case, tensors, theirs)
    for name, found in our_errors.items():
        # The demands on dw and db need independent gradients. A sum of n equal ones is only compared.
        assert found <= max(their_errors[name], beyond_rounding(name, dtype)), name
    assert ours.grad_input.isfinite().all()


CONSTANTS = [0.0, 0.1, -1.0, 12345.678, 30000.0, -3.3e7, 1e10]


@pytest.mark.needs_extension
@pytest.mark.parametrize("layout", LAYOUTS)
@pytest.mark.parametrize("value", CONSTANTS)
@pytest.mark.parametrize(("dtype", "parameter_dtype"), DTYPES, ids=lambda dtype: str(dtype)[6:])
def test_constant_channel_normalises_to_exactly_zero(
    dtype: torch.dtype, parameter_dtype: torch.dtype, value: float, layout: str, device: str
) -> None:
    """The output is the bias, bit for bit, even if the count is no power of two."""
    largest = torch.finfo(dtype).max
    value = max(-largest, min(value, largest))  # the largest float16 is 65504
    for shape in ((1, 1, 2, 1), (7, 3, 5, 5), (3, 2, 101, 103)):
        case = Case(shape, layout, dtype, parameter_dtype, activation="none")
        tensors = tensors_with(case, torch.full(shape, value, dtype=torch.float64), device)
        result = run_fused(case, tensors)
        expected = present(tensors.bias).to(dtype).view(1, -1, 1, 1).expand(shape)
        assert torch.equal(result.output, expected), shape
        assert result.grad_input.isfinite().all(), shape
        assert (present(result.grad_weight) == 0).all(), shape


@pytest.mark.needs_extension
def test_a_hundred_ones_of_one_row_normalise_to_zero(device: str) -> None:
    """100 * ones(1, 1, 2), the smallest constant batch of rank 3."""
    case = Case((1, 1, 2), weight=False, bias=False, buffers=False, activation="none")
    result = run_fused(case, tensors_with(case, torch.full((1, 1, 2), 100.0), device))
    assert torch.equal(result.output, torch.zeros_like(result.output))


@pytest.mark.needs_extension
@pytest.mark.parametrize("layout", LAYOUTS)
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=lambda dtype: str(dtype)[6:])
@pytest.mark.parametrize("magnitude", [1e30, -1e30, 1e25, 1e19])
def test_values_near_1e30_are_normalised_although_their_squares_overflow(
    magnitude: float, dtype: torch.dtype, layout: str, device: str
) -> None:
    """PyTorch returns zeros on the CPU and NaN on CUDA. The variance itself, 1e58, is infinite in fp32."""
    case = Case((8, 5, 6, 7), layout, dtype)
    tensors = tensors_with(case, magnitude * (1 + 0.1 * noise(*case.shape)), device)
    result = run_fused(case, tensors)
    if magnitude**2 * 0.01 > torch.finfo(torch.float32).max:
        assert (present(result.running_var) == INF).all()
    found = errors(case, tensors, result)
    for name in ("output", "grad_input", "grad_weight", "grad_bias", "running_mean"):
        assert found[name] <= DEMANDS[name], f"{name}: {found[name]:.2e}"
    assert result.grad_input.isfinite().all()


@pytest.mark.core
@pytest.mark.needs_extension
@pytest.mark.parametrize("mean", [1e6, -1e9])
@pytest.mark.parametrize("layout", LAYOUTS)
@pytest.mark.parametrize("shape", [(4, 3, 2, 2), (3, 5, 20, 20), (200, 7, 3, 3)], ids=str)
def test_the_fp64_variance_keeps_its_digits_beside_a_large_mean(
    shape: tuple[int, ...], layout: str, mean: float, device: str
) -> None:
    """Rounding means before they are merged would cost 3e5 units in the last place.

    The deviations are multiples of 2^-20, so mean + deviation and the variance are exact.
    """
    values = (noise(*shape) * 2**20).round() / 2**20
    case = Case(shape, layout, torch.float64, torch.float64, momentum=1.0, activation="none")
    result = run_fused(case, tensors_with(case, mean + values, device))
    exact = values.transpose(0, 1).flatten(1).var(1)
    error = ((present(result.running_var).cpu() - exact) / exact).abs().max()
    # A sum of n terms in vector lanes has at most n / 8 additions in sequence, and a few more roundings.
    assert error < (8 + values.numel() / shape[1] / 8) * 2.0**-53


@pytest.mark.core
@pytest.mark.parametrize("dtype", HALF_DTYPES, ids=lambda dtype: str(dtype)[6:])
def test_a_trend_along_the_batch_costs_half_types_no_accuracy(dtype: torch.dtype, device: str) -> None:
    """The first row is a bad pivot. Summing many equal values in one float gave errors of up to 161 units."""
    for shape in ((32, 1, 9, 13), (64, 3, 8, 8), (64, 2, 5, 13), (5, 2, 70, 70)):
        case = Case(shape, "contiguous", dtype)
        values = torch.linspace(-1000, 1000, prod(shape)).double().view(shape)
        assert_meets_demands(case, tensors_with(case, values, device))


@pytest.mark.core
@pytest.mark.needs_extension
@pytest.mark.parametrize("activation", [name for name in ACTIVATIONS if name not in (*KINKS, "none")])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64], ids=lambda dtype: str(dtype)[6:])
def test_slopes_of_huge_values_are_those_of_infinity(
    dtype: torch.dtype, activation: str, device: str
) -> None:
    """z ** 3 overflows where the slope is 0 or 1. A NaN there would spoil all of the channel's gradients."""
    case = Case((4, 2, 3, 3), dtype=dtype, parameter_dtype=dtype, training=False, activation=activation)
    tensors = make_tensors(case, device)
    for place, value in enumerate((-1e14, 1e14, -3e30, 3e30)):
        tensors.input[place, 0, 0, 0] = value
    result = run_fused(case, tensors)
    for name in ("grad_input", "grad_weight", "grad_bias"):
        assert getattr(result, name).isfinite().all(), name
    assert_meets_demands(case, tensors)


@pytest.mark.parametrize("activation", ["none", "relu", "sigmoid"])
@pytest.mark.parametrize("layout", LAYOUTS)
@pytest.mark.parametrize(
    ("weight", "spread", "eps"), [(INF, 1.0, 1e-5), (-INF, 1.0, 1e-5), (3e38, 1e-30, 1e-70)]
)
def test_an_infinite_scale_has_the_sign_of_the_deviation(
    weight: float, spread: float, eps: float, layout: str, activation: str, device: str
) -> None:
    """Compares z itself, because a finite result of the activation would hide the difference."""
    case = Case((4, 3, 5, 7), layout, activation=activation, eps=eps)
    tensors = tensors_with(case, spread * (noise(*case.shape) + 0.5), device)
    present(tensors.weight)[:] = weight
    x = tensors.input.double()
    z = torch.copysign(torch.full_like(x, INF), (x - x.mean((0, 2, 3), keepdim=True)) * weight)
    expected = {"none": z, "relu": z.relu(), "sigmoid": z.sigmoid()}[activation]
    assert torch.equal(run_fused(case, tensors).output.double(), expected)


@pytest.mark.parametrize("layout", LAYOUTS)
@pytest.mark.parametrize("value", [INF, -INF])
def test_an_infinite_gradient_reaches_the_parameters(value: float, layout: str, device: str) -> None:
    """inf * (x - mean) is infinite, but inf * x - inf * mean is NaN."""
    case = Case((4, 3, 5, 7), layout, activation="none")
    tensors = make_tensors(case, device)
    tensors.grad_output[1, 1, 2, 3] = value
    ours, theirs = run_fused(case, tensors), run_torch(case, tensors)
    for name in ("grad_weight", "grad_bias"):
        assert same_bits(classes(getattr(ours, name)), classes(getattr(theirs, name))), name


@pytest.mark.core
@pytest.mark.parametrize("layout", LAYOUTS)
def test_subnormal_bfloat16_values_are_kept(layout: str) -> None:
    """An instruction that rounds to bfloat16 flushes them to 0."""
    case = Case((4, 3, 5, 7), layout, torch.bfloat16, training=False, activation="none", eps=0.0)
    tensors = tensors_with(case, 1e-39 * noise(*case.shape), "cpu")
    for name, value in (("weight", 1.0), ("bias", 0.0), ("running_mean", 0.0), ("running_var", 1.0)):
        present(getattr(tensors, name))[:] = value
    assert torch.equal(run_fused(case, tensors).output, tensors.input)


def test_fp64_values_near_1e150_are_normalised(device: str) -> None:
    """Squares of 1e300 still fit in fp64, so nothing may pass through fp32."""
    case = Case((8, 5, 6, 7), "channels_last", torch.float64, torch.float64)
    assert_meets_demands(case, tensors_with(case, 1e150 * (1 + 0.1 * noise(*case.shape)), device))


@pytest.mark.parametrize("training", [True, False])
def test_tiny_values_are_governed_by_eps(training: bool, device: str) -> None:
    """The variance underflows. eps alone determines invstd, and nothing divides by zero."""
    case = Case((8, 5, 6, 7), training=training)
    assert_meets_demands(case, tensors_with(case, 1e-30 * noise(*case.shape), device))


def test_evaluation_with_eps_zero_is_allowed(device: str) -> None:
    case = Case((8, 5, 6, 7), training=False, eps=0.0)
    assert_meets_demands(case, make_tensors(case, device))


def classes(tensor: Tensor) -> Tensor:
    """Classifies each element: 0 finite, 1 NaN, 2 positive infinity, 3 negative infinity."""
    return tensor.isnan() * 1 + (tensor == INF) * 2 + (tensor == -INF) * 3


def spoilt_alike(name: str, mine: Tensor, other: Tensor) -> bool:
    """Checks that NaN, infinite and finite values are in the same places.

    For a channel with inf, PyTorch's running mean is inf on the CPU and for contiguous tensors on CUDA, but
    NaN for channels_last there. On CUDA either is accepted.
    """
    if name == "running_mean" and mine.is_cuda:
        return same_bits(mine.isfinite(), other.isfinite())
    return same_bits(classes(mine), classes(other))


POISONS = {"inf": [INF], "-inf": [-INF], "nan": [NAN], "inf and -inf": [INF, -INF]}


@pytest.mark.core
@pytest.mark.parametrize("activation", ["none", "relu"])
@pytest.mark.parametrize("training", [True, False], ids=["training", "evaluation"])
@pytest.mark.parametrize("poison", POISONS)
@pytest.mark.parametrize("dtype", [torch.float32, *HALF_DTYPES], ids=lambda dtype: str(dtype)[6:])
def test_non_finite_input_spoils_what_it_spoils_in_pytorch_and_no_more(
    dtype: torch.dtype, poison: str, training: bool, activation: str, device: str
) -> None:
    """NaN, inf and finite values are in the same places in all results; other channels are clean.

    In training one inf makes its channel NaN, running_mean inf (on CUDA: or NaN) and running_var NaN. The
    planted value is first, in the middle or last, to hit pivots, vector bodies and tails.
    """
    for layout, place in product(LAYOUTS, (0, 200, 398)):
        case = Case((1, 4, 20, 20), layout, dtype, training=training, activation=activation)
        tensors = make_tensors(case, device)
        clean = run_fused(case, tensors)
        for offset, value in enumerate(POISONS[poison]):
            tensors.input[0, 1, (place + offset) // 20, (place + offset) % 20] = value
        ours, theirs = run_fused(case, tensors), run_torch(case, tensors)
        for name in ("output", "grad_input", "grad_weight", "grad_bias", "running_mean", "running_var"):
            mine, other, before = (getattr(result, name) for result in (ours, theirs, clean))
            assert spoilt_alike(name, mine, other), (name, layout, place)
            channel_dim = 1 if mine.dim() > 1 else 0
            for channel in (0, 2, 3):
                untouched = before.select(channel_dim, channel)
                assert torch.equal(mine.select(channel_dim, channel), untouched), (name, layout, place)


@pytest.mark.core
@pytest.mark.needs_extension
@pytest.mark.parametrize("place", ["first sample", "last sample", "everywhere"])
@pytest.mark.parametrize("value", [NAN, INF, -INF])
def test_a_channel_of_nan_or_inf_leaves_what_is_still_finite(value: float, place: str, device: str) -> None:
    """The kernel stops reading a sum that is NaN, but not the gradient's sum, which stays finite.

    With many samples, NaN, inf and finite values are where PyTorch has them. The bias' gradient equals, bit
    for bit, that of clean input with the same grad_output.
    """
    rows = {"first sample": slice(0, 1), "last sample": slice(-1, None), "everywhere": slice(None)}[place]
    for layout, training in product(LAYOUTS, (True, False)):
        case = Case((9, 5, 6, 7), layout, training=training, activation="none")
        tensors = make_tensors(case, device)
        clean = run_fused(case, tensors)
        tensors.input[rows, 2] = value
        ours, theirs = run_fused(case, tensors), run_torch(case, tensors)
        assert torch.equal(present(ours.grad_bias), present(clean.grad_bias))
        for name in ("output", "grad_input", "grad_weight", "running_mean", "running_var"):
            mine, other = getattr(ours, name), getattr(theirs, name)
            assert spoilt_alike(name, mine, other), (name, layout, training)


@pytest.mark.parametrize("name", ["weight", "bias", "running_mean", "running_var"])
@pytest.mark.parametrize("value", [INF, -INF, NAN, -1.0])
def test_non_finite_parameters_and_statistics_act_as_in_pytorch(name: str, value: float, device: str) -> None:
    """An infinite running mean gives infinities, an infinite variance the bias, a negative one NaN.

    For an infinite weight PyTorch gives NaN, and the formula gives infinity. Either is accepted, also in the
    gradients that follow.
    """
    for training, activation, layout in product((True, False), ("none", "relu"), LAYOUTS):
        case = Case((2, 5, 3, 7), layout, training=training, activation=activation)
        tensors = make_tensors(case, device)
        getattr(tensors, name)[3] = value
        ours, theirs = run_fused(case, tensors), run_torch(case, tensors)
        for quantity in ("output", "grad_input", "grad_weight", "grad_bias", "running_mean", "running_var"):
            mine, other = (present(getattr(result, quantity)) for result in (ours, theirs))
            same = classes(mine) == classes(other)
            if name == "weight" and abs(value) == INF and mine.dim() > 1:
                same[:, 3] = True
                assert activation == "relu" or not mine[:, 3].isfinite().any(), quantity
            elif name == "weight" and abs(value) == INF:
                same[3] = True  # sums over values of either kind
            assert same.all(), (quantity, training, activation, layout)


@pytest.mark.core
def test_nan_passes_through_relu_and_its_gradient_too(device: str) -> None:
    """The mask is !(z <= 0), as PyTorch's: fmaxf(NaN, 0) would be 0, and z > 0 is false for NaN."""
    case = Case((2, 3, 4, 5), training=False)
    tensors = make_tensors(case, device)
    tensors.input[1, 2, 3, 4] = NAN
    result = run_fused(case, tensors)
    assert result.output[1, 2, 3, 4].isnan()
    assert result.output.isnan().sum() == 1
    tensors = make_tensors(case, device)
    present(tensors.bias)[1] = NAN
    result = run_fused(case, tensors)
    assert result.output[:, 1].isnan().all()
    assert (result.grad_input[:, 1] != 0).all()  # dy * w * invstd: the mask passes every gradient

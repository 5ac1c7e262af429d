"""Tests of the fp64 reference and its error measure, on which all other tests depend."""

from dataclasses import replace

import pytest
import torch
from torch import nn

from tests.cases import HALF_DTYPES, Case, Tensors, make_tensors, present, run_torch
from tests.reference import DEMANDS, error, errors, half_ulp, reference

DOUBLE = Case((5, 3, 4, 2), dtype=torch.float64, parameter_dtype=torch.float64)
TOLERANCE = 1e-13
"""500 roundings of fp64: both sides sum 40 numbers below 10 in different orders."""


def by_autograd(case: Case, tensors: Tensors) -> Tensors:
    """Gradients by autograd through primitive operations, without any batch norm kernel."""
    own = tensors.clone().require_grad()
    x = own.input.movedim(1, -1).flatten(0, -2)
    if case.training:
        mean, var = x.mean(0), x.var(0, correction=0)
    else:
        mean, var = present(own.running_mean), present(own.running_var)
    z = (x - mean) / (var + case.eps).sqrt() * present(own.weight) + present(own.bias)
    z = z.relu() if case.activation == "relu" else z
    z.backward(own.grad_output.movedim(1, -1).flatten(0, -2))
    return own


@pytest.mark.parametrize("training", [True, False])
@pytest.mark.parametrize("activation", ["none", "relu"])
def test_reference_gradients_are_those_of_autograd_on_primitives(training: bool, activation: str) -> None:
    case = replace(DOUBLE, training=training, activation=activation)
    tensors = make_tensors(case)
    truth, own = reference(case, tensors), by_autograd(case, tensors)
    for name, tensor in (("grad_input", own.input), ("grad_weight", own.weight), ("grad_bias", own.bias)):
        torch.testing.assert_close(
            getattr(truth, name), present(present(tensor).grad), rtol=0, atol=TOLERANCE, msg=name
        )


@pytest.mark.parametrize("momentum", [0.1, None, 1.0])
def test_reference_statistics_are_those_of_torch_in_fp64(momentum: float | None) -> None:
    case = replace(DOUBLE, momentum=momentum, activation="none")
    tensors = make_tensors(case)
    norm = nn.BatchNorm2d(3, momentum=momentum, dtype=torch.float64)
    norm.load_state_dict(
        {
            "weight": tensors.weight,
            "bias": tensors.bias,
            "running_mean": tensors.running_mean,
            "running_var": tensors.running_var,
            "num_batches_tracked": tensors.num_batches_tracked,
        }
    )
    output = norm(tensors.input)
    truth = reference(case, tensors)
    torch.testing.assert_close(truth.output, output.detach(), rtol=0, atol=TOLERANCE)
    torch.testing.assert_close(present(truth.running_mean), norm.running_mean, rtol=0, atol=TOLERANCE)
    torch.testing.assert_close(present(truth.running_var), norm.running_var, rtol=0, atol=TOLERANCE)


def test_reference_keeps_its_digits_where_the_mean_is_a_million_sigmas() -> None:
    """1e4 +- 1e-2 in exact rational numbers: two values, so mean and variance are known."""
    x = torch.tensor([1e4 - 2**-7, 1e4 + 2**-7]).double().repeat(50).view(100, 1)
    case = replace(DOUBLE, shape=(100, 1))
    tensors = make_tensors(case)
    tensors.input = x
    truth = reference(case, tensors)
    assert truth.mean.item() == 1e4
    assert truth.var.item() == 2.0**-14


@pytest.mark.parametrize("dtype", [torch.float32, torch.float16, torch.bfloat16])
def test_half_ulp_is_the_largest_error_of_rounding(dtype: torch.dtype) -> None:
    """Over nine decades, including subnormal fp16 numbers: never exceeded, and nearly reached."""
    values = torch.logspace(-7, 2, 40001, dtype=torch.float64)
    if dtype in HALF_DTYPES:
        values = values.float().double()  # through fp32, as torch does, it rounds twice
    used = (values.to(dtype).double() - values).abs() / half_ulp(values, dtype)
    assert used.max() <= 1
    assert used.max() > 0.99


@pytest.mark.parametrize(
    ("name", "fault"),
    [
        ("output", 5e-6),
        ("grad_input", 1e-5),
        ("grad_weight", 1e-4),
        ("grad_bias", 1e-4),
        ("running_mean", 1e-5),
        ("running_var", 1e-5),
    ],
)
def test_error_measure_sees_a_small_relative_fault_in_one_quantity(name: str, fault: float) -> None:
    case = Case((64, 6, 28, 28))
    tensors = make_tensors(case)
    result = run_torch(case, tensors)
    sound = errors(case, tensors, result)[name]
    getattr(result, name).mul_(1 + fault)
    assert errors(case, tensors, result)[name] > max(5e-7, 3 * sound)


def test_error_measure_counts_a_lone_nan_or_infinity_as_infinite() -> None:
    one = torch.ones(2, dtype=torch.float64)
    for bad in (float("nan"), float("inf")):
        assert error(torch.tensor([1.0, bad]), one, one) == float("inf")
        assert error(torch.tensor([1.0, bad]), torch.tensor([1.0, bad]).double(), one) == 0
    assert error(torch.tensor([1.0, float("-inf")]), torch.tensor([1, float("inf")]).double(), one) == float(
        "inf"
    )


def test_an_output_far_from_zero_is_judged_by_its_own_size() -> None:
    """A weight of 1e-3 keeps sigmoid near 1/2, whose last bits are larger than the demand on z."""
    case = Case((4, 16, 8, 8), activation="sigmoid", bias=False)
    tensors = make_tensors(case)
    present(tensors.weight).detach().fill_(1e-3)
    assert errors(case, tensors, run_torch(case, tensors))["output"] <= DEMANDS["output"]

"""Outputs, gradients and running statistics against the fp64 reference and PyTorch's own error."""

import pytest
import torch

from tests.cases import (
    DTYPES,
    SHAPES,
    Case,
    activation_grid,
    core_grid,
    layouts,
    make_tensors,
    option_grid,
    shape_grid,
)
from tests.ops.test_operator import forward, forward_arguments
from tests.reference import DEMANDED_INVSTD, DEMANDED_MEAN, assert_meets_demands, error, precision, reference


def check(case: Case, device: str, seed: int = 0) -> None:
    assert_meets_demands(case, make_tensors(case, device, seed))


@pytest.mark.parametrize("case", list(shape_grid()), ids=str)
def test_every_shape_layout_and_dtype_meets_the_demands(case: Case, device: str) -> None:
    check(case, device)


@pytest.mark.parametrize("case", list(option_grid()), ids=str)
def test_every_combination_of_options_meets_the_demands(case: Case, device: str) -> None:
    check(case, device)


@pytest.mark.parametrize("case", list(activation_grid()), ids=str)
def test_every_activation_with_and_without_a_residual_meets_the_demands(case: Case, device: str) -> None:
    check(case, device)


@pytest.mark.core
@pytest.mark.parametrize("case", list(core_grid()), ids=str)
def test_core_cases_meet_the_demands(case: Case, device: str) -> None:
    check(case, device, seed=1)


@pytest.mark.parametrize("activation", ["none", "relu"])
@pytest.mark.parametrize(("dtype", "parameter_dtype"), [DTYPES[0], DTYPES[2]], ids=["float32", "bfloat16"])
def test_large_eps_enters_output_and_gradient(
    dtype: torch.dtype, parameter_dtype: torch.dtype, activation: str, device: str
) -> None:
    """An eps of the variance's size shows if eps is dropped or applied twice anywhere."""
    check(Case((8, 5, 6, 7), "channels_last", dtype, parameter_dtype, activation=activation, eps=9.0), device)
    check(Case((8, 5, 6, 7), "contiguous", dtype, parameter_dtype, activation=activation, eps=9.0), device)


@pytest.mark.needs_extension
@pytest.mark.parametrize("training", [True, False], ids=["training", "evaluation"])
@pytest.mark.parametrize(("dtype", "parameter_dtype"), DTYPES, ids=lambda dtype: str(dtype)[6:])
@pytest.mark.parametrize("shape", SHAPES, ids=lambda shape: "x".join(map(str, shape)))
def test_statistics_are_mean_in_two_parts_and_invstd(
    shape: tuple[int, ...], dtype: torch.dtype, parameter_dtype: torch.dtype, training: bool, device: str
) -> None:
    """Read from the forward operator: (3, C) rows mean_hi, mean_lo, 1/sqrt(var + eps), never a variance."""
    for layout in layouts(shape):
        case = Case(shape, layout, dtype, parameter_dtype, training=training, activation="none")
        tensors = make_tensors(case, device)
        truth = reference(case, tensors)
        statistics = forward(forward_arguments(case, device))[1]
        assert statistics.shape == (3, case.channels)
        assert statistics.dtype == (torch.float64 if dtype is torch.float64 else torch.float32)
        mean = statistics[0].double() + statistics[1].double()
        mean_error = error(mean, truth.mean, truth.scales["mean"])
        assert mean_error <= DEMANDED_MEAN * precision(dtype), layout
        invstd_error = error(statistics[2].double(), truth.invstd, truth.invstd)
        assert invstd_error <= DEMANDED_INVSTD * precision(dtype), layout

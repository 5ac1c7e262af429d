"""The operators that make up forward and backward when several processes share their statistics."""

from itertools import product
from types import ModuleType
from typing import Any

import pytest
import torch
from torch import Tensor

from fused_bn.sync import fallback_pieces, pieces
from tests.cases import HALF_DTYPES, Case, layouts, present, same_bits
from tests.ops.test_operator import (
    SMOOTH,
    WITH_MASK,
    backward,
    backward_arguments,
    forward,
    forward_arguments,
)

pytestmark = pytest.mark.needs_extension

OPERATORS = torch.ops.fused_bn

CASES = [
    Case(shape, layout, dtype, parameter_dtype, activation=activation, residual=residual)
    for shape in ((6, 17, 4, 5), (9, 7), (3, 5, 2, 3, 2))
    for layout in layouts(shape)
    for dtype, parameter_dtype in ((torch.float32, torch.float32), (torch.bfloat16, torch.float32))
    for activation, residual in (("none", False), ("relu", True), ("prelu", True), ("silu", True))
]

MERGE = ("input", "moments", "running_mean", "running_var", "num_batches_tracked", "momentum", "eps")
SUMS = (
    *("grad_output", "input", "residual", "weight", "bias", "negative_slope", "statistics", "mask"),
    *("activation", "activation_param", "output_mask"),
)
ELEMENTWISE = (*SUMS[:8], "sums", "count", *SUMS[8:])


def merge_arguments(case: Case, device: str, **changes: Any) -> dict[str, Any]:
    """The arguments of batch_norm_merge. The moments are those of one process."""
    arguments = forward_arguments(case, device)
    arguments["moments"] = OPERATORS.batch_norm_moments(arguments["input"])[None]
    return {name: arguments[name] for name in MERGE} | changes


def merge(arguments: dict[str, Any]) -> list[Tensor]:
    return list(OPERATORS.batch_norm_merge(*(arguments[name] for name in MERGE)))


def elementwise_arguments(case: Case, device: str, **changes: Any) -> dict[str, Any]:
    arguments = backward_arguments(case, device, output_mask=[True] * 3)
    sums, *_ = OPERATORS.batch_norm_backward_sums(*(arguments[name] for name in SUMS))
    count = torch.tensor(float(arguments["input"].numel() // case.channels), dtype=torch.float64)
    arguments |= {"sums": sums, "count": count.to(device), "output_mask": [True, case.residual]}
    return {name: arguments[name] for name in ELEMENTWISE} | changes


def elementwise(arguments: dict[str, Any]) -> list[Tensor]:
    return list(OPERATORS.batch_norm_backward_elementwise(*(arguments[name] for name in ELEMENTWISE)))


@pytest.mark.core
@pytest.mark.parametrize("case", CASES, ids=str)
def test_the_pieces_of_one_process_are_the_whole(case: Case, device: str) -> None:
    """Statistics agree to a rounding. Gradients from the same statistics agree bit for bit.

    A resident CUDA kernel adds in another order than a reduce pass alone. Each order is within
    2e-6 * sqrt(n) * rms of the sum, here 2e-6 * 11 * 4, and gradients differ by less.
    """
    whole, parts = forward_arguments(case, device), merge_arguments(case, device)
    expected = forward(whole)[1]
    statistics, count = merge(parts)
    assert count.item() == case.shape[0] * torch.Size(case.shape[2:]).numel()
    # One side divides the sum of squares, the other multiplies it by the reciprocal.
    torch.testing.assert_close(statistics[0] + statistics[1], expected[0] + expected[1], rtol=1e-6, atol=0)
    torch.testing.assert_close(statistics[2], expected[2], rtol=2e-7, atol=0)
    for name in ("running_mean", "running_var"):
        torch.testing.assert_close(parts[name], whole[name], rtol=4e-7, atol=0)
    assert parts["num_batches_tracked"] == whole["num_batches_tracked"]
    grad_input, grad_residual, *of_parameters = backward(backward_arguments(case, device))
    arguments = backward_arguments(case, device, output_mask=[True] * 3)
    _, *found = OPERATORS.batch_norm_backward_sums(*(arguments[name] for name in SUMS))
    assert len(of_parameters) == (3 if case.activation == "prelu" else 2)
    gradients = [*found[: len(of_parameters)], *elementwise(elementwise_arguments(case, device))]
    for mine, other in zip(gradients, [*of_parameters, grad_input, grad_residual], strict=True):
        if device == "cuda":
            rounding = 2.0**-7 if mine.dtype in HALF_DTYPES else 1e-5
            torch.testing.assert_close(mine, other, rtol=rounding, atol=2e-4)
        else:
            assert same_bits(mine, other)


@pytest.mark.parametrize("case", CASES[::2], ids=str)
def test_opcheck(case: Case, device: str) -> None:
    """Schemas, fake kernels, dispatch with dynamic shapes."""
    merged, given = merge_arguments(case, device), elementwise_arguments(case, device)
    for operator, arguments in (
        (OPERATORS.batch_norm_moments, (merged["input"],)),
        (OPERATORS.batch_norm_merge, tuple(merged[name] for name in MERGE)),
        (OPERATORS.batch_norm_backward_sums, (*(given[name] for name in SUMS[:-1]), [True] * 3)),
        (OPERATORS.batch_norm_backward_elementwise, tuple(given[name] for name in ELEMENTWISE)),
    ):
        torch.library.opcheck(operator.default, arguments)


@pytest.mark.parametrize("mask", list(product((True, False), repeat=2)), ids=str)
@pytest.mark.parametrize("activation", ["none", WITH_MASK[0], SMOOTH[0]])
def test_unwanted_gradients_are_empty(mask: tuple[bool, bool], activation: str, device: str) -> None:
    case = Case((3, 5, 4, 2), activation=activation, residual=True)
    arguments = elementwise_arguments(case, device, output_mask=[True, True])
    everything = elementwise(arguments)
    asked = elementwise(arguments | {"output_mask": list(mask)})
    _, *of_parameters = OPERATORS.batch_norm_backward_sums(
        *(arguments[name] for name in SUMS[:-1]), [*mask, False]
    )
    for wanted, full, found, parameter in zip(mask, everything, asked, of_parameters[:2], strict=True):
        assert torch.equal(found, full) if wanted else found.shape == (0,)
        assert parameter.shape == ((5,) if wanted else (0,))


def test_a_process_with_an_empty_batch(device: str) -> None:
    """Its moments are zero and do not change the others'. It gets the statistics of the others."""
    x = torch.empty(0, 3, 4, 4, device=device)
    none = OPERATORS.batch_norm_moments(x)
    assert torch.equal(none, torch.zeros(7, dtype=torch.float64, device=device))
    other = OPERATORS.batch_norm_moments(torch.randn(2, 3, 5, 5, device=device))
    alone, count = OPERATORS.batch_norm_merge(x, other[None], None, None, None, 0.1, 1e-5)
    both, same = OPERATORS.batch_norm_merge(x, torch.stack([none, other]), None, None, None, 0.1, 1e-5)
    assert torch.equal(alone, both)
    assert count == same == 50
    sums, grad_weight, *_ = OPERATORS.batch_norm_backward_sums(
        x, x, None, None, None, None, both, None, "relu", 0.0, [True] * 3
    )
    assert not sums.any()
    assert torch.equal(grad_weight, torch.zeros(3, device=device))
    grad_input, _ = OPERATORS.batch_norm_backward_elementwise(
        x, x, None, None, None, None, both, None, sums, count, "relu", 0.0, [True, False]
    )
    assert grad_input.shape == x.shape


WRONG_MERGE: dict[str, dict[str, Any]] = {
    "moments of one dimension": {"moments": torch.zeros(7, dtype=torch.float64)},
    "moments of other channels": {"moments": torch.zeros(2, 9, dtype=torch.float64)},
    "moments in float": {"moments": torch.zeros(2, 7)},
    "moments on meta": {"moments": torch.zeros(2, 7, dtype=torch.float64, device="meta")},
    "eps 0": {"eps": 0.0},
    "running_mean too short": {"running_mean": torch.ones(2)},
    "running_var missing": {"running_var": None},
    "counter in float": {"num_batches_tracked": torch.ones(())},
    "integer input": {"input": torch.ones(2, 3, 4, 4, dtype=torch.int32)},
    "running_mean whose elements share memory": {"running_mean": torch.full((1,), 0.5).expand(3)},
}


@pytest.mark.parametrize("name", WRONG_MERGE)
def test_merge_refuses_wrong_arguments_and_changes_nothing(name: str) -> None:
    arguments = merge_arguments(Case((2, 3, 4, 4)), "cpu")
    changed = arguments | WRONG_MERGE[name]
    before = {each: present(arguments[each]).clone() for each in MERGE[2:5]}
    with pytest.raises((RuntimeError, ValueError, NotImplementedError)):
        merge(changed)
    assert all(torch.equal(value, arguments[each]) for each, value in before.items())


WRONG_ELEMENTWISE: dict[str, dict[str, Any]] = {
    "sums too long": {"sums": torch.zeros(7, dtype=torch.float64)},
    "sums of two dimensions": {"sums": torch.zeros(2, 3, dtype=torch.float64)},
    "sums in float": {"sums": torch.zeros(6)},
    "sums on meta": {"sums": torch.zeros(6, dtype=torch.float64, device="meta")},
    "count of one dimension": {"count": torch.ones(1, dtype=torch.float64)},
    "count in int": {"count": torch.tensor(3)},
    "grad_output of another shape": {"grad_output": torch.ones(2, 3, 4, 3)},
    "statistics in double": {"statistics": torch.ones(3, 3).double()},
    "unknown activation": {"activation": "swish"},
}


@pytest.mark.parametrize("name", WRONG_ELEMENTWISE)
def test_backward_refuses_wrong_arguments(name: str) -> None:
    arguments = elementwise_arguments(Case((2, 3, 4, 4)), "cpu")
    with pytest.raises((RuntimeError, ValueError)):
        elementwise(arguments | WRONG_ELEMENTWISE[name])


def moments(arguments: dict[str, Any]) -> Tensor:
    return OPERATORS.batch_norm_moments(arguments["input"])


def sums(arguments: dict[str, Any]) -> list[Tensor]:
    return list(OPERATORS.batch_norm_backward_sums(*(arguments[name] for name in SUMS[:-1]), [True] * 3))


FREEABLE = [
    (moments, merge_arguments, "input"),
    *((merge, merge_arguments, name) for name in MERGE[1:5]),
    *((sums, elementwise_arguments, name) for name in SUMS[:8]),
    *((elementwise, elementwise_arguments, name) for name in ELEMENTWISE[:10]),
]


@pytest.mark.needs_extension
@pytest.mark.parametrize(
    ("operator", "make", "name"), FREEABLE, ids=[f"{f.__name__}-{name}" for f, _, name in FREEABLE]
)
def test_a_tensor_without_memory_is_refused(operator: Any, make: Any, name: str, device: str) -> None:
    """The same checks as in the whole operators. Nothing is ignored, and nothing is written."""
    activation = {"residual": "silu", "negative_slope": "prelu"}.get(name, "relu")
    arguments = make(Case((2, 3, 4, 4), activation=activation, residual=name in ("residual", "mask")), device)
    before = {each: arguments[each].clone() for each in MERGE[2:5] if each in arguments and each != name}
    arguments[name].untyped_storage().resize_(0)
    with pytest.raises(RuntimeError, match="its data is not allocated yet"):
        operator(arguments)
    assert all(torch.equal(arguments[each], value) for each, value in before.items())


@pytest.mark.parametrize("pieces", [pieces, fallback_pieces], ids=["kernels", "fallback"])
def test_merge_of_nothing_and_of_infinities(pieces: ModuleType) -> None:
    """If all batches are empty, running statistics stay. One infinite value makes an infinite mean."""
    x = torch.randn(4, 3)
    mean, variance, counter = torch.zeros(3), torch.ones(3), torch.tensor(2)
    empty = pieces.moments(x[:0])
    pieces.merge(x, torch.stack([empty, empty]), mean, variance, counter, 0.5, 1e-5)
    assert counter == 3
    assert (mean == 0).all()
    assert (variance == 1).all()
    infinite = x.clone()
    infinite[0, 0] = float("inf")
    for order in ((infinite, x), (x, infinite)):
        moments = torch.stack([pieces.moments(each) for each in order])
        statistics, _ = pieces.merge(x, moments, None, None, None, 0.5, 1e-5)
        assert statistics[0, 0] == float("inf")
        assert statistics[:, 1:].isfinite().all()
    with pytest.raises(ValueError, match="eps must be positive"):
        pieces.merge(x, torch.stack([empty, empty]), mean, variance, counter, 0.5, 0.0)
    assert counter == 3


@pytest.mark.needs_extension
def test_merge_without_channels_counts_the_values(device: str) -> None:
    """The count is stored once, separate from the first channel."""
    moments = torch.tensor([[20.0], [4.0]], dtype=torch.float64, device=device)
    x = torch.empty(4, 0, 5, device=device)
    statistics, count = torch.ops.fused_bn.batch_norm_merge(x, moments, None, None, None, 0.1, 1e-5)
    assert statistics.shape == (3, 0)
    assert count == 24


def test_merge_counts_as_a_write_of_the_buffers(device: str) -> None:
    """Autograd notices the writes. Inference tensors are refused before anything is written."""
    arguments = merge_arguments(Case((2, 3, 4, 4)), device)
    names = MERGE[2:5]
    before = [arguments[name]._version for name in names]
    merge(arguments)
    assert all(arguments[name]._version > version for name, version in zip(names, before, strict=True))
    with torch.inference_mode():
        inference = torch.full((3,), 2.0, device=device)
    kept = arguments["running_mean"].clone()
    with pytest.raises(RuntimeError, match="Inplace update to inference tensor"):
        merge(arguments | {"running_var": inference})
    assert torch.equal(arguments["running_mean"], kept)

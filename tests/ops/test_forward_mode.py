"""Forward-mode derivatives: torch.func.jvp, jacfwd and dual numbers, in training and evaluation."""

import copy
from collections.abc import Callable
from dataclasses import replace
from itertools import product
from typing import Any

import pytest
import torch
from torch import Tensor
from torch.autograd import forward_ad
from torch.func import functional_call, jacfwd, jvp

import fused_bn
from fused_bn._activations import ACTIVATIONS, ActivationName
from tests.cases import Case, Tensors, activate, layouts, make_tensors, present, same_bits
from tests.modules.test_module import OUTPUT_TOLERANCE, assert_same_state
from tests.ops.test_autograd import apply, leaves, smooth_tensors
from tests.ops.test_operator import backward, backward_arguments, forward, forward_arguments

CASES = [
    Case(shape, layout, torch.float64, torch.float64, training=training, activation=activation)
    for shape in ((3, 3, 2, 2), (5, 2))
    for layout in layouts(shape)
    for training, activation in product((True, False), ("none", "relu"))
]
CASES += [replace(CASES[0], weight=False), replace(CASES[0], bias=False), replace(CASES[0], buffers=False)]
CASES += [
    replace(CASES[0], activation=activation, residual=residual)
    for activation, residual in product(ACTIVATIONS, (True, False))
    if residual or activation not in ("none", "relu")
]

ROUNDINGS = 1e-13
"""For fp64 values near 1: about 1e3 roundings of 2^-53. A missing derivative would be off by about 1."""


@pytest.mark.parametrize("case", CASES, ids=str)
def test_dual_numbers_agree_with_finite_differences(case: Case) -> None:
    """gradcheck's own tolerance, as for the gradients. It makes dual numbers of every argument in turn."""
    tensors, given = smooth_tensors(case)
    assert torch.autograd.gradcheck(
        lambda *given: apply(case, tensors, *given), given, check_forward_ad=True, check_backward_ad=False
    )


def test_forward_over_reverse_agrees_with_finite_differences() -> None:
    """The derivative of the gradient along a direction, as in a Hessian times a vector."""
    for case in (*CASES[:4], *CASES[-12:]):
        tensors, given = smooth_tensors(case)
        assert torch.autograd.gradgradcheck(
            lambda *given, case=case, tensors=tensors: apply(case, tensors, *given),
            given,
            check_fwd_over_rev=True,
            check_undefined_grad=False,
            check_rev_over_rev=False,
        )


@pytest.mark.parametrize("needs_grad", [True, False], ids=["requires_grad", "without"])
@pytest.mark.parametrize("case", CASES, ids=str)
def test_make_dual_gives_the_tangent_of_nn_batchnorm(case: Case, needs_grad: bool) -> None:
    ours, theirs = make_tensors(case), make_tensors(case)
    tangents = [torch.randn_like(leaf) for leaf in leaves(ours)]

    def tangent(tensors: Tensors, function: Callable[..., Tensor]) -> tuple[Tensor, Tensor]:
        given = [leaf.requires_grad_(needs_grad) for leaf in leaves(tensors)]
        with forward_ad.dual_level():
            duals = [forward_ad.make_dual(leaf, t) for leaf, t in zip(given, tangents, strict=True)]
            output, found = forward_ad.unpack_dual(function(*duals))
        assert found is not None
        assert output.requires_grad is needs_grad
        return output, found

    def reference(*given: Tensor) -> Tensor:
        rest = iter(given)
        has = (True, case.residual, case.weight, case.bias)
        x, residual, weight, bias = (next(rest) if each else None for each in has)
        arguments = (present(x), theirs.running_mean, theirs.running_var, weight, bias, case.training)
        z = torch.nn.functional.batch_norm(*arguments, 0.1, case.eps)
        return activate(case, z if residual is None else z + residual, theirs.negative_slope)

    found = tangent(ours, lambda *given: apply(case, ours, *given))
    for mine, other in zip(found, tangent(theirs, reference), strict=True):
        torch.testing.assert_close(mine, other, rtol=ROUNDINGS, atol=ROUNDINGS)
    for name in ("running_mean", "running_var"):
        assert same_bits(getattr(ours, name), getattr(theirs, name))


def with_tangent(function: Callable[..., Any], primal: Any, tangent: Any) -> tuple[Tensor, Tensor]:
    output, found, *_ = jvp(function, (primal,), (tangent,))
    return output, found


@pytest.mark.needs_extension
@pytest.mark.parametrize("momentum", [0.1, None])
@pytest.mark.parametrize("training", [True, False], ids=["training", "evaluation"])
def test_jvp_of_a_module_updates_the_buffers_once(training: bool, momentum: float | None) -> None:
    """As in calls without a derivative. nn.BatchNorm2d itself refuses to count inside torch.func.jvp."""
    torch.manual_seed(0)
    ours = fused_bn.BatchNorm2d(3, momentum=momentum, activation="relu").train(training)
    copied = copy.deepcopy(ours)
    x, t = torch.randn(4, 3, 5, 5), torch.randn(4, 3, 5, 5)
    for calls in (1, 2):
        y, dy = with_tangent(ours, x, t)
        torch.testing.assert_close(y, copied(x), rtol=0, atol=2 * OUTPUT_TOLERANCE)
        assert dy.abs().max() > 0.1
        assert ours.num_batches_tracked == (calls if training else 0)
        assert_same_state(ours, copied, OUTPUT_TOLERANCE)


@pytest.mark.needs_extension
def test_jvp_through_the_parameters() -> None:
    norm = fused_bn.BatchNorm2d(3, activation="relu").double()
    x = torch.randn(4, 3, 5, 5, dtype=torch.float64)
    parameters = {name: value.detach() for name, value in norm.named_parameters()}
    tangents = {name: torch.randn_like(value) for name, value in parameters.items()}
    y, dy = with_tangent(lambda given: functional_call(norm, given, (x,)), parameters, tangents)
    xhat = (x - x.mean((0, 2, 3), keepdim=True)) * (
        x.var((0, 2, 3), correction=0, keepdim=True) + 1e-5
    ).rsqrt()
    expected = (xhat * tangents["weight"].view(-1, 1, 1) + tangents["bias"].view(-1, 1, 1)) * (y > 0)
    torch.testing.assert_close(dy, expected, rtol=ROUNDINGS, atol=ROUNDINGS)


@pytest.mark.needs_extension
@pytest.mark.parametrize("activation", ["none", "relu"])
@pytest.mark.parametrize("training", [True, False], ids=["training", "evaluation"])
def test_jacfwd_is_the_jacobian_of_reverse_mode(training: bool, activation: ActivationName) -> None:
    norm = fused_bn.BatchNorm2d(2, activation=activation).double().train(training)
    x = torch.randn(3, 2, 2, 2, dtype=torch.float64)
    expected = torch.autograd.functional.jacobian(norm, x)
    torch.testing.assert_close(jacfwd(norm)(x), expected, rtol=ROUNDINGS, atol=ROUNDINGS)
    assert expected.abs().max() > 0.1


@pytest.mark.needs_extension
def test_the_backward_operator_has_a_tangent_too() -> None:
    """The raw operator with given statistics: the derivative along grad_output, in which it is linear."""
    for training, activation, residual in product(
        (True, False), ("none", "relu", "prelu", "silu"), (True, False)
    ):
        case = Case((4, 3, 2, 5), training=training, activation=activation, residual=residual)
        arguments = backward_arguments(case, output_mask=[True] * 5)
        direction = torch.randn_like(arguments["grad_output"])
        expected = backward(arguments | {"grad_output": direction})
        with forward_ad.dual_level():
            dual = forward_ad.make_dual(arguments["grad_output"], direction)
            found = [forward_ad.unpack_dual(g) for g in backward(arguments | {"grad_output": dual})]
        for (primal, tangent), value, along in zip(found, backward(arguments), expected, strict=True):
            # fp32 sums over 40 values in different orders
            torch.testing.assert_close(primal, value, rtol=1e-5, atol=1e-5)
            torch.testing.assert_close(present(tangent), along, rtol=1e-5, atol=1e-5)


@pytest.mark.needs_extension
def test_the_raw_forward_operator_refuses_duals() -> None:
    """An error, so that the tangent is not lost."""
    arguments = forward_arguments(Case((4, 3, 2, 5)))
    with forward_ad.dual_level():
        arguments["input"] = forward_ad.make_dual(arguments["input"], torch.ones(4, 3, 2, 5))
        with pytest.raises(NotImplementedError, match="batch_norm_forward has no forward-mode derivative"):
            forward(arguments)


@pytest.mark.needs_extension
def test_refused_duals_change_nothing() -> None:
    norm = fused_bn.BatchNorm2d(3)
    x = torch.randn(2, 4, 5, 5)
    with pytest.raises(RuntimeError, match="running_mean should contain 4 elements not 3"):
        jvp(norm, (x,), (x,))
    assert norm.num_batches_tracked == 0
    assert torch.equal(present(norm.running_mean), torch.zeros(3))

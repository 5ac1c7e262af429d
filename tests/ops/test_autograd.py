"""Gradients by autograd: gradcheck, partial requires_grad, odd strides, kept graphs, memory."""

from collections.abc import Callable
from dataclasses import replace
from itertools import product
from typing import Any

import pytest
import torch
from torch import Tensor, nn

import fused_bn
from fused_bn._activations import ACTIVATIONS, ActivationName
from tests import reference
from tests.cases import (
    HAS_EXTENSION,
    Case,
    Tensors,
    call_fused,
    in_layout,
    layouts,
    make_tensors,
    present,
    run_fused,
    same_bits,
)
from tests.reference import beyond_rounding

LAYOUTS = ["contiguous", "channels_last"]


DIFFERENTIABLE = ("input", "residual", "weight", "bias")


def leaves(tensors: Tensors) -> list[Tensor]:
    """The tensors that gradients are asked for, in the order of `apply`'s arguments."""
    found = [getattr(tensors, name) for name in DIFFERENTIABLE]
    return [tensor for tensor in found if tensor is not None]


def apply(case: Case, tensors: Tensors, *differentiable: Tensor) -> Tensor:
    """Calls the function on `tensors`, with its `leaves` replaced by `differentiable`."""
    given = iter(differentiable)
    own = replace(
        tensors,
        num_batches_tracked=None,
        **{name: next(given) for name in DIFFERENTIABLE if getattr(tensors, name) is not None},
    )
    return call_fused(case, own)


GRADCHECK_CASES = [
    Case(
        shape,
        layout,
        torch.float64,
        torch.float64,
        weight=weight,
        bias=bias,
        training=training,
        activation=activation,
    )
    for shape in ((3, 3, 2, 2), (4, 2), (2, 2, 3), (2, 2, 2, 1, 2))
    for layout in layouts(shape)
    for training, activation in product((True, False), ("none", "relu"))
    for weight, bias in ((True, True), (True, False), (False, True), (False, False))
    if (weight and bias) or shape == (3, 3, 2, 2)
]
OPTIONS: tuple[dict[str, Any], ...] = ({}, {"training": False}, {"weight": False}, {"bias": False})
GRADCHECK_CASES += [
    Case(
        (3, 3, 2, 2),
        layout,
        torch.float64,
        torch.float64,
        activation=activation,
        residual=residual,
        **options,
    )
    for activation, residual in product(ACTIVATIONS, (True, False))
    for layout in LAYOUTS[: 1 + residual]
    for options in OPTIONS
    if residual or activation not in ("none", "relu")
]


KINKS = {
    "elu": (0.0,),
    "hardswish": (-3.0, 3.0),
    "hardsigmoid": (-3.0, 3.0),
    "selu": (0.0,),
    **reference.KINKS,
}


def smooth_tensors(case: Case) -> tuple[Tensors, list[Tensor]]:
    """Tensors without values within 1e-3 of a kink, so that differences of 1e-6 stay on one side."""
    for seed in range(100):
        tensors = make_tensors(case, seed=seed)
        z = reference.reference(case, tensors).z
        if all((z - kink).abs().min() > 1e-3 for kink in KINKS.get(case.activation, ())):
            tensors.require_grad()
            return tensors, leaves(tensors)
    raise AssertionError("no seed gives values away from the kinks")


@pytest.mark.parametrize("case", GRADCHECK_CASES, ids=str)
def test_gradients_agree_with_finite_differences(case: Case) -> None:
    """gradcheck's default tolerance (1e-5 absolute, 1e-3 relative) suits central differences of 1e-6."""
    tensors, differentiable = smooth_tensors(case)
    assert torch.autograd.gradcheck(lambda *given: apply(case, tensors, *given), differentiable)


@pytest.mark.parametrize("case", GRADCHECK_CASES, ids=str)
def test_double_backward_agrees_with_finite_differences(case: Case) -> None:
    if not HAS_EXTENSION and case.bias and not case.weight:
        pytest.skip("the fallback is PyTorch, whose double backward drops the bias where there is no weight")
    tensors, differentiable = smooth_tensors(case)
    assert torch.autograd.gradgradcheck(lambda *given: apply(case, tensors, *given), differentiable)


@pytest.mark.parametrize("activation", ["none", "relu"])
@pytest.mark.parametrize("layout", LAYOUTS)
def test_gradient_penalty_has_the_gradients_of_nn_batchnorm(layout: str, activation: str) -> None:
    """A loss on the gradient's norm, in fp64, covers both second-order paths. 1e-10 allows 1e3 roundings."""
    case = Case((5, 3, 4, 2), layout, torch.float64, torch.float64, activation=activation)
    tensors, _ = smooth_tensors(case)

    def penalty_gradients(function: Callable[[Tensor, Tensor, Tensor], Tensor]) -> tuple[Tensor, ...]:
        inputs = (tensors.input, present(tensors.weight), present(tensors.bias))
        first = torch.autograd.grad((function(*inputs) ** 3).sum(), inputs, create_graph=True)
        return torch.autograd.grad(sum((g.square().sum() for g in first), torch.zeros(())), inputs)

    def theirs(input: Tensor, weight: Tensor, bias: Tensor) -> Tensor:
        output = torch.nn.functional.batch_norm(input, None, None, weight, bias, True)
        return output.relu() if activation == "relu" else output

    found = penalty_gradients(lambda *given: apply(case, tensors, *given))
    for mine, other in zip(found, penalty_gradients(theirs), strict=True):
        torch.testing.assert_close(mine, other, rtol=1e-10, atol=1e-10 * float(other.abs().max()))


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_double_backward_runs_in_the_dtypes_of_training(dtype: torch.dtype, device: str) -> None:
    """Near fp64's results: within 1e-4 (1e3 roundings of fp32) and 2^-4 (8 ulp of bf16)."""
    case = Case((6, 5, 4, 3), dtype=torch.float64, parameter_dtype=torch.float64)
    tensors, _ = smooth_tensors(case)

    def second(kind: torch.dtype) -> Tensor:
        own = tensors.clone()
        own.input, own.grad_output = own.input.to(device, kind), own.grad_output.to(device, kind)
        parameters = torch.float64 if kind is torch.float64 else torch.float32
        for name in ("weight", "bias", "running_mean", "running_var"):
            setattr(own, name, getattr(own, name).to(device, parameters))
        own.require_grad()
        output = apply(case, own, own.input, present(own.weight), present(own.bias))
        (first,) = torch.autograd.grad(output, own.input, own.grad_output, create_graph=True)
        (found,) = torch.autograd.grad(first.square().sum(), own.input)
        return found.double().cpu()

    truth = second(torch.float64)
    bound = {torch.float32: 1e-4, torch.bfloat16: 2.0**-4}[dtype] * truth.abs().max()
    assert (second(dtype) - truth).abs().max() <= bound


@pytest.mark.needs_extension
@pytest.mark.parametrize("activation", ["none", "relu"])
@pytest.mark.parametrize("training", [True, False], ids=["training", "evaluation"])
@pytest.mark.parametrize("mean", [0.0, 1e3, 1e5])
def test_double_backward_is_no_further_from_the_truth_than_pytorchs(
    mean: float, training: bool, activation: str
) -> None:
    """For a deviation of 1: largest errors relative to the largest value, or within `beyond_rounding`.

    At a mean of 1e5, a mean recomputed in fp32 is off by about 1e-3, and so are all later results.
    """
    generator = torch.Generator().manual_seed(0)
    x, grad_output, direction = (torch.randn(8, 5, 6, 7, generator=generator) for _ in range(3))
    weight, bias = torch.rand(5, generator=generator) + 0.5, torch.randn(5, generator=generator)
    tensors = (x + mean, weight, bias, grad_output)
    running_mean, running_var = torch.full((5,), mean + 0.25), torch.rand(5, generator=generator) + 0.5

    def theirs(*arguments: Any, activation: str) -> Tensor:
        output = torch.nn.functional.batch_norm(*arguments)
        return output.relu() if activation == "relu" else output

    def second(function: Callable[..., Tensor], dtype: torch.dtype) -> list[Tensor]:
        given = [tensor.to(dtype).requires_grad_() for tensor in tensors]
        buffers = (running_mean.to(dtype), running_var.to(dtype))
        output = function(given[0], *buffers, given[1], given[2], training, activation=activation)
        first = torch.autograd.grad(output, given[:2], given[3], create_graph=True)
        along = (direction.to(dtype), torch.ones(5, dtype=dtype))
        return [g.double() for g in torch.autograd.grad(first, (given[0], given[1], given[3]), along)]

    truth = second(theirs, torch.float64)
    ours, others = (second(f, torch.float32) for f in (fused_bn.functional.batch_norm, theirs))
    for exact, mine, other in zip(truth, ours, others, strict=True):
        our_error, their_error = ((found - exact).abs().max() / exact.abs().max() for found in (mine, other))
        assert our_error <= max(float(their_error), beyond_rounding("grad_input", torch.float32))


@pytest.mark.parametrize("training", [True, False], ids=["training", "evaluation"])
@pytest.mark.parametrize("layout", LAYOUTS)
def test_gradients_of_a_part_of_the_inputs_are_those_of_all(layout: str, training: bool, device: str) -> None:
    """requires_grad determines the backward operator's output mask. The values must not depend on it."""
    for activation in ("none", "relu"):
        case = Case((4, 17, 3, 5), layout, training=training, activation=activation)
        complete = run_fused(case, make_tensors(case, device))
        expected = (complete.grad_input, complete.grad_weight, complete.grad_bias)
        for wanted in product((True, False), repeat=3):
            tensors = make_tensors(case, device)
            leaves = (tensors.input, present(tensors.weight), present(tensors.bias))
            for leaf, need in zip(leaves, wanted, strict=True):
                leaf.requires_grad_(need)
            output = apply(case, tensors, *leaves)
            assert output.requires_grad is any(wanted)
            if not any(wanted):
                continue
            output.backward(tensors.grad_output)
            for leaf, need, gradient in zip(leaves, wanted, expected, strict=True):
                assert same_bits(leaf.grad, gradient if need else None)


@pytest.mark.parametrize("layout", LAYOUTS)
def test_frozen_weight_receives_nothing_and_the_rest_trains_on(layout: str, device: str) -> None:
    norm = fused_bn.BatchNorm2d(5, activation="relu").to(device)
    norm.weight.requires_grad_(False)
    x = in_layout(torch.randn(3, 5, 4, 4, device=device), layout).requires_grad_()
    norm(x).sum().backward()
    assert norm.weight.grad is None
    assert norm.bias.grad is not None
    assert x.grad is not None


def forward_and_gradients(case: Case, tensors: Tensors, grad_output: Tensor) -> list[Tensor | None]:
    leaves = (tensors.input, present(tensors.weight), present(tensors.bias))
    tensors.require_grad()
    output = apply(case, tensors, *leaves)
    output.backward(grad_output)
    return [output.detach(), *(leaf.grad for leaf in leaves), tensors.running_mean, tensors.running_var]


@pytest.mark.core
@pytest.mark.needs_extension
@pytest.mark.parametrize("activation", ["none", "relu"])
@pytest.mark.parametrize("layout", LAYOUTS)
def test_expanded_gradients_of_stride_zero_are_read_correctly(
    layout: str, activation: str, device: str
) -> None:
    """sum().backward() passes one expanded element, which hand-written backwards got wrong [64529]."""
    case = Case((4, 17, 3, 5), layout, activation=activation)
    tensors = make_tensors(case, device)
    shape = tensors.input.shape
    for small in ((1, 1, 1, 1), (1, 17, 1, 1), (4, 1, 3, 1), (4, 17, 1, 1)):
        values = torch.randn(small, generator=torch.Generator().manual_seed(1)).to(device)
        dense, expanded = replace_grad(tensors, values.expand(shape)), values.expand(shape)
        expected = run_fused(case, dense)
        found = forward_and_gradients(case, tensors.clone(), expanded)[1:4]
        gradients = (expected.grad_input, expected.grad_weight, expected.grad_bias)
        assert all(map(same_bits, found, gradients))


def replace_grad(tensors: Tensors, grad_output: Tensor) -> Tensors:
    copy = tensors.clone()
    copy.grad_output = grad_output.contiguous()
    return copy


VIEWS: dict[str, Callable[[Tensor], Tensor]] = {
    "every second column": lambda x: x[..., ::2],
    "unaligned by one element": lambda x: x[..., 1:],
    "every second channel": lambda x: x[:, ::2],
    "channels from 1": lambda x: x[:, 1:],
    "every second sample": lambda x: x[::2],
    "height and width swapped": lambda x: x.transpose(2, 3),
    "samples and channels swapped": lambda x: x.transpose(0, 1),
    "spatial first": lambda x: x.permute(2, 3, 0, 1),
    "one row for all": lambda x: x[:, :, :1].expand(x.shape),
    "one sample for all": lambda x: x[:1].expand(x.shape),
    "flat storage, shifted by one": lambda x: x.reshape(-1)[1 : 1 + 2 * 5 * 9].view(2, 5, 3, 3),
}


@pytest.mark.core
@pytest.mark.needs_extension
@pytest.mark.parametrize("layout", LAYOUTS)
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64, torch.bfloat16], ids=lambda d: str(d)[6:])
@pytest.mark.parametrize("view", VIEWS)
def test_views_of_any_strides_give_what_their_dense_copy_gives(
    view: str, dtype: torch.dtype, layout: str, device: str
) -> None:
    """With views as input and grad_output, all results equal a dense copy's bits. The input is unchanged.

    The copy has the layout that the operator chose for the output: one of the two dense ones.
    """
    generator = torch.Generator().manual_seed(4)
    base = in_layout(torch.randn(4, 6, 8, 9, generator=generator).to(device, dtype), layout)
    before = base.clone()
    x, grad = VIEWS[view](base), VIEWS[view](base.flip(0))
    parameter_dtype = torch.float64 if dtype is torch.float64 else torch.float32
    for activation, training in product(("none", "relu"), (True, False)):
        case = Case(tuple(x.shape), "contiguous", dtype, parameter_dtype, activation=activation)
        case = replace(case, training=training)
        own, dense = make_tensors(case, device), make_tensors(case, device)
        own.input = x.detach()
        found = forward_and_gradients(case, own, grad)
        output = present(found[0])
        chosen = "contiguous" if output.is_contiguous() else "channels_last"
        dense.input = in_layout(x.clone(), chosen).detach()
        expected = forward_and_gradients(case, dense, in_layout(grad.clone(), chosen))
        assert all(map(same_bits, found, expected))
        assert output.stride() == dense.input.stride()
    assert torch.equal(base, before)


@pytest.mark.core
@pytest.mark.parametrize("activation", ["none", "relu"])
def test_backward_twice_through_a_kept_graph_gives_the_same_gradient(activation: str, device: str) -> None:
    """In training and in evaluation the first backward must not change what was saved [586]."""
    for training, layout in product((True, False), LAYOUTS):
        case = Case((4, 5, 3, 3), layout, training=training, activation=activation)
        tensors = make_tensors(case, device).require_grad()
        leaves = (tensors.input, present(tensors.weight), present(tensors.bias))
        output = apply(case, tensors, *leaves)
        first = torch.autograd.grad(output, leaves, tensors.grad_output, retain_graph=True)
        second = torch.autograd.grad(output, leaves, tensors.grad_output)
        assert all(map(torch.equal, first, second))


@pytest.mark.core
def test_two_forwards_before_one_backward_keep_their_own_statistics(device: str) -> None:
    """Statistics kept on the module would be overwritten by the second call. Also between train and eval."""
    norm = fused_bn.BatchNorm2d(5, activation="relu").to(device)
    generator = torch.Generator().manual_seed(5)
    first, second = (torch.randn(4, 5, 3, 3, generator=generator).to(device) * 3 for _ in range(2))
    expected = []
    for x in (first, second):
        alone = x.clone().requires_grad_()
        (norm(alone) * torch.arange(3.0, device=device)).sum().backward()
        expected.append(alone.grad)
    a, b = first.clone().requires_grad_(), second.clone().requires_grad_()
    total = norm(a) + norm(b)
    norm.eval()(first)
    (total * torch.arange(3.0, device=device)).sum().backward()
    assert same_bits(a.grad, expected[0])
    assert same_bits(b.grad, expected[1])


@pytest.mark.needs_extension
@pytest.mark.parametrize("training", [True, False], ids=["training", "evaluation"])
def test_running_buffers_may_change_between_forward_and_backward(training: bool, device: str) -> None:
    """A broadcast into the buffers must neither cause a version error nor change the gradient [175024]."""
    norm = fused_bn.BatchNorm2d(5, activation="relu").to(device).train(training)
    generator = torch.Generator().manual_seed(6)
    x = torch.randn(4, 5, 3, 3, generator=generator).to(device).requires_grad_()
    (expected,) = torch.autograd.grad(norm(x).square().sum(), x)
    norm.load_state_dict(fused_bn.BatchNorm2d(5).state_dict())
    output = norm(x)
    with torch.no_grad():
        for buffer in norm.buffers():
            buffer.fill_(9)
    (found,) = torch.autograd.grad(output.square().sum(), x)
    assert torch.equal(found, expected)


def test_input_changed_in_place_before_backward_is_an_error(device: str) -> None:
    """The input is saved, not copied, so autograd must notice that it was overwritten."""
    x = torch.randn(4, 5, 3, 3, device=device, requires_grad=True)
    middle = x * 1
    output = fused_bn.BatchNorm2d(5, activation="relu").to(device)(middle)
    middle.add_(1)
    with pytest.raises(RuntimeError, match="modified by an inplace operation"):
        output.sum().backward()


def tensors_saved_by(module: Callable[[Tensor], Tensor], x: Tensor) -> list[Tensor]:
    saved: list[Tensor] = []

    def pack(tensor: Tensor) -> Tensor:
        saved.append(tensor)
        return tensor

    with torch.autograd.graph.saved_tensors_hooks(pack, lambda tensor: tensor):
        module(x)
    return saved


@pytest.mark.needs_extension
@pytest.mark.parametrize("activation", ["none", "relu"])
@pytest.mark.parametrize("training", [True, False], ids=["training", "evaluation"])
def test_saved_for_backward_are_input_parameters_and_statistics_only(
    training: bool, activation: ActivationName, device: str
) -> None:
    """No more memory than nn.BatchNorm2d alone keeps: no output, no mask, no second copy of the input."""
    for layout in LAYOUTS:
        x = in_layout(torch.randn(8, 5, 16, 16, device=device), layout).requires_grad_()
        norm = fused_bn.BatchNorm2d(5, activation=activation).to(device).train(training)
        saved = tensors_saved_by(norm, x)
        large = [tensor for tensor in saved if tensor.numel() > 3 * 5]
        assert [tensor.data_ptr() for tensor in large] == [x.data_ptr()]
        buffers = {buffer.data_ptr() for buffer in norm.buffers()}
        assert not buffers & {tensor.data_ptr() for tensor in saved}
        theirs = tensors_saved_by(nn.BatchNorm2d(5).to(device).train(training), x)
        mine, other = (sum(t.numel() * t.element_size() for t in kept) for kept in (saved, theirs))
        assert mine <= other + 5 * 4 * 2  # at most bias and mean_lo more than nn.BatchNorm2d keeps


@pytest.mark.core
@pytest.mark.parametrize("training", [True, False], ids=["training", "evaluation"])
def test_no_grad_and_inference_mode_give_the_same_values(training: bool, device: str) -> None:
    case = Case((4, 5, 3, 3), training=training)
    expected = run_fused(case, make_tensors(case, device))
    for mode in (torch.no_grad, torch.inference_mode):
        tensors = make_tensors(case, device)
        tensors.require_grad()
        with mode():
            output = apply(case, tensors, tensors.input, present(tensors.weight), present(tensors.bias))
            assert torch.equal(output, expected.output)
        assert not output.requires_grad
        assert same_bits(tensors.running_mean, expected.running_mean)


def test_input_created_in_inference_mode_is_normalised_outside_it(device: str) -> None:
    with torch.inference_mode():
        x = torch.randn(4, 5, 3, 3, device=device)
    norm = fused_bn.BatchNorm2d(5).to(device).eval()
    with torch.no_grad():
        assert torch.equal(norm(x), norm(x.clone()))

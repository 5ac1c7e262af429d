"""Saved tensors that come back in another layout, are written meanwhile, or are not saved."""

from typing import Any

import pytest
import torch
from torch import Tensor

from fused_bn._activations import ACTIVATIONS
from fused_bn.functional import batch_norm
from tests.cases import Case, call_fused, make_tensors, present, run_fused, same_bits

pytestmark = pytest.mark.needs_extension
LAYOUTS = ["contiguous", "channels_last"]


@pytest.mark.core
@pytest.mark.parametrize("activation", ["relu", "leaky_relu", "relu6"])
@pytest.mark.parametrize("layout", LAYOUTS)
def test_a_mask_outlives_hooks_that_change_the_strides_of_what_is_saved(
    layout: str, activation: str, device: str
) -> None:
    """The mask's order is that of the input's memory, but hooks may return the input in another layout."""
    case = Case((4, 6, 5, 7), layout, activation=activation, residual=True)
    expected = run_fused(case, make_tensors(case, device))
    other = torch.channels_last if layout == "contiguous" else torch.contiguous_format

    def pack(tensor: Tensor) -> Tensor:
        return tensor.contiguous(memory_format=other) if tensor.dim() == 4 else tensor

    with torch.autograd.graph.saved_tensors_hooks(pack, lambda tensor: tensor):
        hooked = run_fused(case, make_tensors(case, device))
    for name in ("grad_input", "grad_residual", "grad_weight", "grad_bias"):
        assert torch.equal(getattr(hooked, name), getattr(expected, name)), name


@pytest.mark.parametrize("activation", ["none", "relu", "leaky_relu", "relu6"])
@pytest.mark.parametrize("residual", [False, True])
def test_the_bias_may_be_written_between_forward_and_backward(
    residual: bool, activation: str, device: str
) -> None:
    """Backward needs at most which values passed the activation, which PyTorch's ReLU keeps too."""
    case = Case((4, 6, 5, 7), activation=activation, residual=residual)
    expected = run_fused(case, make_tensors(case, device))
    own = make_tensors(case, device).require_grad()
    output = call_fused(case, own)
    with torch.no_grad():
        present(own.bias).add_(100)
    output.backward(own.grad_output)
    assert torch.equal(present(own.input.grad), expected.grad_input)
    assert same_bits(present(own.bias).grad, expected.grad_bias)


def test_a_mask_outlives_data_that_is_laid_out_anew(device: str) -> None:
    """`x.data = ...` between forward and backward, as in `model.to(memory_format=...)`."""
    case = Case((4, 6, 5, 7), residual=True)
    expected = run_fused(case, make_tensors(case, device))
    own = make_tensors(case, device).require_grad()
    output = call_fused(case, own)
    own.input.data = own.input.data.contiguous(memory_format=torch.channels_last)
    output.backward(own.grad_output)
    assert torch.equal(present(own.input.grad), expected.grad_input)


def test_the_second_derivative_outlives_hooks_that_change_strides(device: str) -> None:
    """The mask is saved for the second derivative too, together with the input that gives its order."""

    def second() -> Tensor:
        x = torch.randn(3, 6, 5, 7, generator=torch.Generator().manual_seed(1)).to(device).requires_grad_()
        residual = torch.ones_like(x, requires_grad=True)
        y = batch_norm(x, None, None, training=True, activation="relu", residual=residual)
        (grad,) = torch.autograd.grad(y.square().sum(), x, create_graph=True)
        return torch.autograd.grad(grad.square().sum(), x)[0]

    def pack(tensor: Tensor) -> Tensor:
        return tensor.contiguous(memory_format=torch.channels_last) if tensor.dim() == 4 else tensor

    expected = second()
    with torch.autograd.graph.saved_tensors_hooks(pack, lambda tensor: tensor):
        found = second()
    assert torch.allclose(found, expected, rtol=1e-4, atol=1e-5 * float(expected.abs().max()))


SAVED = {
    "input": ACTIVATIONS,
    "weight": ACTIVATIONS,
    "residual": ("silu",),
    "bias": ("silu",),
    "negative_slope": ("prelu",),
}
"""By tensor: some of the activations for which it is saved itself."""


@pytest.mark.parametrize("name", SAVED)
def test_tensors_that_cannot_be_saved_are_refused_before_the_statistics_change(
    name: str, device: str
) -> None:
    """A tensor made in inference mode, with parameters that require gradients."""
    for activation in SAVED[name]:
        case = Case((4, 6, 5, 7), activation=activation, residual=True)
        tensors = made_in_inference_mode(case, name, device)
        before = present(tensors.running_mean).clone()
        with pytest.raises(RuntimeError, match="Inference tensors cannot be saved for backward"):
            call_fused(case, tensors)
        assert torch.equal(present(tensors.running_mean), before)
        assert present(tensors.num_batches_tracked) == 2


@pytest.mark.parametrize("name", ["bias", "residual"])
@pytest.mark.parametrize("activation", ["none", "relu", "leaky_relu", "relu6"])
@pytest.mark.parametrize("residual", [False, True])
def test_tensors_that_are_not_saved_may_come_from_inference_mode(
    residual: bool, activation: str, name: str, device: str
) -> None:
    case = Case((4, 6, 5, 7), activation=activation, residual=residual or name == "residual")
    expected = run_fused(case, make_tensors(case, device))
    tensors = made_in_inference_mode(case, name, device)
    call_fused(case, tensors).backward(tensors.grad_output)
    assert same_bits(present(tensors.weight).grad, expected.grad_weight)


def made_in_inference_mode(case: Case, name: str, device: str) -> Any:
    tensors = make_tensors(case, device)
    with torch.inference_mode():
        setattr(tensors, name, getattr(tensors, name).clone())
    for each in ("weight", "bias"):
        if each != name:
            getattr(tensors, each).requires_grad_()
    return tensors


@pytest.mark.parametrize("activation", ["none", "relu", "silu"])
@pytest.mark.parametrize("view", ["negated", "zero"])
def test_lazy_biases_are_read_as_what_they_stand_for(view: str, activation: str) -> None:
    """A view that is negated when read, whose memory has the opposite sign, and a zero without memory."""
    case = Case((4, 6, 5, 7), activation=activation)
    tensors, plain = make_tensors(case).require_grad(), make_tensors(case)
    values = torch.zeros(6) if view == "zero" else -present(plain.bias)
    plain.bias = values
    tensors.bias = (
        torch._efficientzerotensor(6) if view == "zero" else present(make_tensors(case).bias)._neg_view()
    )
    expected = run_fused(case, plain)
    output = call_fused(case, tensors)
    output.backward(tensors.grad_output)
    assert torch.equal(output, expected.output)
    assert torch.equal(present(tensors.input.grad), expected.grad_input)

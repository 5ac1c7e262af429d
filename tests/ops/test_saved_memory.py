"""The memory that a call keeps for backward: only what backward needs."""

from collections.abc import Callable, Iterator
from itertools import product
from math import prod
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

import fused_bn
from fused_bn._activations import ACTIVATIONS
from tests.cases import PARAMS, in_layout, layouts, present
from tests.ops.test_autograd import tensors_saved_by
from tests.ops.test_operator import WITH_MASK
from tests.twins import assert_near, assert_same_buffers, batch, ours_and_original

pytestmark = pytest.mark.needs_extension

SHAPES = (
    *((8, 16, 16, 8), (8, 8, 4, 8), (16, 64), (2, 3, 4, 4, 4)),
    *((4, 3, 5, 7), (5, 17, 9, 9), (9, 33), (3, 5, 3, 3, 3)),
)
"""Rows with a multiple of 8 elements, and other rows."""


def keeping(activation: Any, shape: tuple[int, ...], **options: Any) -> nn.Module:
    kind = {2: fused_bn.BatchNorm1d, 4: fused_bn.BatchNorm2d, 5: fused_bn.BatchNorm3d}[len(shape)]
    return kind(shape[1], activation=activation, activation_param=PARAMS.get(activation), **options)


def inputs(shape: tuple[int, ...], device: str, dtype: torch.dtype) -> Iterator[tuple[Tensor, Tensor]]:
    for layout in layouts(shape):
        x, residual = (in_layout(torch.randn(shape, device=device).to(dtype), layout) for _ in range(2))
        yield x.requires_grad_(), residual.requires_grad_()


def large(saved: list[Tensor], module: nn.Module, x: Tensor) -> list[Tensor]:
    """Bytes without the parameters, a copy of the bias, and the [3, C] statistics, which must exist once."""
    parameters = {parameter.data_ptr() for parameter in module.parameters()}
    rest = [t for t in saved if t.data_ptr() not in parameters and t.shape != (x.shape[1],)]
    statistics = [t for t in rest if t.shape == (3, x.shape[1]) and t.dtype == torch.float32]
    assert len(statistics) == 1
    return [tensor for tensor in rest if tensor is not statistics[0]]


@pytest.mark.parametrize("activation", ACTIVATIONS)
@pytest.mark.parametrize("training", [True, False], ids=["training", "evaluation"])
def test_without_a_residual_only_the_input_is_kept(activation: str, training: bool, device: str) -> None:
    """The input, the parameters, and three numbers per channel. For any activation no output and no mask."""
    for shape, dtype in product(SHAPES, (torch.float32, torch.bfloat16)):
        for x, _ in inputs(shape, device, dtype):
            norm = keeping(activation, shape).to(device).train(training)
            kept = large(tensors_saved_by(norm, x), norm, x)
            assert [tensor.data_ptr() for tensor in kept] == [x.data_ptr()]


@pytest.mark.parametrize("activation", ACTIVATIONS)
@pytest.mark.parametrize("training", [True, False], ids=["training", "evaluation"])
def test_a_residual_costs_a_bit_an_element_at_most(activation: str, training: bool, device: str) -> None:
    """Activations with two slopes keep a bit per element, none keeps nothing, others keep the residual."""
    for shape, dtype in product(SHAPES, (torch.float32, torch.bfloat16)):
        for x, residual in inputs(shape, device, dtype):
            norm = keeping(activation, shape).to(device).train(training)
            saved = tensors_saved_by(with_residual(norm, residual), x)
            kept = [t for t in large(saved, norm, x) if t.data_ptr() != x.data_ptr()]
            if activation == "none":
                assert kept == []
            elif activation in WITH_MASK:
                (mask,) = kept
                assert mask.dtype == torch.uint8
                assert mask.numel() == (prod(shape) + 7) // 8
                assert mask.untyped_storage().nbytes() == mask.numel()
            else:
                (same,) = kept
                assert same.data_ptr() == residual.data_ptr()
                assert same.untyped_storage().nbytes() == residual.untyped_storage().nbytes()


def with_residual(norm: nn.Module, residual: Tensor) -> Callable[[Tensor], Tensor]:
    return lambda x: norm(x, residual)


@pytest.mark.parametrize("activation", ["none", "relu", "silu"])
def test_nothing_is_kept_where_no_gradient_is_asked_for(activation: str, device: str) -> None:
    """Inference makes neither a mask nor a node, and reads a residual once."""
    norm = keeping(activation, (4, 6, 5, 3)).to(device)
    for parameter in norm.parameters():
        parameter.requires_grad_(False)
    x = torch.randn(4, 6, 5, 3, device=device)
    y = norm(x, x)
    assert y.grad_fn is None
    _, _, mask, bias_copy = torch.ops.fused_bn.batch_norm_forward(
        x, x, None, norm.bias, None, None, None, True, 0.1, 1e-5, activation, 0.0, None, False
    )
    assert mask.numel() == 0
    assert bias_copy is None


@pytest.mark.parametrize("activation", ["relu", "silu"])
@pytest.mark.parametrize("training", [True, False], ids=["training", "evaluation"])
def test_backward_frees_what_forward_kept(activation: str, training: bool, device: str) -> None:
    """As in PyTorch's own layers, a second backward raises an error, and the module keeps nothing alive."""
    norm = keeping(activation, (4, 6, 5, 3)).to(device).train(training)
    x = torch.randn(4, 6, 5, 3, device=device, requires_grad=True)
    y = norm(x, x)
    y.sum().backward()
    with pytest.raises(RuntimeError, match="backward through the graph a second time"):
        y.sum().backward()


@pytest.mark.parametrize("activation", ["relu", "silu"])
def test_a_residual_changed_in_place_is_noticed_where_it_is_needed(activation: str, device: str) -> None:
    """Autograd must notice a write to a residual that is kept. With a mask the residual is not needed."""
    norm = keeping(activation, (4, 6, 5, 3)).to(device)
    x = torch.randn(4, 6, 5, 3, device=device, requires_grad=True)
    residual = torch.randn(4, 6, 5, 3, device=device)
    y = norm(x, residual)
    residual.add_(1)
    if activation == "silu":
        with pytest.raises(RuntimeError, match="modified by an inplace operation"):
            y.sum().backward()
    else:
        y.sum().backward()
        assert present(x.grad).isfinite().all()


@pytest.mark.parametrize("reentrant", [True, False], ids=["reentrant", "not reentrant"])
@pytest.mark.parametrize("activation", ["relu", "silu"])
def test_activation_checkpointing_with_a_residual(activation: str, reentrant: bool, device: str) -> None:
    """Gradients as without checkpointing. Statistics move twice, as nn.BatchNorm2d's do [96136]."""
    ours, theirs = ours_and_original(activation=activation, device=device)
    x, residual, grad_output = batch(device=device)
    found: list[list[Tensor | None]] = []
    for module in (ours, theirs):
        given = [t.detach().requires_grad_() for t in (x, residual)]
        y = checkpoint(module, *given, use_reentrant=reentrant)
        assert isinstance(y, Tensor)
        y.backward(grad_output)
        found.append([y.detach(), *(t.grad for t in given), *(p.grad for p in module.parameters())])
    assert_near(found[0], found[1])
    assert_same_buffers(ours, theirs)
    assert ours.num_batches_tracked == 2

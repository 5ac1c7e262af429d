"""Properties over random shapes, strides and options, which the fixed grid may miss."""

from dataclasses import replace
from math import prod

import pytest
import torch
from hypothesis import assume, given
from hypothesis import strategies as st
from torch import Tensor

from tests.cases import (
    DTYPES,
    HAS_EXTENSION,
    MEMORY_FORMATS,
    Case,
    Tensors,
    layouts,
    make_tensors,
    present,
    run_fused,
    same_bits,
)
from tests.ops.test_autograd import forward_and_gradients
from tests.reference import DEMANDED_OUTPUT, U, assert_meets_demands

LARGEST = 20_000
"""Elements per tensor: enough to cross every block size of the kernels, fast enough for dozens of examples.
"""


@st.composite
def shapes(draw: st.DrawFn) -> tuple[int, ...]:
    """Ranks 2 to 5, with dimensions of 1, primes, powers of two, and sometimes a long one."""
    rank = draw(st.integers(2, 5))
    small = st.one_of(st.integers(1, 9), st.sampled_from((15, 16, 17, 31, 32, 33, 63, 64, 65)))
    shape = [draw(small) for _ in range(rank)]
    if draw(st.booleans()):
        shape[draw(st.integers(0, rank - 1))] = draw(st.integers(1, 3000))
    assume(prod(shape) // shape[1] >= 2)  # more than one value a channel
    assume(prod(shape) <= LARGEST)
    return tuple(shape)


@st.composite
def cases(draw: st.DrawFn) -> Case:
    shape = draw(shapes())
    dtype, parameter_dtype = draw(st.sampled_from(DTYPES))
    training = draw(st.booleans())
    return Case(
        shape,
        draw(st.sampled_from(layouts(shape))),
        dtype,
        parameter_dtype,
        weight=draw(st.booleans()),
        bias=draw(st.booleans()),
        buffers=not training or draw(st.booleans()),
        training=training,
        momentum=draw(st.sampled_from((None, 0.0, 0.1, 0.9, 1.0))),
        activation=draw(st.sampled_from(("none", "relu"))),
        eps=draw(st.sampled_from((1e-12, 1e-5, 1e-3, 1.0))),
    )


@given(case=cases(), seed=st.integers(0, 2**20))
def test_any_shape_and_options_meet_the_demands(case: Case, seed: int) -> None:
    """Against the fp64 reference and PyTorch, as for the grid."""
    assert_meets_demands(case, make_tensors(case, seed=seed))


@pytest.mark.needs_extension
@given(shape=shapes(), data=st.data())
def test_any_strides_give_the_bits_of_a_dense_copy(shape: tuple[int, ...], data: st.DataObject) -> None:
    """A random slice of a random permutation is read correctly, whatever layout the output gets."""
    order = data.draw(st.permutations(range(len(shape))))
    steps = [data.draw(st.integers(1, 2)) for _ in shape]
    starts = [data.draw(st.integers(0, 2)) for _ in shape]
    stored = [shape[dim] * steps[dim] + starts[dim] for dim in order]
    assume(prod(stored) <= 8 * LARGEST)
    generator = torch.Generator().manual_seed(11)

    def view() -> Tensor:
        whole = torch.randn(stored, generator=generator)
        x = whole.permute([order.index(dim) for dim in range(len(shape))])
        return x[
            tuple(
                slice(start, start + size * step, step)
                for start, size, step in zip(starts, shape, steps, strict=True)
            )
        ]

    case = Case(shape)
    strided, dense = make_tensors(case), make_tensors(case)
    strided.input, strided.grad_output = view(), view()
    found = run_with_strides(case, strided)
    candidates = []
    for layout in layouts(shape):
        for name in ("input", "grad_output"):  # with that layout's own strides, even if sizes are 1
            copy = torch.empty(shape, memory_format=MEMORY_FORMATS[layout])
            setattr(dense, name, copy.copy_(getattr(strided, name)))
        candidates.append(run_with_strides(case, dense))
    assert found[0].stride() in [candidate[0].stride() for candidate in candidates]
    assert any(all(map(same_bits, found, candidate)) for candidate in candidates)


def run_with_strides(case: Case, tensors: Tensors) -> list[Tensor]:
    """As `run_fused`, but on the given strides, which a clone would lose."""
    own = tensors.clone()
    own.input = tensors.input.detach()
    return [present(value) for value in forward_and_gradients(case, own, tensors.grad_output)]


@given(case=cases())
def test_normalised_output_has_mean_bias_and_spread_weight(case: Case) -> None:
    """Without an activation, over a batch: mean(y) = bias and var(y) = weight^2 var / (var + eps).

    Each y is off by at most D (|w xhat| + |w| + |b|) + u |y|, where D is the demand. Over a channel xhat has
    a mean square of at most 1. So the root mean square of y's error, r, is at most D (2 |w| + |b|) + u (|w| +
    |b|). The mean is off by at most r. The deviation is too, by the triangle inequality.
    """
    case = replace(case, training=True, activation="none", dtype=torch.float32, parameter_dtype=torch.float32)
    tensors = make_tensors(case)
    y = run_fused(case, tensors).output.double()
    dims = [dim for dim in range(y.dim()) if dim != 1]
    bias = torch.zeros(case.channels) if tensors.bias is None else tensors.bias
    weight = torch.ones(case.channels) if tensors.weight is None else tensors.weight
    w, b = weight.double(), bias.double()
    r = DEMANDED_OUTPUT * (2 * w.abs() + b.abs()) + U * (w.abs() + b.abs())
    bound = r if HAS_EXTENSION else 100 * r
    var = tensors.input.double().var(dims, correction=0)
    deviation = w.abs() * (var / (var + case.eps)).sqrt()
    assert ((y.mean(dims) - b).abs() <= bound).all()
    assert ((y.std(dims, correction=0) - deviation).abs() <= bound).all()


@given(case=cases(), shift=st.sampled_from((-64.0, 8.0, 1024.0)), scale=st.sampled_from((0.25, 4.0)))
def test_shifting_and_scaling_the_input_changes_nothing_but_rounding(
    case: Case, shift: float, scale: float
) -> None:
    """Batch norm removes them (apart from eps). Inputs are multiples of 1/64, so shifting them is exact."""
    case = replace(case, training=True, dtype=torch.float32, parameter_dtype=torch.float32, eps=1e-12)
    tensors = make_tensors(case)
    tensors.input = (tensors.input * 64).round() / 64
    var = tensors.input.double().transpose(0, 1).flatten(1).var(1, correction=0)
    assume((var > 0).all())
    moved = tensors.clone()
    moved.input = tensors.input * scale + shift
    before, after = run_fused(case, tensors).output, run_fused(case, moved).output
    # Each is within the demand and a rounding of the exact result, relative to |w xhat| + |w| + |b|. |xhat|
    # is at most sqrt(n), |w| 1.5 and |b| 1. eps takes eps / (2 var) of xhat from both.
    largest = (prod(case.shape) // case.channels) ** 0.5
    bound = 2 * (DEMANDED_OUTPUT + U) * (1.5 * largest + 2.5)
    bound += float((case.eps / (2 * var) * (1 + scale**-2)).max()) * 1.5 * largest
    assert (before - after).abs().max() <= (bound if HAS_EXTENSION else 100 * bound)


@given(case=cases())
def test_relu_output_is_the_clamped_plain_output_bit_for_bit(case: Case) -> None:
    """z is computed in the same way with and without ReLU. Gradients are those of the masked gradient."""
    tensors = make_tensors(case)
    plain = run_fused(replace(case, activation="none"), tensors)
    fused = run_fused(replace(case, activation="relu"), tensors)
    assert torch.equal(fused.output, plain.output.relu())
    masked = tensors.clone()
    masked.grad_output = torch.where(plain.output <= 0, 0, tensors.grad_output)
    if not HAS_EXTENSION or case.dtype is torch.float16:
        return  # PyTorch sums in another order. In fp16 a tiny z > 0 rounds to an output of 0.
    expected = run_fused(replace(case, activation="none"), masked)
    for name in ("grad_input", "grad_weight", "grad_bias"):
        assert same_bits(getattr(fused, name), getattr(expected, name)), name

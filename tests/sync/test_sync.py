"""Batch norm over several processes: the results of one process on all batches together."""

from collections.abc import Iterator
from dataclasses import dataclass, replace
from itertools import pairwise
from typing import Any
from unittest import mock

import pytest
import torch
from hypothesis import Phase, given, settings
from hypothesis import strategies as st
from torch import Tensor, distributed, nn

import fused_bn
from fused_bn._activations import ACTIVATIONS
from tests.cases import DEVICES, DTYPES, Case, Tensors, in_layout, layouts, make_tensors, present, same_bits
from tests.sync.processes import NEEDS_GLOO, Processes, device

pytestmark = NEEDS_GLOO

TOLERANCES = {torch.float64: 1e-12, torch.float32: 1e-5, torch.bfloat16: 2e-2, torch.float16: 2e-3}
"""Relative to the largest value, or 1: the required bound in fp64, some roundings of the output's dtype
otherwise."""


@pytest.fixture(scope="module", params=DEVICES)
def place(request: pytest.FixtureRequest) -> str:
    name: str = request.param
    return name


@pytest.fixture(scope="module", params=[2, 3, 4], ids="{} processes".format)
def processes(request: pytest.FixtureRequest, place: str) -> Iterator[Processes]:
    processes = Processes(request.param, place)
    processes.size = request.param  # type: ignore[attr-defined]
    yield processes
    processes.close()


@pytest.fixture(scope="module")
def two(place: str) -> Iterator[Processes]:
    processes = Processes(2, place)
    yield processes
    processes.close()


@dataclass(frozen=True)
class Split:
    """A case, and where each process's samples end. Layouts may differ between processes."""

    case: Case
    cuts: tuple[int, ...]
    layouts: tuple[str, ...]

    def parts(self) -> list[tuple[int, int]]:
        return list(pairwise((0, *self.cuts, self.case.shape[0])))


@st.composite
def splits(draw: st.DrawFn, processes: int) -> Split:
    shape = draw(st.sampled_from(((7, 3, 5, 4), (9, 17), (6, 8, 3, 3), (5, 2, 70), (4, 3, 2, 3, 2))))
    dtype, parameter_dtype = draw(st.sampled_from((*DTYPES[:2], *DTYPES[:2], *DTYPES[2:])))
    cuts = tuple(sorted(draw(st.integers(0, shape[0])) for _ in range(processes - 1)))
    case = Case(
        shape,
        "contiguous",
        dtype,
        parameter_dtype,
        weight=draw(st.booleans()),
        bias=draw(st.booleans()),
        buffers=draw(st.booleans()),
        momentum=draw(st.sampled_from((0.1, None))),
        activation=draw(st.sampled_from(tuple(ACTIVATIONS))),
        residual=draw(st.booleans()),
    )
    return Split(case, cuts, tuple(draw(st.sampled_from(layouts(shape))) for _ in range(processes)))


def norm_of(kind: type[nn.Module], case: Case, tensors: Tensors) -> Any:
    slopes = tensors.negative_slope
    norm = kind(
        case.channels,
        momentum=case.momentum,
        affine=case.weight or case.bias,
        track_running_stats=case.buffers,
        activation=case.activation,
        activation_param=case.activation_param if slopes is None else slopes.clone(),
    )
    for name, given_ in (("weight", tensors.weight), ("bias", tensors.bias)):
        setattr(norm, name, None if given_ is None else nn.Parameter(given_.clone()))
    for name in ("running_mean", "running_var", "num_batches_tracked") if case.buffers else ():
        setattr(norm, name, present(getattr(tensors, name)).clone())
    return norm


def step(norm: Any, x: Tensor, residual: Tensor | None, grad_output: Tensor) -> dict[str, Tensor | None]:
    x = x.detach().requires_grad_()
    residual = None if residual is None else residual.detach().requires_grad_()
    y = norm(x, residual)
    assert y.stride() == x.stride() or y.numel() == 0
    y.backward(grad_output)
    return {
        "output": y.detach(),
        "grad_input": x.grad,
        "grad_residual": None if residual is None else residual.grad,
        "grad_weight": None if norm.weight is None else norm.weight.grad,
        "grad_bias": None if norm.bias is None else norm.bias.grad,
        **({"grad_prelu_weight": norm.prelu_weight.grad} if norm.activation == "prelu" else {}),
        **{f"buffer {name}": buffer.clone() for name, buffer in norm.named_buffers()},
    }


def share_of(rank: int, split: Split) -> dict[str, Tensor | None]:
    """One process's part of the whole batch."""
    tensors = make_tensors(split.case, device())
    begin, end = split.parts()[rank]
    x, residual, grad_output = (
        None if t is None else in_layout(t[begin:end], split.layouts[rank])
        for t in (tensors.input, tensors.residual, tensors.grad_output)
    )
    norm = norm_of(fused_bn.SyncBatchNorm, split.case, tensors)
    return step(norm, present(x), residual, present(grad_output))


def assert_close(name: str, found: Tensor, expected: Tensor, dtype: torch.dtype) -> None:
    error = (found.double() - expected.double()).abs().max() if found.numel() else torch.zeros(())
    allowed = TOLERANCES[dtype] * max(1.0, float(expected.double().abs().max()) if expected.numel() else 0.0)
    assert error <= allowed, f"{name}: off by {error:.2e}, allowed {allowed:.2e}"


def check(processes: Processes, split: Split) -> None:
    case, tensors = split.case, make_tensors(split.case)
    kind = {
        2: fused_bn.BatchNorm1d,
        3: fused_bn.BatchNorm1d,
        4: fused_bn.BatchNorm2d,
        5: fused_bn.BatchNorm3d,
    }
    norm = norm_of(kind[len(case.shape)], case, tensors)
    expected = step(norm, tensors.input, tensors.residual, tensors.grad_output)
    parts = processes.run(share_of, split)
    for name, value in expected.items():
        found = [part[name] for part in parts]
        if value is None:
            assert found == [None] * len(parts)
        elif name in ("output", "grad_input", "grad_residual"):
            assert_close(name, torch.cat(found), value, case.dtype)
        elif name.startswith("grad"):
            assert_close(name, torch.stack(found).double().sum(0), value, case.dtype)
        else:
            assert all(same_bits(each, found[0]) for each in found), "processes disagree"
            assert_close(name, found[0], value, case.parameter_dtype)


# No shrinking: if one process fails the others wait, and the group cannot be used again.
@settings(max_examples=40, phases=(Phase.generate,))
@given(data=st.data())
def test_uneven_splits_are_one_batch(processes: Processes, data: st.DataObject) -> None:
    """Outputs, all gradients, running statistics. Some processes are empty or have a single value."""
    check(processes, data.draw(splits(processes.size)))  # type: ignore[attr-defined]


@pytest.mark.parametrize("activation", ACTIVATIONS)
@pytest.mark.parametrize("cuts", [(1,), (0,), (6,)], ids=["1 and 5", "empty first", "empty last"])
def test_every_activation(activation: str, cuts: tuple[int, ...], two: Processes) -> None:
    case = Case((6, 3, 4, 4), dtype=torch.float64, parameter_dtype=torch.float64, activation=activation)
    for residual in (False, True):
        check(two, Split(replace(case, residual=residual), cuts, ("contiguous", "channels_last")))


def test_one_value_a_channel_in_a_process(two: Processes) -> None:
    """Raises alone, but not with other processes."""
    case = Case((5, 3), dtype=torch.float64, parameter_dtype=torch.float64)
    check(two, Split(case, (1,), ("contiguous",) * 2))


def sizes_apart(rank: int, dtype: torch.dtype) -> dict[str, Tensor | None]:
    """Each process has images of another size."""
    case = Case((2, 3, 4 + rank, 5 - rank), dtype=dtype, parameter_dtype=dtype, residual=True)
    tensors = make_tensors(case, device(), rank)
    norm = norm_of(fused_bn.SyncBatchNorm, case, make_tensors(replace(case, shape=(2, 3, 2, 2)), device()))
    return step(norm, tensors.input, tensors.residual, tensors.grad_output)


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32], ids=str)
def test_spatial_sizes_may_differ(dtype: torch.dtype, two: Processes) -> None:
    """[22192, 36688]: the counts weigh the merge and the gradient. It is no average of averages."""
    parts = two.run(sizes_apart, dtype)
    case = Case((2, 3, 2, 2), dtype=dtype, parameter_dtype=dtype, residual=True)

    def flat(tensor: Tensor) -> Tensor:
        return tensor.transpose(0, 1).flatten(1).t()

    own = [make_tensors(replace(case, shape=(2, 3, 4 + rank, 5 - rank)), seed=rank) for rank in range(2)]
    x, residual, grad_output = (
        torch.cat([flat(getattr(each, name)) for each in own])
        for name in ("input", "residual", "grad_output")
    )
    norm = norm_of(fused_bn.BatchNorm1d, case, make_tensors(case))
    expected = step(norm, x, residual, grad_output)
    for name, value in expected.items():
        found = [part[name] for part in parts]
        if name in ("output", "grad_input", "grad_residual"):
            assert_close(name, torch.cat([flat(each) for each in found]), present(value), dtype)
        elif name.startswith("buffer"):
            assert_close(name, found[1], present(value), dtype)


def many_means_apart(rank: int) -> tuple[Tensor, Tensor]:
    torch.manual_seed(rank)
    norm = fused_bn.SyncBatchNorm(4, momentum=1.0, device=device())
    x = (torch.randn(64, 4, 9, 9) + 1e4 * (1 + rank)).to(device())
    return x, torch.stack([norm(x).detach().mean(), present(norm.running_mean)[0]])


def test_means_far_apart_lose_no_digits(two: Processes) -> None:
    """A float32 mean of 1e4 would cost 5e-4 on the way. A float64 mean costs nothing."""
    parts = two.run(many_means_apart)
    x = torch.cat([part[0] for part in parts]).double()
    mean = x.mean((0, 2, 3))[0]
    for _, found in parts:
        assert abs(float(found[1]) - float(mean)) <= 2**-24 * float(mean)


# ---- what is exchanged


def exchanged(_: int) -> dict[str, list[int]]:
    """The bytes of every collective call of a forward and a backward."""
    calls: dict[str, list[int]] = {}

    def counting(name: str, function: Any, which: int) -> Any:
        def call(*arguments: Any, **named: Any) -> Any:
            calls.setdefault(name, []).append(arguments[which].nbytes)
            return function(*arguments, **named)

        return call

    norm = fused_bn.SyncBatchNorm(7, activation="relu", device=device())
    x = torch.randn(4, 7, 3, 3, device=device(), requires_grad=True)
    from fused_bn.sync import exchange

    with (
        mock.patch.object(exchange, "_all_gather", counting("gather", exchange._all_gather, 1)),
        mock.patch.object(distributed, "all_reduce", counting("reduce", distributed.all_reduce, 0)),
    ):
        y = norm(x, x)
        calls["forward"] = [sum(map(len, calls.values()))]
        y.sum().backward()
    return calls


def test_one_collective_forward_and_one_backward(two: Processes) -> None:
    """2C + 1 and 2C numbers in float64, for any batch."""
    for calls in two.run(exchanged):
        assert calls == {"gather": [8 * (2 * 7 + 1)], "forward": [1], "reduce": [8 * 2 * 7]}


def in_groups_of_two(rank: int) -> dict[str, Tensor | None]:
    group, _ = distributed.new_subgroups(2)
    case = Case((3, 3, 4, 2), dtype=torch.float64, parameter_dtype=torch.float64)
    tensors = make_tensors(case, device(), rank)
    norm = norm_of(fused_bn.SyncBatchNorm, case, make_tensors(case, device()))
    norm.process_group = group
    return step(norm, tensors.input, None, tensors.grad_output)


def test_a_group_is_one_batch(place: str) -> None:
    """Two pairs among four processes, as docs/distributed.md recommends for many processes."""
    processes = Processes(4, place)
    parts = processes.run(in_groups_of_two)
    processes.close()
    case = Case((3, 3, 4, 2), dtype=torch.float64, parameter_dtype=torch.float64)
    for ranks in ((0, 1), (2, 3)):
        own = [make_tensors(case, seed=rank) for rank in ranks]
        x, grad_output = (torch.cat([getattr(t, name) for t in own]) for name in ("input", "grad_output"))
        norm = norm_of(fused_bn.BatchNorm2d, case, make_tensors(case))
        expected = step(norm, x, None, grad_output)
        for name in ("output", "grad_input"):
            found = torch.cat([present(parts[rank][name]) for rank in ranks])
            assert_close(name, found, present(expected[name]), torch.float64)


def by_inductor(rank: int) -> float:
    """The difference between a compiled norm and an eager one: output, gradients and buffers."""
    case = Case((4 + rank, 3, 4, 2), dtype=torch.float64, parameter_dtype=torch.float64, residual=True)
    tensors = make_tensors(case, device(), rank)
    results = []
    for compiled in (False, True):
        parameters = make_tensors(replace(case, shape=(4, 3, 4, 2)), device())
        norm = norm_of(fused_bn.SyncBatchNorm, case, parameters)
        if compiled:
            norm.compile(fullgraph=True)
        results.append(step(norm, tensors.input, tensors.residual, tensors.grad_output))
    pairs = ((present(left), present(results[1][name])) for name, left in results[0].items())
    return max(float((left.double() - right.double()).abs().max()) for left, right in pairs)


@pytest.mark.real_gpu("Triton")
def test_compiled_by_inductor(two: Processes) -> None:
    """With functional collectives. The other tests of torch.compile stop at AOTAutograd."""
    assert max(two.run(by_inductor)) <= 1e-12


def second_derivative(_: int) -> str:
    norm = fused_bn.SyncBatchNorm(3, device=device())
    x = torch.randn(4, 3, device=device(), requires_grad=True)
    (grad,) = torch.autograd.grad(norm(x).square().sum(), x, create_graph=True)
    try:
        grad.sum().backward()
    except RuntimeError as error:
        return str(error)
    return ""


def test_the_second_derivative_is_refused(two: Processes) -> None:
    """An error instead of wrong results."""
    assert all("twice" in text for text in two.run(second_derivative))


def misuse(_: int) -> tuple[str, Tensor]:
    norm = fused_bn.SyncBatchNorm(3, device=device())
    try:
        norm(torch.randn(4, 3, 2, 2, device=device()), torch.randn(4, 3, 2, 1, device=device()))
    except RuntimeError as error:
        return str(error), present(norm.num_batches_tracked)
    return "", present(norm.num_batches_tracked)


def test_misuse_is_refused_before_anything_is_written(two: Processes) -> None:
    for text, counter in two.run(misuse):
        assert "the residual has shape" in text
        assert counter == 0


def by_plain_calls(rank: int, split: Split) -> dict[str, Tensor | None]:
    from fused_bn.sync import exchange

    with mock.patch.object(exchange, "devices_with_kernels", frozenset()):
        return share_of(rank, split)


@pytest.mark.parametrize("activation", ["none", "relu", "gelu"])
def test_the_fallback_computes_the_same(activation: str, two: Processes) -> None:
    """For devices without kernels, and without a compiler."""
    for residual, cuts in ((False, (0,)), (True, (2,))):
        dtypes = (torch.float64, torch.float64)
        case = Case((5, 3, 4, 2), "contiguous", *dtypes, activation=activation, residual=residual)
        split = Split(case, cuts, ("contiguous",) * 2)
        for mine, plain in zip(two.run(share_of, split), two.run(by_plain_calls, split), strict=True):
            for name, value in mine.items():
                if value is not None:
                    assert_close(name, present(plain[name]), value, torch.float64)


# ---- alone


def test_alone_it_is_plain_batch_norm() -> None:
    """No process group; evaluation; frozen."""
    case = Case((5, 3, 4, 2), momentum=None)
    tensors = make_tensors(case)
    for training in (True, False):
        both = [norm_of(kind, case, tensors) for kind in (fused_bn.SyncBatchNorm, fused_bn.BatchNorm2d)]
        steps = [step(each.train(training), tensors.input, None, tensors.grad_output) for each in both]
        assert all(same_bits(steps[0][name], steps[1][name]) for name in steps[1])


def evaluated(rank: int) -> bool:
    """Processes that do not evaluate together must not wait for each other."""
    case = Case((5, 3, 4, 2))
    tensors = make_tensors(case, device())
    norm = norm_of(fused_bn.SyncBatchNorm, case, tensors).eval()
    alone = norm_of(fused_bn.BatchNorm2d, case, tensors).eval()
    return rank == 1 or torch.equal(norm(tensors.input), alone(tensors.input))


def of_one(rank: int) -> bool:
    """A group for each process alone."""
    groups = [distributed.new_group([each]) for each in range(2)]
    case = Case((5, 3, 4, 2))
    tensors = make_tensors(case, device(), rank)
    norm = norm_of(fused_bn.SyncBatchNorm, case, tensors)
    norm.process_group = groups[rank]
    mine = step(norm, tensors.input, None, tensors.grad_output)
    theirs = step(norm_of(fused_bn.BatchNorm2d, case, tensors), tensors.input, None, tensors.grad_output)
    return all(same_bits(mine[name], theirs[name]) for name in theirs)


def test_evaluation_and_groups_of_one_exchange_nothing(two: Processes) -> None:
    assert all(two.run(evaluated))
    assert all(two.run(of_one))


# ---- hooks


def under_hooks(rank: int) -> bool:
    """Whether the gradients are equal if saved tensors come back in another layout."""
    case = Case((5, 6, 5, 7), activation="relu", residual=True)
    tensors = make_tensors(case, device(), rank)

    def re_lay(tensor: Tensor) -> Tensor:
        return tensor.contiguous(memory_format=torch.channels_last) if tensor.dim() == 4 else tensor

    plain, hooked = (norm_of(fused_bn.SyncBatchNorm, case, tensors) for _ in range(2))
    expected = step(plain, tensors.input, tensors.residual, tensors.grad_output)
    with torch.autograd.graph.saved_tensors_hooks(re_lay, lambda tensor: tensor):
        found = step(hooked, tensors.input, tensors.residual, tensors.grad_output)
    return all(same_bits(found[name], expected[name]) for name in expected)


def test_a_mask_outlives_hooks_that_change_strides(two: Processes) -> None:
    """The mask's order is that of the input's memory in forward."""
    assert all(two.run(under_hooks))

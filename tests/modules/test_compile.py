"""The operators under torch.compile and torch.export, opcheck, and the fake kernels."""

import copy
import re
from collections.abc import Callable, Iterator
from dataclasses import replace
from itertools import product
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch._dynamo.testing import CompileCounterWithBackend
from torch._subclasses.fake_tensor import FakeTensorMode

import fused_bn
from tests.cases import DTYPES, Case, in_layout, layouts, make_tensors, present, same_bits
from tests.ops.test_operator import (
    BACKWARD_ARGUMENTS,
    ELEMENTWISE_ARGUMENTS,
    FORWARD_ARGUMENTS,
    INFERENCE_ARGUMENTS,
    USER_ARGUMENTS,
    WRONG_BACKWARD,
    WRONG_FORWARD,
    backward,
    backward_arguments,
    forward,
    forward_arguments,
    user_operator,
)

pytestmark = [pytest.mark.needs_extension, pytest.mark.usefixtures("fresh_compiler", "keeps_fused")]


OPCHECK_CASES = [
    Case(shape, layout, training=training, activation=activation)
    for shape in ((3, 5, 4, 2), (4, 6), (2, 3, 2, 3, 2))
    for layout in layouts(shape)
    for training, activation in ((True, "relu"), (False, "none"))
]
OPCHECK_CASES += [
    replace(OPCHECK_CASES[0], momentum=None),
    replace(OPCHECK_CASES[0], weight=False),
    replace(OPCHECK_CASES[0], bias=False),
    replace(OPCHECK_CASES[0], weight=False, bias=False, buffers=False),
    replace(OPCHECK_CASES[0], dtype=torch.bfloat16),
    replace(OPCHECK_CASES[0], dtype=torch.float64, parameter_dtype=torch.float64),
    *(replace(OPCHECK_CASES[0], activation=activation) for activation in ("leaky_relu", "prelu", "gelu")),
    *(
        replace(case, residual=True, activation=activation)
        for case in OPCHECK_CASES[::2]
        for activation in ("none", "relu", "silu")
    ),
]
TENSORS_WITH_GRADIENTS = ("input", "residual", "weight", "bias", "negative_slope")


@pytest.mark.parametrize("case", OPCHECK_CASES, ids=str)
def test_opcheck_passes_on_the_user_operator(case: Case, device: str) -> None:
    """Schema, autograd registration, fake kernel and AOT dispatch with dynamic shapes, gradients included."""
    tensors = make_tensors(case, device).require_grad()
    arguments = forward_arguments(case, device)
    arguments |= {name: getattr(tensors, name) for name in TENSORS_WITH_GRADIENTS}
    torch.library.opcheck(
        torch.ops.fused_bn.batch_norm.default, tuple(arguments[name] for name in USER_ARGUMENTS)
    )


@pytest.mark.parametrize("case", [case for case in OPCHECK_CASES if not case.training], ids=str)
def test_opcheck_passes_on_the_operator_of_evaluation(case: Case, device: str) -> None:
    """Its schema declares no writes."""
    tensors = make_tensors(case, device).require_grad()
    arguments = forward_arguments(case, device)
    arguments |= {name: getattr(tensors, name) for name in TENSORS_WITH_GRADIENTS}
    operator = torch.ops.fused_bn.batch_norm_inference.default
    assert not operator._schema.is_mutable
    torch.library.opcheck(operator, tuple(arguments[name] for name in INFERENCE_ARGUMENTS))


@pytest.mark.parametrize("case", OPCHECK_CASES, ids=str)
def test_opcheck_passes_on_the_forward_operator(case: Case, device: str) -> None:
    arguments = forward_arguments(case, device)
    torch.library.opcheck(
        torch.ops.fused_bn.batch_norm_forward.default, tuple(arguments[name] for name in FORWARD_ARGUMENTS)
    )


@pytest.mark.parametrize("case", OPCHECK_CASES, ids=str)
def test_opcheck_passes_on_the_elementwise_operator(case: Case, device: str) -> None:
    arguments = forward_arguments(case, device)
    arguments["statistics"] = forward(arguments)[1]
    torch.library.opcheck(
        torch.ops.fused_bn.batch_norm_elementwise.default,
        tuple(arguments[name] for name in ELEMENTWISE_ARGUMENTS),
    )


@pytest.mark.parametrize("case", OPCHECK_CASES, ids=str)
def test_opcheck_passes_on_the_backward_operator(case: Case, device: str) -> None:
    masks = (
        [True, case.residual, True, True, True],
        [True, False, False, False, False],
        [False, case.residual, True, True, True],
    )
    for mask in masks if case in (OPCHECK_CASES[0], OPCHECK_CASES[-1]) else masks[:1]:
        arguments = backward_arguments(case, device, output_mask=mask)
        torch.library.opcheck(
            torch.ops.fused_bn.batch_norm_backward.default,
            tuple(arguments[name] for name in BACKWARD_ARGUMENTS),
        )


def strange_layouts(shape: tuple[int, ...]) -> Iterator[Tensor]:
    """Every memory format, and other strides: sliced, transposed, expanded."""
    x = torch.randn(shape)
    for layout in layouts(shape):
        yield in_layout(x, layout)
        yield in_layout(torch.randn((shape[0], 2 * shape[1], *shape[2:])), layout)[:, ::2]
        yield in_layout(torch.randn((*shape[:-1], shape[-1] + 3)), layout)[..., : shape[-1]]
    yield x.transpose(0, 1).contiguous().transpose(0, 1)
    if len(shape) > 2:
        yield x.transpose(1, -1).contiguous().transpose(1, -1)
        yield x[..., :1].expand(shape)


FAKE_SHAPES = [
    (3, 5, 4, 2),
    (3, 1, 4, 2),
    (3, 5, 1, 1),
    (1, 5, 4, 2),
    (1, 1, 4, 1),
    (0, 5, 4, 2),
    (3, 5, 0, 2),
    (4, 6),
    (4, 1),
    (0, 6),
    (3, 5, 7),
    (3, 1, 7),
    (2, 3, 2, 3, 2),
    (2, 1, 2, 3, 2),
    (0, 3, 2, 3, 2),
]


def shapes_and_strides(tensors: Any) -> list[Any]:
    listed = [tensors] if isinstance(tensors, Tensor) else list(tensors)
    return [(tuple(t.shape), t.stride(), t.dtype, t.device) for t in listed]


@pytest.mark.parametrize("shape", FAKE_SHAPES, ids=str)
def test_fake_kernels_give_the_strides_of_the_real_ones(shape: tuple[int, ...]) -> None:
    """Shape, strides, dtype and device, over layouts, empty tensors and C = 1, forward and backward."""
    for x in strange_layouts(shape):
        for (dtype, parameter_dtype), residual in product(DTYPES, (False, True)):
            arguments = forward_arguments(Case(shape, "contiguous", dtype, parameter_dtype))
            arguments["input"] = torch.empty_strided(x.size(), x.stride(), dtype=dtype)
            arguments["residual"] = (
                torch.empty_strided(x.size(), x.stride(), dtype=dtype) if residual else None
            )
            for operator in (user_operator, forward):
                assert fake(operator, arguments) == shapes_and_strides(operator(arguments)), (
                    x.stride(),
                    dtype,
                )
            _, statistics, mask = forward(arguments)
            arguments |= {
                "grad_output": torch.ones_like(x, dtype=dtype),
                "residual": None,
                "statistics": statistics,
                "mask": mask if residual and mask.numel() > 0 else None,
                "output_mask": [residual, residual, True, residual, residual],
            }
            assert fake(backward, arguments) == shapes_and_strides(backward(arguments)), (x.stride(), dtype)


def fake(operator: Callable[[dict[str, Any]], Any], arguments: dict[str, Any]) -> list[Any]:
    with FakeTensorMode() as mode:
        imagined = {
            name: mode.from_tensor(value) if isinstance(value, Tensor) else value
            for name, value in arguments.items()
        }
        return shapes_and_strides(operator(imagined))


def net(activation: Any, **options: Any) -> fused_bn.BatchNorm2d:
    norm = fused_bn.BatchNorm2d(6, activation=activation, **options)
    generator = torch.Generator().manual_seed(1)
    for parameter in norm.parameters():
        nn.init.uniform_(parameter, -1.5, 1.5, generator=generator)
    return norm


def trained(function: Callable[[Tensor], Tensor], norm: nn.Module, layout: str, device: str) -> list[Any]:
    """Two training steps and an evaluation: outputs, gradients and buffers."""
    generator = torch.Generator().manual_seed(2)
    found: list[Any] = []
    for training in (True, True, False):
        norm.train(training)
        x = in_layout(torch.randn(4, 6, 5, 3, generator=generator).to(device), layout).requires_grad_()
        y = function(x)
        y.backward(in_layout(torch.randn(4, 6, 5, 3, generator=generator).to(device), layout))
        found += [y.detach(), present(x.grad), *(parameter.grad for parameter in norm.parameters())]
        found += [buffer.clone() for buffer in norm.buffers()]
        found += [y.stride(), present(x.grad).stride()]
    return found


def assert_same(left: list[Any], right: list[Any]) -> None:
    for mine, other in zip(left, right, strict=True):
        assert same_bits(mine, other) if isinstance(mine, Tensor) else mine == other


COMPILED_OPTIONS: dict[str, dict[str, Any]] = {
    "default": {},
    "momentum None": {"momentum": None},
    "affine off": {"affine": False},
    "tracking off": {"track_running_stats": False},
}


@pytest.mark.parametrize("layout", ["contiguous", "channels_last"])
@pytest.mark.parametrize("activation", ["none", "relu"])
@pytest.mark.parametrize("options", COMPILED_OPTIONS)
def test_full_graph_compilation_is_bit_equal_to_eager(
    options: str, activation: str, layout: str, device: str
) -> None:
    """No graph break, also with momentum=None [194504]. The running buffers end up the same."""
    eager = net(activation, **COMPILED_OPTIONS[options]).to(device)
    compiled = copy.deepcopy(eager)
    function = torch.compile(compiled, fullgraph=True, backend="aot_eager")
    assert_same(trained(function, compiled, layout, device), trained(eager, eager, layout, device))


@pytest.mark.real_gpu("Triton")
def test_inductor_is_bit_equal_to_eager(device: str) -> None:
    """The default backend plans memory and reorders. It must respect the operators' writes to buffers."""
    eager = net("relu", momentum=None).to(device)
    compiled = copy.deepcopy(eager)
    function = torch.compile(compiled, fullgraph=True)
    assert_same(
        trained(function, compiled, "channels_last", device), trained(eager, eager, "channels_last", device)
    )


def test_dynamic_batch_sizes_compile_once(device: str) -> None:
    """A smaller last batch must not recompile for each size, and must be right."""
    eager = net("relu").to(device)
    compiled = copy.deepcopy(eager)
    counter = CompileCounterWithBackend("aot_eager")
    function = torch.compile(compiled, fullgraph=True, backend=counter, dynamic=True)
    counts = []
    for size in (8, 5, 3, 2):
        x = torch.randn(size, 6, 4 + size, 3, device=device)
        assert torch.equal(function(x), eager(x))
        counts.append(counter.frame_count)
    assert len(set(counts)) == 1
    assert_same(list(compiled.buffers()), list(eager.buffers()))


def test_compiled_functional_mutates_the_buffers_it_was_given(device: str) -> None:
    case = Case((4, 6, 5, 3), momentum=None)

    def call(tensors: Any) -> Tensor:
        return fused_bn.functional.batch_norm(
            tensors.input,
            tensors.running_mean,
            tensors.running_var,
            tensors.weight,
            tensors.bias,
            True,
            None,
            activation="relu",
            num_batches_tracked=tensors.num_batches_tracked,
        )

    eager, compiled = make_tensors(case, device), make_tensors(case, device)
    expected = call(eager)
    assert torch.equal(torch.compile(call, fullgraph=True, backend="aot_eager")(compiled), expected)
    for name in ("running_mean", "running_var", "num_batches_tracked"):
        assert same_bits(getattr(compiled, name), getattr(eager, name))
    assert present(compiled.num_batches_tracked) == 3


@pytest.mark.parametrize("training", [True, False], ids=["training", "evaluation"])
def test_export_gives_one_node_and_the_same_values(training: bool) -> None:
    norm = net("relu").train(training)
    x = torch.randn(4, 6, 5, 3)
    program = torch.export.export(copy.deepcopy(norm), (x,))
    called = [node.target for node in program.graph.nodes if node.op == "call_function"]
    ours = torch.ops.fused_bn
    assert called.count(ours.batch_norm.default if training else ours.batch_norm_inference.default) == 1
    assert len([target for target in called if "getitem" not in str(target)]) == 1
    assert torch.equal(program.module()(x), norm(x))


def test_fake_tensors_and_meta_modules_propagate_shapes() -> None:
    """A model on the meta device, as for large models, computes shapes and nothing else."""
    for training in (True, False):
        norm = fused_bn.BatchNorm2d(6, device="meta", activation="relu").train(training)
        y = norm(torch.empty(4, 6, 5, 3, device="meta").to(memory_format=torch.channels_last))
        assert y.device.type == "meta"
        assert y.shape == (4, 6, 5, 3)
        assert y.is_contiguous(memory_format=torch.channels_last)


def test_compiled_misuse_raises_and_does_not_return() -> None:
    """A wrong shape must raise while torch traces, not compile into a call that reads out of bounds."""
    for wrong in ({"weight": torch.ones(7)}, {"running_mean": torch.ones(5)}, {"activation": "swish"}):
        arguments = forward_arguments(Case((4, 6, 5, 3)), "cpu", **wrong)
        with pytest.raises(Exception):  # noqa: B017, PT011  (the compiler wraps it in a type of its own)
            torch.compile(user_operator, backend="aot_eager")(arguments)


def refusal(operator: Callable[[dict[str, Any]], Any], arguments: dict[str, Any]) -> tuple[type, str]:
    with pytest.raises((RuntimeError, ValueError, NotImplementedError)) as caught:
        operator(arguments)
    return caught.type, str(caught.value).splitlines()[0]


# torch itself refuses a sparse tensor and a mask of the wrong length before a kernel is called. Only real
# tensors share memory.
REAL_ONLY = ("sparse", "output_mask of three", "share")


def misuse_of_fakes() -> Iterator[Any]:
    for operator, table in (
        (user_operator, WRONG_FORWARD),
        (forward, WRONG_FORWARD),
        (backward, WRONG_BACKWARD),
    ):
        for name, wrong in table.items():
            if not any(part in name for part in REAL_ONLY):
                yield pytest.param(operator, wrong, id=f"{operator.__name__}-{name}")


@pytest.mark.parametrize(("operator", "wrong"), list(misuse_of_fakes()))
def test_fake_kernels_refuse_what_the_real_ones_refuse(operator: Any, wrong: dict[str, Any]) -> None:
    """The same type and text, under FakeTensorMode and on the meta device.

    torch compares devices of fake tensors itself, and takes NotImplementedError for a missing Meta kernel.
    """
    case = Case((2, 3, 4, 4))
    arguments = (backward_arguments if operator is backward else forward_arguments)(case) | wrong
    kind, text = refusal(operator, arguments)
    expected = (RuntimeError if kind is NotImplementedError else kind, text)
    found = refusal(lambda given: fake(operator, given), arguments)
    if "meta" in text:
        assert re.search("two (different )?devices", found[1])
        return
    assert found == expected
    on_meta = {k: v.to("meta") if isinstance(v, Tensor) else v for k, v in arguments.items()}
    assert refusal(operator, on_meta) == expected


def test_export_refuses_what_nn_batchnorm_refuses() -> None:
    """A wrong number of channels and one value per channel raise before a program is made."""
    for shape in ((4, 7, 5, 3), (1, 6, 1, 1)):
        for norm in (net("relu"), nn.BatchNorm2d(6)):
            with pytest.raises(
                Exception, match=r"should contain 7 elements not 6|more than 1 value per channel"
            ):
                torch.export.export(norm, (torch.randn(shape),))


def test_export_with_a_dynamic_batch_runs_other_sizes() -> None:
    """The checks work on symbolic sizes and do not specialise the program to one size."""
    norm = net("relu").eval()
    batch = torch.export.Dim("batch", min=2, max=64)
    program = torch.export.export(norm, (torch.randn(4, 6, 5, 3),), dynamic_shapes=({0: batch},))
    for size in (2, 9):
        x = torch.randn(size, 6, 5, 3)
        assert torch.equal(program.module()(x), norm(x))

"""Compiled modules and functions with a residual: values, graph breaks, and the number of compilations."""

import copy
from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch._dynamo.testing import CompileCounterWithBackend

import fused_bn
from fused_bn import _tracing
from fused_bn._activations import ACTIVATIONS
from fused_bn.functional import batch_norm
from tests.cases import PARAMS, in_layout, present, same_bits
from tests.modules.test_export import BOTH_SIDES, inputs
from tests.twins import Original, WithResidual

pytestmark = [pytest.mark.needs_extension, pytest.mark.usefixtures("fresh_compiler", "keeps_fused")]


Call = Callable[[Tensor, Tensor], Tensor]


def one_call(function: Call, given: tuple[Tensor, Tensor], device: str) -> list[Tensor]:
    """Output and gradients."""
    x, residual = (t.to(device).detach().requires_grad_() for t in given)
    y = function(x, residual)
    y.backward(torch.linspace(-1, 1, y.numel(), device=device).view(y.shape))
    return [y.detach(), present(x.grad), present(residual.grad)]


def assert_same_calls(
    function: Call, module: nn.Module, eager: nn.Module, shapes: tuple[tuple[int, ...], ...], device: str
) -> None:
    """Training, then evaluation, in every shape: outputs, gradients and statistics are equal bit for bit."""
    for training in (True, False):
        for seed, shape in enumerate(shapes):
            given = inputs(shape, seed)
            found: list[list[Tensor | None]] = []
            for call, owner in ((function, module), (eager, eager)):
                # A kept gradient would lie in memory that the CUDA graph's next replay overwrites.
                owner.train(training).zero_grad()
                values = one_call(call, given, device)
                found.append([*values, *(p.grad for p in owner.parameters()), *owner.buffers()])
            assert all(same_bits(mine, other) for mine, other in zip(*found, strict=True))


@pytest.mark.parametrize("training", [True, False], ids=["training", "evaluation"])
def test_training_compiles_to_the_fused_operator(training: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    """Evaluation uses PyTorch's own operators, unless the fixture keeps the fused operator."""
    monkeypatch.setattr(_tracing, "_keeps_fused", False)
    found: list[str] = []

    def backend(graph: torch.fx.GraphModule, _: list[Tensor]) -> Callable[..., Any]:
        found.extend(str(node.target) for node in graph.graph.nodes)
        return graph.forward

    norm = fused_bn.BatchNorm2d(6, activation="relu").train(training)
    torch.compile(norm, fullgraph=True, backend=backend)(torch.randn(4, 6, 5, 5))
    assert any("fused_bn" in target for target in found) is training


@pytest.mark.parametrize("dynamic", [True, False], ids=["dynamic", "static"])
@pytest.mark.parametrize(("activation", "momentum"), [("none", 0.1), ("relu", None), ("silu", 0.1)])
def test_compiled_modules_are_bit_equal_to_eager_with_a_residual(
    activation: str, momentum: float | None, dynamic: bool, device: str
) -> None:
    """One graph, forward and backward. The mask's size follows the image's."""
    eager = WithResidual(activation, momentum=momentum).to(device)
    compiled = copy.deepcopy(eager)
    function = torch.compile(compiled, fullgraph=True, dynamic=dynamic, backend="aot_eager")
    assert_same_calls(function, compiled, eager, BOTH_SIDES if dynamic else BOTH_SIDES[:2], device)
    assert compiled.norm.num_batches_tracked == (len(BOTH_SIDES) if dynamic else 2)


@pytest.mark.parametrize("activation", ACTIVATIONS)
def test_every_activation_compiles(activation: str, device: str) -> None:
    eager = WithResidual(activation).to(device)
    compiled = copy.deepcopy(eager)
    function = torch.compile(compiled, fullgraph=True, backend="aot_eager")
    assert_same_calls(function, compiled, eager, BOTH_SIDES[:1], device)


class OddPlanes(nn.Module):
    """Inductor chooses the layout of a convolution's output."""

    def __init__(self, activation: Any) -> None:
        super().__init__()
        self.conv = nn.Conv2d(4, 6, 3, padding=1)
        self.norm = fused_bn.BatchNorm2d(6, activation=activation)
        self.head = nn.Conv2d(6, 4, 1)

    def forward(self, x: Tensor, residual: Tensor) -> Tensor:
        return self.head(self.norm(self.conv(x), residual))


@pytest.mark.real_gpu("Triton")
@pytest.mark.parametrize("training", [True, False], ids=["training", "evaluation"])
@pytest.mark.parametrize("size", [3, 7])
def test_a_mask_has_a_size_that_no_layout_changes(size: int, training: bool, device: str) -> None:
    """3x3 planes are rows of 9. If rows were padded to bytes, the mask's size would depend on the layout."""
    model = OddPlanes("relu").to(device).train(training)
    x = torch.randn(4, 4, size, size, device=device)
    residual = torch.randn(4, 6, size, size, device=device, requires_grad=True)
    found = []
    for run in (model, torch.compile(model)):
        output = run(x, residual)
        wanted = [*model.parameters(), residual]
        found.append([output.detach(), *torch.autograd.grad(output.square().sum(), wanted)])
    for eager, compiled in zip(*found, strict=True):
        # Convolutions add up to 4 * 49 products in another order, with two roundings each. In training the
        # gradient of the first bias is 0, a sum of terms of unit size.
        size_of_terms = max(1.0, float(eager.abs().max()))
        torch.testing.assert_close(compiled, eager, rtol=0, atol=400 * 2.0**-24 * size_of_terms)


@pytest.mark.real_gpu("Triton")
def test_inductor_with_a_residual_is_bit_equal_to_eager(device: str) -> None:
    """The default backend, for images with both fewer and more than 64 pixels."""
    eager = WithResidual("relu").to(device)
    compiled = copy.deepcopy(eager)
    function = torch.compile(compiled, fullgraph=True, dynamic=True)
    assert_same_calls(function, compiled, eager, BOTH_SIDES[1:3], device)


def functional(buffers: list[Tensor], weight: Tensor, activation: str) -> Call:
    def call(x: Tensor, residual: Tensor) -> Tensor:
        return batch_norm(
            x,
            buffers[0],
            buffers[1],
            weight,
            training=True,
            momentum=None,
            activation=activation,
            activation_param=PARAMS.get(activation),
            residual=residual,
            num_batches_tracked=buffers[2],
        )

    return call


@pytest.mark.parametrize("dynamic", [True, False], ids=["dynamic", "static"])
@pytest.mark.parametrize("activation", ["leaky_relu", "elu"])
def test_the_function_compiles_as_the_module_does(activation: str, dynamic: bool, device: str) -> None:
    def buffers() -> list[Tensor]:
        return [t.to(device) for t in (torch.zeros(6), torch.ones(6), torch.tensor(0))]

    weight = torch.linspace(-1, 2, 6, device=device)
    mine, other = buffers(), buffers()
    eager = functional(other, weight, activation)
    call = functional(mine, weight, activation)
    function = torch.compile(call, fullgraph=True, dynamic=dynamic, backend="aot_eager")
    for seed, shape in enumerate(BOTH_SIDES[:3]):
        given = inputs(shape, seed)
        assert all(map(same_bits, one_call(function, given, device), one_call(eager, given, device)))
    assert all(map(same_bits, mine, other))
    assert mine[2] == 3


def compilations(module: nn.Module, dynamic: bool | None, device: str) -> list[int]:
    """The number of compilations after each of the sizes."""
    torch._dynamo.reset()
    counter = CompileCounterWithBackend("aot_eager")
    function = torch.compile(module, fullgraph=True, dynamic=dynamic, backend=counter)
    counts = []
    for shape in ((4, 6, 9, 8), *BOTH_SIDES[1:], (4, 6, 9, 8)):
        one_call(function, inputs(shape), device)
        counts.append(counter.frame_count)
    return counts


@pytest.mark.parametrize("activation", ["relu", "silu"])
def test_changing_sizes_compile_no_more_often_than_nn_batchnorm(activation: str, device: str) -> None:
    """dynamic=True compiles once for all sizes. The default compiles again when a size first changes."""
    ours = WithResidual(activation, momentum=None).to(device)
    theirs = Original(nn.BatchNorm2d(6), activation).to(device)
    once = compilations(ours, True, device)
    assert len(set(once)) == 1
    assert once == compilations(theirs, True, device)
    assert compilations(ours, None, device) == compilations(theirs, None, device)


def test_modes_compile_once_each(device: str) -> None:
    """Training, evaluation and frozen are constants of a graph. Going back to one compiles nothing."""
    module = WithResidual("relu").to(device)
    counter = CompileCounterWithBackend("aot_eager")
    function = torch.compile(module, fullgraph=True, backend=counter)
    for turn in range(2):
        for training, frozen in ((True, False), (False, False), (True, True)):
            module.train(training)
            module.norm.frozen = frozen
            one_call(function, inputs(), device)
        assert counter.frame_count == 3, turn
    assert module.norm.num_batches_tracked == 2


def test_nothing_breaks_the_graph(device: str) -> None:
    """A whole block, with hooks and a parametrised weight."""

    class Absolute(nn.Module):
        def forward(self, weight: Tensor) -> Tensor:
            return weight.abs()

    norms = [fused_bn.BatchNorm2d(6, activation=name, momentum=None).to(device) for name in ("relu", "gelu")]
    torch.nn.utils.parametrize.register_parametrization(norms[0], "weight", Absolute())
    norms[1].register_forward_pre_hook(lambda _, args: (args[0] + 1, *args[1:]))

    def block(x: Tensor, residual: Tensor) -> Tensor:
        return norms[1](norms[0](x, residual), x)

    given = tuple(t.to(device) for t in inputs())
    found = torch._dynamo.explain(block)(*given)
    assert (found.graph_count, found.graph_break_count) == (1, 0)
    expected = copy.deepcopy(norms)
    y = torch.compile(block, fullgraph=True, backend="aot_eager")(*given)
    assert torch.equal(y, expected[1](expected[0](*given), given[0]))


@pytest.mark.real_gpu("Triton")
def test_cuda_graphs_of_reduce_overhead_run(device: str) -> None:
    """On the CPU the mode records no graphs, and must change nothing."""
    eager = WithResidual("relu").to(device)
    compiled = copy.deepcopy(eager)
    function = torch.compile(compiled, fullgraph=True, mode="reduce-overhead")
    assert_same_calls(function, compiled, eager, BOTH_SIDES[:1], device)


@pytest.mark.real_gpu("Triton")
@pytest.mark.cuda
@pytest.mark.parametrize("activation", ["relu", "silu"])
def test_cuda_graphs_replay_with_fresh_input_and_move_the_statistics(activation: str) -> None:
    """From the third call on, steps are replays. They also write the statistics and the counter."""
    eager = WithResidual(activation, momentum=None).to("cuda")
    compiled = copy.deepcopy(eager)
    function = torch.compile(compiled, fullgraph=True, mode="reduce-overhead")

    def whole(x: Tensor, residual: Tensor) -> Tensor:
        torch.compiler.cudagraph_mark_step_begin()
        output: Tensor = function(x, residual)
        return output

    assert_same_calls(whole, compiled, eager, BOTH_SIDES[:1] * 6, "cuda")
    assert compiled.norm.num_batches_tracked == 6


@pytest.mark.parametrize(
    "layouts", [("contiguous", "channels_last"), ("channels_last", "contiguous")], ids=str
)
def test_compiled_strides_are_the_eager_ones(layouts: tuple[str, str], device: str) -> None:
    """Input and residual have two layouts. Output and gradients have the layouts of eager mode."""
    eager: Any = WithResidual("relu").to(device)
    compiled = torch.compile(copy.deepcopy(eager), fullgraph=True, backend="aot_eager")
    given = [in_layout(t.to(device), layout) for t, layout in zip(inputs(), layouts, strict=True)]
    strides = []
    for function in (eager, compiled):
        x, residual = (t.detach().requires_grad_() for t in given)
        y = function(x, residual)
        y.sum().backward()
        strides.append([t.stride() for t in (y, present(x.grad), present(residual.grad))])
    assert strides[0] == strides[1]

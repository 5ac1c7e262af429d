"""torch.export, AOTInductor and torch.jit.trace: models that leave Python, and other sizes and devices."""

import io
import shutil
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.export import Dim, ExportedProgram, export
from torch.export.passes import move_to_device_pass

import fused_bn
from fused_bn._activations import ACTIVATIONS
from tests.cases import present, why_no_cuda
from tests.test_module import OUTPUT_TOLERANCE
from tests.twins import WithResidual

pytestmark = pytest.mark.needs_extension

SHAPE = (4, 6, 9, 9)
BOTH_SIDES = (SHAPE, (9, 6, 9, 9), (3, 6, 4, 5), (2, 6, 64, 2), (70, 6, 3, 21))
"""Images below and above 64 pixels, where the mask of forward begins to lie in another way."""

DYNAMIC: dict[str, Any] = {
    "static": None,
    "batch": {0: Dim("batch", min=2, max=1024)},
    "batch and image": {
        0: Dim("batch", min=2, max=1024),
        2: Dim("height", min=2, max=512),
        3: Dim("width", min=2, max=512),
    },
    "automatic": {0: Dim.AUTO, 2: Dim.AUTO, 3: Dim.AUTO},
}
SIZES = {"static": BOTH_SIDES[:1], "batch": BOTH_SIDES[:2]}


def model(activation: str = "relu", training: bool = False, **options: Any) -> WithResidual:
    torch.manual_seed(0)
    made = WithResidual(activation, **options)
    made(*inputs())
    return made.train(training)


def inputs(shape: tuple[int, ...] = SHAPE, seed: int = 0) -> tuple[Tensor, Tensor]:
    generator = torch.Generator().manual_seed(seed)
    return torch.randn(shape, generator=generator) * 3, torch.randn(shape, generator=generator)


def exported(given: nn.Module, dynamic: str = "static", strict: bool = False) -> ExportedProgram:
    sizes = DYNAMIC[dynamic]
    return export(given, inputs(), dynamic_shapes=sizes and (sizes, sizes), strict=strict)


def assert_runs_as(program: nn.Module, original: nn.Module, shapes: Any) -> None:
    """Outputs and buffers, bit for bit: the same kernels are called."""
    for seed, shape in enumerate(shapes):
        given = inputs(shape, seed)
        assert torch.equal(program(*given), original(*given)), shape
    for name, value in program.named_buffers():  # without those that evaluation does not read
        assert torch.equal(value, original.get_buffer(name)), name


@pytest.mark.parametrize("strict", [False, True], ids=["non-strict", "strict"])
@pytest.mark.parametrize("dynamic", DYNAMIC)
@pytest.mark.parametrize("training", [True, False], ids=["training", "evaluation"])
@pytest.mark.parametrize("activation", ["relu", "silu"])
def test_exported_programs_run_all_sizes_they_are_for(
    activation: str, training: bool, dynamic: str, strict: bool
) -> None:
    """No guard on a size is left, although the size of the mask depends on that of the image."""
    original = model(activation, training)
    program = exported(model(activation, training), dynamic, strict)
    called = [node.target for node in program.graph.nodes if node.op == "call_function"]
    assert [target for target in called if "sym_" not in str(target)] == [
        torch.ops.fused_bn.batch_norm.default
    ]
    assert_runs_as(program.module(), original, SIZES.get(dynamic, BOTH_SIDES))


@pytest.mark.parametrize("activation", ACTIVATIONS)
def test_every_activation_is_exported_with_momentum_none(activation: str) -> None:
    original = model(activation, training=True, momentum=None)
    program = exported(model(activation, training=True, momentum=None), "batch and image")
    assert_runs_as(program.module(), original, BOTH_SIDES)


@pytest.mark.parametrize("training", [True, False], ids=["training", "evaluation"])
def test_decomposed_programs_run(training: bool) -> None:
    """Below autograd, as backends take them: the forward operator, functionalised, its buffers written."""
    program = exported(model(training=training), "batch").run_decompositions()
    assert any("batch_norm_forward" in str(node.args) for node in program.graph.nodes)
    assert_runs_as(program.module(), model(training=training), SIZES["batch"])


@pytest.mark.parametrize("training", [True, False], ids=["training", "evaluation"])
def test_programs_are_saved_and_loaded(training: bool) -> None:
    """Parameters, statistics and the range of sizes come back."""
    file = io.BytesIO()
    torch.export.save(exported(model(training=training), "batch and image"), file)
    file.seek(0)
    assert_runs_as(torch.export.load(file).module(), model(training=training), BOTH_SIDES)


@pytest.mark.parametrize("training", [True, False], ids=["training", "evaluation"])
@pytest.mark.parametrize("target", ["meta", "cuda"])
def test_a_program_runs_on_another_device_than_it_was_exported_on(target: str, training: bool) -> None:
    """No kernel, layout or device of the exporting machine is bound into it."""
    if target == "cuda" and why_no_cuda():
        pytest.skip(why_no_cuda())
    original = model(training=training)
    moved = move_to_device_pass(exported(model(training=training), "batch and image"), target).module()
    for shape in BOTH_SIDES:
        x, residual = inputs(shape)
        y = moved(x.to(target), residual.to(target))
        assert (y.device.type, y.shape) == (target, x.shape)
        if target == "cuda":
            torch.testing.assert_close(y.cpu(), original(x, residual), rtol=0, atol=OUTPUT_TOLERANCE)


@pytest.mark.parametrize("training", [True, False], ids=["training", "evaluation"])
def test_a_program_exported_without_data_runs_with_it(training: bool) -> None:
    """A model too large for the exporting machine: exported from fake tensors, weights loaded afterwards."""
    with FakeTensorMode():
        program = export(model(training=training), inputs())
    unflattened = torch.export.unflatten(program)
    original = model(training=training)
    unflattened.load_state_dict({k: v.clone() for k, v in original.state_dict().items()}, assign=True)
    assert_runs_as(unflattened, original, [SHAPE])


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore")
@pytest.mark.skipif(shutil.which("c++") is None and shutil.which("g++") is None, reason="no C++ compiler")
def test_aot_inductor_packages_run(tmp_path: Path) -> None:
    """Compiled ahead of time for any batch, with a residual: our operator is called from C++."""
    with torch.no_grad():
        program = exported(model(), "batch")
        path = torch._inductor.aoti_compile_and_package(program, package_path=str(tmp_path / "model.pt2"))
        packaged = torch._inductor.aoti_load_package(path)
        for shape in SIZES["batch"]:
            assert torch.equal(packaged(*inputs(shape)), model()(*inputs(shape)))


@pytest.mark.filterwarnings("ignore::DeprecationWarning", "ignore::torch.jit.TracerWarning")
@pytest.mark.parametrize("activation", ["relu", "elu"])
def test_traced_modules_are_saved_frozen_and_run(activation: str, tmp_path: Path) -> None:
    """torch.jit.trace in evaluation, alone and with a residual, for other sizes too."""
    norm = model(activation).norm
    x, residual = inputs()
    for given, others in (((x,), inputs((7, 6, 4, 4))[:1]), ((x, residual), inputs((7, 6, 4, 4)))):
        traced = torch.jit.trace(norm, given)
        torch.jit.save(traced, tmp_path / "traced.pt")
        for module in (traced, torch.jit.load(tmp_path / "traced.pt"), torch.jit.freeze(traced)):
            assert torch.equal(module(*others), norm(*others))


def test_modules_run_under_fake_tensors() -> None:
    """For their shapes, forward and backward, also with a residual of another layout."""
    with FakeTensorMode():
        for activation in ("none", "relu", "silu"):
            norm = fused_bn.BatchNorm2d(6, activation=activation)
            x = torch.randn(SHAPE, requires_grad=True)
            residual = torch.randn(SHAPE).to(memory_format=torch.channels_last).requires_grad_()
            norm(x, residual).sum().backward()
            assert present(x.grad).stride() == x.stride()
            assert present(residual.grad).shape == residual.shape


def test_fx_records_the_module_whole() -> None:
    """As it does with nn.BatchNorm2d: train() and eval() of the traced model still mean something."""

    class Block(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.conv = nn.Conv2d(6, 6, 1)
            self.layers = nn.Sequential(fused_bn.BatchNorm2d(6), fused_bn.BatchNorm2d(6, activation="relu"))

        def forward(self, x: Tensor) -> Tensor:
            return self.layers[1](self.layers[0](self.conv(x)), x)

    block = Block()
    traced = torch.fx.symbolic_trace(block)
    assert [node.target for node in traced.graph.nodes if node.op == "call_module"] == [
        "conv",
        "layers.0",
        "layers.1",
    ]
    x, _ = inputs()
    for training, count in ((True, 1), (False, 1), (True, 2)):
        traced.train(training)(x)
        assert traced.get_buffer("layers.1.num_batches_tracked") == count
    assert torch.equal(traced.eval()(x), block.eval()(x))

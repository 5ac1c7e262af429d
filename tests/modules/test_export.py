"""torch.export, AOTInductor and torch.jit.trace: programs without Python, for other sizes and devices.

A program holds PyTorch's own operators, or ours on request. Both run all sizes that they allow.
"""

import io
import shutil
import subprocess
import sys
from collections.abc import Callable
from contextlib import AbstractContextManager, nullcontext
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
from tests.cases import present
from tests.modules.test_module import OUTPUT_TOLERANCE
from tests.twins import WithResidual

pytestmark = pytest.mark.needs_extension

SHAPE = (4, 6, 9, 9)
BOTH_SIDES = (SHAPE, (9, 6, 9, 9), (3, 6, 4, 5), (2, 6, 64, 2), (70, 6, 3, 21))
"""Images of less and more than 64 pixels, where the forward's mask has different layouts."""

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
WAYS: dict[str, Callable[[], AbstractContextManager[None]]] = {
    "plain": nullcontext,
    "fused": fused_bn.fused_in_export,
}
by_way = pytest.mark.parametrize("way", WAYS)


def model(activation: str = "relu", training: bool = False, **options: Any) -> WithResidual:
    torch.manual_seed(0)
    made = WithResidual(activation, **options)
    made(*inputs())
    return made.train(training)


def inputs(shape: tuple[int, ...] = SHAPE, seed: int = 0) -> tuple[Tensor, Tensor]:
    generator = torch.Generator().manual_seed(seed)
    return torch.randn(shape, generator=generator) * 3, torch.randn(shape, generator=generator)


def exported(
    given: nn.Module, dynamic: str = "static", strict: bool = False, way: str = "plain"
) -> ExportedProgram:
    sizes = DYNAMIC[dynamic]
    with WAYS[way]():
        return export(given, inputs(), dynamic_shapes=sizes and (sizes, sizes), strict=strict)


def assert_runs_as(program: nn.Module, original: nn.Module, shapes: Any, way: str = "plain") -> None:
    """Outputs and buffers: equal bits if the same kernels run, otherwise up to rounding."""
    tolerance = 0.0 if way == "fused" else OUTPUT_TOLERANCE
    for seed, shape in enumerate(shapes):
        given = inputs(shape, seed)
        torch.testing.assert_close(program(*given), original(*given), rtol=0, atol=tolerance)
    for name, value in program.named_buffers():  # without the parameters that evaluation does not read
        torch.testing.assert_close(value, original.get_buffer(name), rtol=tolerance, atol=tolerance)


def called(program: ExportedProgram) -> list[Any]:
    """The program's operators, without arithmetic on sizes."""
    targets = (node.target for node in program.graph.nodes if node.op == "call_function")
    return [target for target in targets if "sym_" not in str(target)]


@pytest.mark.parametrize("strict", [False, True], ids=["non-strict", "strict"])
@pytest.mark.parametrize("dynamic", DYNAMIC)
@pytest.mark.parametrize("training", [True, False], ids=["training", "evaluation"])
@pytest.mark.parametrize("activation", ["relu", "silu"])
@by_way
def test_exported_programs_run_all_sizes_they_are_for(
    way: str, activation: str, training: bool, dynamic: str, strict: bool
) -> None:
    """No guard on a size remains, although the mask's size depends on the image's."""
    original = model(activation, training)
    program = exported(model(activation, training), dynamic, strict, way)
    aten, ours = torch.ops.aten, torch.ops.fused_bn
    plain = [*[aten.add_.Tensor] * training, aten.add.Tensor, getattr(aten, activation).default]
    fused = ours.batch_norm.default if training else ours.batch_norm_inference.default
    expected = [aten.batch_norm.default, *plain] if way == "plain" else [fused]
    assert called(program) == expected
    assert_runs_as(program.module(), original, SIZES.get(dynamic, BOTH_SIDES), way)


@pytest.mark.parametrize("activation", ACTIVATIONS)
@by_way
def test_every_activation_is_exported_with_momentum_none(way: str, activation: str) -> None:
    original = model(activation, training=True, momentum=None)
    program = exported(model(activation, training=True, momentum=None), "batch and image", way=way)
    assert_runs_as(program.module(), original, BOTH_SIDES, way)


@pytest.mark.parametrize("training", [True, False], ids=["training", "evaluation"])
@by_way
def test_decomposed_programs_run(way: str, training: bool) -> None:
    """Below autograd, as backends take programs: core ATen, or the functionalised forward operator."""
    program = exported(model(training=training), "batch", way=way).run_decompositions()
    has_ours = any("fused_bn" in f"{node.target} {node.args}" for node in program.graph.nodes)
    assert has_ours == (way == "fused")
    assert_runs_as(program.module(), model(training=training), SIZES["batch"], way)


@pytest.mark.parametrize("training", [True, False], ids=["training", "evaluation"])
@by_way
def test_programs_are_saved_and_loaded(way: str, training: bool) -> None:
    """Parameters, statistics and the range of sizes survive saving and loading."""
    file = io.BytesIO()
    torch.export.save(exported(model(training=training), "batch and image", way=way), file)
    file.seek(0)
    assert_runs_as(torch.export.load(file).module(), model(training=training), BOTH_SIDES, way)


LOAD = """
import sys, torch
program, traced = torch.export.load("program.pt2").module(), torch.jit.load("traced.pt")
given = torch.load("given.pt")
torch.save([program(*given), traced(*given)], "found.pt")
assert not any(name.startswith("fused_bn") for name in sys.modules)
"""


@pytest.mark.filterwarnings("ignore::DeprecationWarning")
def test_saved_programs_run_without_this_package(tmp_path: Path) -> None:
    torch.export.save(exported(model()), tmp_path / "program.pt2")
    torch.jit.save(torch.jit.trace(model(), inputs()), tmp_path / "traced.pt")
    torch.save(inputs(), tmp_path / "given.pt")
    subprocess.run([sys.executable, "-I", "-c", LOAD], cwd=tmp_path, check=True)
    for found in torch.load(tmp_path / "found.pt"):
        torch.testing.assert_close(found, model()(*inputs()), rtol=0, atol=OUTPUT_TOLERANCE)


@pytest.mark.parametrize("training", [True, False], ids=["training", "evaluation"])
@pytest.mark.parametrize("target", ["meta", "cuda"])
@by_way
def test_a_program_runs_on_another_device_than_it_was_exported_on(
    way: str, target: str, training: bool
) -> None:
    """The program contains no kernel, layout or device of the exporting machine."""
    original = model(training=training)
    program = exported(model(training=training), "batch and image", way=way)
    moved = move_to_device_pass(program, target).module()
    for shape in BOTH_SIDES:
        x, residual = inputs(shape)
        y = moved(x.to(target), residual.to(target))
        assert (y.device.type, y.shape) == (target, x.shape)
        if target == "cuda":
            torch.testing.assert_close(y.cpu(), original(x, residual), rtol=0, atol=OUTPUT_TOLERANCE)


@pytest.mark.parametrize("training", [True, False], ids=["training", "evaluation"])
@by_way
def test_a_program_exported_without_data_runs_with_it(way: str, training: bool) -> None:
    """A model too large for the exporting machine: exported from fake tensors, weights loaded afterwards."""
    with FakeTensorMode(), WAYS[way]():
        program = export(model(training=training), inputs())
    unflattened = torch.export.unflatten(program)
    original = model(training=training)
    unflattened.load_state_dict({k: v.clone() for k, v in original.state_dict().items()}, assign=True)
    assert_runs_as(unflattened, original, [SHAPE], way)


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore")
@pytest.mark.skipif(shutil.which("c++") is None and shutil.which("g++") is None, reason="no C++ compiler")
@by_way
def test_aot_inductor_packages_run(way: str, tmp_path: Path) -> None:
    """Compiled ahead of time for any batch, with a residual: inductor's kernels, or ours called from C++."""
    with torch.no_grad():
        program = exported(model(), "batch", way=way)
        path = torch._inductor.aoti_compile_and_package(program, package_path=str(tmp_path / "model.pt2"))
        packaged = torch._inductor.aoti_load_package(path)
        for shape in SIZES["batch"]:
            tolerance = 0.0 if way == "fused" else OUTPUT_TOLERANCE
            found, expected = packaged(*inputs(shape)), model()(*inputs(shape))
            torch.testing.assert_close(found, expected, rtol=0, atol=tolerance)


@pytest.mark.filterwarnings("ignore::DeprecationWarning", "ignore::torch.jit.TracerWarning")
@pytest.mark.parametrize("activation", ["relu", "elu"])
def test_traced_modules_are_saved_frozen_and_run(activation: str, tmp_path: Path) -> None:
    """torch.jit.trace in evaluation, alone and with a residual, also for other sizes."""
    norm = model(activation).norm
    x, residual = inputs()
    for given, others in (((x,), inputs((7, 6, 4, 4))[:1]), ((x, residual), inputs((7, 6, 4, 4)))):
        traced = torch.jit.trace(norm, given)
        torch.jit.save(traced, tmp_path / "traced.pt")
        for module in (traced, torch.jit.load(tmp_path / "traced.pt"), torch.jit.freeze(traced)):
            torch.testing.assert_close(module(*others), norm(*others), rtol=0, atol=OUTPUT_TOLERANCE)


def test_modules_run_under_fake_tensors() -> None:
    """Training programs, forward and backward, also with a residual of another layout."""
    with FakeTensorMode():
        for activation in ("none", "relu", "silu"):
            norm = fused_bn.BatchNorm2d(6, activation=activation)
            x = torch.randn(SHAPE, requires_grad=True)
            residual = torch.randn(SHAPE).to(memory_format=torch.channels_last).requires_grad_()
            norm(x, residual).sum().backward()
            assert present(x.grad).stride() == x.stride()
            assert present(residual.grad).shape == residual.shape


def test_fx_records_the_module_whole() -> None:
    """As with nn.BatchNorm2d, train() and eval() of the traced model still work."""

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

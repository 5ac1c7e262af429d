"""Tools that treat nn.BatchNorm* specially: each gets what it expects, or an error.

Each tool is the real one if it installs beside torch. `WORKS` is the table of docs/tools.md. A tool is listed
there if, and only if, it is tested here, on a fused model and on a model written with our norms.
"""

import copy
import warnings
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from itertools import product
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, fx, nn

import fused_bn
from fused_bn import _converters
from tests.cases import NEWER_TORCH
from tests.ops.test_backends import ROOT

pytestmark = [
    pytest.mark.needs_extension,
    pytest.mark.filterwarnings("ignore"),
    pytest.mark.usefixtures("fresh_compiler"),
]

TOLERANCE = 1e-4
"""Three layers of up to 75 products of unit size, in another order or with the norm folded into the weights:
75 * 3 * 2 roundings of float32 are 3e-5."""


class Block(nn.Module):
    """A typical model. `fuse` finds norm + ReLU and norm + addition + ReLU."""

    def __init__(self) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(8, 8, 3, padding=1, bias=False)
        self.bn1 = nn.BatchNorm2d(8)
        self.relu1 = nn.ReLU()
        self.conv2 = nn.Conv2d(8, 8, 3, padding=1, bias=False)
        self.bn2 = nn.BatchNorm2d(8)
        self.relu2 = nn.ReLU()

    def forward(self, x: Tensor) -> Tensor:
        out = self.relu1(self.bn1(self.conv1(x)))
        out = self.bn2(self.conv2(out))
        out += x
        return self.relu2(out)


class Written(nn.Module):
    """The same with our norms, which apply ReLU and add the residual."""

    def __init__(self) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(8, 8, 3, padding=1, bias=False)
        self.bn1 = fused_bn.BatchNorm2d(8, activation="relu")
        self.conv2 = nn.Conv2d(8, 8, 3, padding=1, bias=False)
        self.bn2 = fused_bn.BatchNorm2d(8, activation="relu")

    def forward(self, x: Tensor) -> Tensor:
        y: Tensor = self.bn2(self.conv2(self.bn1(self.conv1(x))), x)
        return y


def model(block: Callable[[], nn.Module]) -> nn.Module:
    torch.manual_seed(0)
    made = nn.Sequential(
        nn.Conv2d(3, 8, 3, padding=1), block(), nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(8, 4)
    )
    with torch.no_grad():
        for _ in range(3):  # with their own running statistics
            made(images())
    return made.eval()


def plain() -> nn.Module:
    return model(Block)


MODELS = {
    "fused": lambda: fused_bn.fuse(plain()),
    "recomputing": lambda: fused_bn.fuse(plain(), recompute=True),
    "written": lambda: model(Written),
}


def images(seed: int = 0) -> Tensor:
    return torch.randn(4, 3, 8, 8, generator=torch.Generator().manual_seed(seed)) * 2 + 1


def assert_same(found: Any, original: nn.Module, tolerance: float = TOLERANCE) -> None:
    torch.testing.assert_close(found, original(images()), rtol=0, atol=tolerance)


def tells_readers() -> None:
    if not _converters.EPS_TELLS_ITS_READERS:
        pytest.skip("with this torch the readers of eps are not known")


def tool(name: str) -> Any:
    return pytest.importorskip(name, reason=f"{name} is not installed")


# ---- exporters


def torch_export(m: nn.Module, _: Path) -> None:
    program = torch.export.export(m, (images(),)).run_decompositions()
    core = [node.target for node in program.graph.nodes if node.op == "call_function"]
    assert all("aten" in str(target) or "getitem" in str(target) for target in core), core
    assert_same(program.module()(images()), m)


def draft_export(m: nn.Module, _: Path) -> None:
    assert_same(torch.export.draft_export(m, (images(),)).module()(images()), m)


def onnx_by(dynamo: bool) -> Callable[[nn.Module, Path], None]:
    def export(m: nn.Module, folder: Path) -> None:
        tool("onnx")
        runtime = tool("onnxruntime")
        if dynamo:
            tool("onnxscript")
        path = str(folder / "model.onnx")
        torch.onnx.export(m, (images(),), path, dynamo=dynamo, verbose=False)
        session = runtime.InferenceSession(path)
        (found,) = session.run(None, {session.get_inputs()[0].name: images().numpy()})
        assert_same(torch.from_numpy(found), m)

    return export


def aot_inductor(m: nn.Module, folder: Path) -> None:
    with torch.no_grad():
        program = torch.export.export(m, (images(),))
        path = torch._inductor.aoti_compile_and_package(program, package_path=str(folder / "model.pt2"))
        assert_same(torch._inductor.aoti_load_package(path)(images()), m)


# ---- tracers and compilers


def jit_trace(m: nn.Module, _: Path) -> None:
    """It warns no more than with nn, and its freezing folds all norms into the convolutions."""
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        traced = torch.jit.trace(m, images())
    assert not [each for each in caught if "TracerWarning" in str(each.category)]
    frozen = torch.jit.freeze(traced)
    torch._C._jit_pass_fold_frozen_conv_bn(frozen.graph)
    assert "batch_norm" not in str(frozen.graph)
    assert_same(frozen(images()), m)


def compiled_for_evaluation(m: nn.Module, _: Path) -> None:
    """None of our operators is left, so inductor's freezing folds the norms."""
    from torch._inductor.utils import run_and_get_code

    for freezing in (False, True):
        torch.compiler.reset()
        with torch.no_grad(), torch._inductor.config.patch(freezing=freezing):
            found, code = run_and_get_code(torch.compile(m, fullgraph=True), images())
        assert "fused_bn" not in "".join(code)
        assert ("sqrt" in "".join(code)) != freezing  # of the variance
        assert_same(found, m)


def compiled_without_statistics(m: nn.Module, _: Path) -> None:
    """Evaluation with the batch's statistics also uses PyTorch's own operator."""
    from torch._inductor.utils import run_and_get_code

    for name in ("1.bn1", "1.bn2"):
        norm: Any = m.get_submodule(name)
        norm.track_running_stats, norm.running_mean, norm.running_var = False, None, None
    with torch.no_grad():
        found, code = run_and_get_code(torch.compile(m, fullgraph=True), images())
    assert "fused_bn" not in "".join(code)
    assert_same(found, m)


def fx_trace(m: nn.Module, _: Path) -> None:
    """Norms are called as modules, so train() and eval() work, and hooks run when the graph runs."""
    calls: list[object] = []
    norm = next(each for each in m.modules() if isinstance(each, nn.BatchNorm2d))
    norm.register_forward_pre_hook(lambda _, given: calls.append(given[0]))
    traced = fx.symbolic_trace(m)
    assert not calls
    assert_same(traced(images()), m)
    assert calls
    assert all(isinstance(each, Tensor) for each in calls)
    norms = [n for n, each in m.named_modules() if isinstance(each, nn.BatchNorm2d)]
    assert norms == [node.target for node in traced.graph.nodes if str(node.target) in norms]
    assert_same(traced.train()(images()), copy.deepcopy(m).train())


def functionalize(m: nn.Module, _: Path) -> None:
    assert_same(torch.func.functionalize(m)(images()), m)


# ---- quantization


def pt2e_evaluation(m: nn.Module, _: Path) -> None:
    """A training program that torchao moves to evaluation uses its running statistics alone.

    Also with momentum=None, with which nn.BatchNorm2d cannot be exported.
    """
    move = tool("torchao.quantization.pt2e").move_exported_model_to_eval
    for momentum in (0.1, None):
        for norm in (m.get_submodule("1.bn1"), m.get_submodule("1.bn2")):
            vars(norm)["momentum"] = momentum
        program = torch.export.export(m.train(), (images(),)).module()
        before = {name: value.clone() for name, value in program.named_buffers() if "running" in name}
        move(program)
        assert_same(program(images()), m.eval())
        assert all(torch.equal(value, program.get_buffer(name)) for name, value in before.items())


def pt2e_quantization(m: nn.Module, _: Path) -> None:
    """After calibration or quantization-aware training the norms are folded, as PyTorch's are."""
    pt2e = tool("torchao.quantization.pt2e.quantize_pt2e")
    x86 = tool("torchao.quantization.pt2e.quantizer.x86_inductor_quantizer")
    move = tool("torchao.quantization.pt2e").move_exported_model_to_eval
    for is_qat in (False, True):
        program = torch.export.export(m.train(is_qat), (images(),)).module()
        quantizer = x86.X86InductorQuantizer()
        quantizer.set_global(x86.get_default_x86_inductor_quantization_config(is_qat=is_qat))
        prepared = (pt2e.prepare_qat_pt2e if is_qat else pt2e.prepare_pt2e)(program, quantizer)
        prepared(images())
        if is_qat:
            move(prepared)
        converted = pt2e.convert_pt2e(prepared)
        assert not [node for node in converted.graph.nodes if "batch_norm" in str(node.target)]
        assert_same(converted(images()), m.eval(), EIGHT_BITS)


def fx_quantization(m: nn.Module, _: Path) -> None:
    from torch.ao.quantization import get_default_qconfig_mapping
    from torch.ao.quantization.quantize_fx import convert_fx, prepare_fx

    prepared = prepare_fx(copy.deepcopy(m), get_default_qconfig_mapping("x86"), (images(),))
    prepared(images())
    assert_same(convert_fx(prepared)(images()), m, EIGHT_BITS)


EIGHT_BITS = 0.1
"""Values of up to 6 in steps of 1/255 of their range, through four layers: 4 * 6 / 255 = 0.094."""


def eager_quantization(m: Any, _: Path) -> None:
    """Convolution, norm and ReLU become one module, for calibration and for training."""
    from torch.ao.quantization import fuse_modules, fuse_modules_qat

    names = ["1.conv1", "1.bn1", *["1.relu1"] * hasattr(m[1], "relu1")]
    folded = fuse_modules(copy.deepcopy(m), names)
    assert type(folded.get_submodule("1.conv1")) is torch.ao.nn.intrinsic.ConvReLU2d
    assert_same(folded(images()), m)
    trained = fuse_modules_qat(copy.deepcopy(m).train(), names)
    assert type(trained.get_submodule("1.conv1")) is torch.ao.nn.intrinsic.ConvBnReLU2d
    assert_same(trained(images()), copy.deepcopy(m).train())


def static_quantization(m: nn.Module, _: Path) -> None:
    """A norm without a convolution becomes the quantized norm. With an activation it is refused."""
    from torch.ao.quantization import DeQuantStub, QuantStub, convert, get_default_qconfig, prepare

    norm = m.get_submodule("1.bn1")
    whole: Any = nn.Sequential(QuantStub(), copy.deepcopy(norm), DeQuantStub())
    whole.qconfig = get_default_qconfig("x86")
    prepared = prepare(whole)
    x = torch.randn(4, 8, 4, 4)
    prepared(x)
    if norm.activation != "none":
        tells_readers()
        with pytest.raises(RuntimeError, match="applies relu"):
            convert(prepared)
        return
    converted = convert(prepared)
    assert type(converted[1]) is torch.ao.nn.quantized.BatchNorm2d
    torch.testing.assert_close(converted(x), norm(x), rtol=0, atol=EIGHT_BITS)


def dynamic_quantization(m: Any, _: Path) -> None:
    quantized = torch.ao.quantization.quantize_dynamic(copy.deepcopy(m), {nn.Linear})
    assert "quantized" in type(quantized.get_submodule("4")).__module__
    assert_same(quantized(images()), m, EIGHT_BITS)


# ---- other people's code


def flops_by_thop(m: nn.Module, _: Path) -> None:
    operations, _parameters = tool("thop").profile(copy.deepcopy(m), (images(),), verbose=False)
    convolutions = sum(each.weight.numel() * 64 for each in m.modules() if isinstance(each, nn.Conv2d))
    assert operations >= 4 * convolutions  # of 4 images, multiplications alone


def exact_classes(m: nn.Module, _: Path) -> None:
    for mode in (False, True):
        fused_bn.fuse(m, recompute=mode)
        assert [type(each) for each in m.modules()].count(nn.Conv2d) == 3
        assert type(m.get_submodule("4")) is nn.Linear


def opacus_validator(m: nn.Module, _: Path) -> None:
    """Batch norm mixes the samples of a batch, so a single sample has no gradient."""
    validator = tool("opacus.validators").ModuleValidator
    m.train()
    assert not validator.is_valid(m)
    fixed = validator.fix(copy.deepcopy(m))
    assert not [each for each in fixed.modules() if isinstance(each, nn.BatchNorm2d)]
    assert fixed(images()).shape == (4, 4)  # with its residual


def sharded_tensors(m: nn.Module, folder: Path) -> None:
    """As nn.BatchNorm2d, which torch 2.11 cannot shard: one process, each of the placements."""
    if not torch.distributed.is_available() or not NEWER_TORCH:
        pytest.skip("torch.distributed is not built, or does not shard batch norm")
    from torch.distributed.device_mesh import init_device_mesh
    from torch.distributed.tensor import Replicate, Shard, distribute_module, distribute_tensor

    with one_process(folder):
        mesh = init_device_mesh("cpu", (1,))
        norm = next(each for each in m.modules() if isinstance(each, nn.BatchNorm2d)).train()
        original = copy.deepcopy(norm)
        distributed = distribute_module(norm, mesh)
        compiled: Any = torch.compile(distributed, backend="aot_eager", fullgraph=True)
        calls: tuple[Any, ...] = (distributed, compiled)
        for call, placement in product(calls, (Shard(0), Shard(1), Replicate())):
            x = torch.randn(4, 8, 4, 4)
            found = call(distribute_tensor(x, mesh, [placement]))
            torch.testing.assert_close(found.full_tensor(), original(x), rtol=0, atol=TOLERANCE)


@contextmanager
def one_process(folder: Path) -> Iterator[None]:
    file = folder / "store"
    torch.distributed.init_process_group("gloo", init_method=f"file://{file}", rank=0, world_size=1)
    try:
        yield
    finally:
        torch.distributed.destroy_process_group()


WORKS: dict[str, Callable[[nn.Module, Path], None]] = {
    "torch.export, run_decompositions": torch_export,
    "torch.export.draft_export": draft_export,
    "torch.onnx.export(dynamo=True)": onnx_by(dynamo=True),
    "torch.onnx.export(dynamo=False)": onnx_by(dynamo=False),
    "AOTInductor": aot_inductor,
    "torch.jit.trace, freeze": jit_trace,
    "torch.compile for evaluation, freezing": compiled_for_evaluation,
    "torch.compile, track_running_stats=False": compiled_without_statistics,
    "torch.fx.symbolic_trace": fx_trace,
    "torch.func.functionalize": functionalize,
    "torchao: pt2e, move_exported_model_to_eval": pt2e_evaluation,
    "torchao: pt2e, prepare, prepare_qat, convert": pt2e_quantization,
    "torch.ao: prepare_fx, convert_fx": fx_quantization,
    "torch.ao: fuse_modules, fuse_modules_qat": eager_quantization,
    "torch.ao: prepare, convert": static_quantization,
    "torch.ao: quantize_dynamic": dynamic_quantization,
    "FLOP counters (thop)": flops_by_thop,
    "loops over exact classes of other modules": exact_classes,
    "opacus: ModuleValidator": opacus_validator,
    "DTensor: Shard(0), Shard(1), Replicate": sharded_tensors,
}


@pytest.mark.parametrize("kind", MODELS)
@pytest.mark.parametrize("name", WORKS)
def test_a_tool_works_as_with_nn(name: str, kind: str, tmp_path: Path) -> None:
    WORKS[name](MODELS[kind](), tmp_path)


# ---- the page


ELSEWHERE = (
    "nn.SyncBatchNorm.convert_sync_batchnorm",
    "torch.utils.mkldnn.to_mkldnn",
    "torch.nn.utils.fusion.fuse_conv_bn_eval",
    "timm: freeze_batch_norm_2d",
    "torch.jit.script",
)
"""Lines of the page that test_converters.py and test_unsupported.py test."""


def test_the_page_lists_what_is_tried() -> None:
    lines = (ROOT / "docs" / "tools.md").read_text().splitlines()
    names = [line.split(" | ")[0].removeprefix("| ") for line in lines if line.startswith("| ")]
    assert names[2:] == [*WORKS, *ELSEWHERE]

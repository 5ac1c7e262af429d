"""What fuse() keeps: names, objects, keys, optimisers, modes, hooks; copies, pickles, torch.compile."""

import copy
import importlib
import inspect
import io
import pickle
import threading
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F
from torch.utils.checkpoint import checkpoint

import fused_bn
from fused_bn.fusion import watch
from tests.fuse.fuse_models import BLOCKS, Basic, Pyramid, UNet, assert_same, images, made, step


class Outer(nn.Module):
    """A model with methods of its own."""

    def __init__(self) -> None:
        super().__init__()
        self.stem = nn.Sequential(nn.Conv2d(4, 4, 1), nn.BatchNorm2d(4), nn.ReLU())
        self.blocks = nn.ModuleList([Basic(), Basic(4, 6)])
        self.norm = nn.BatchNorm2d(6)

    def features(self, x: Tensor) -> Tensor:
        x = self.stem(x)
        for block in self.blocks:
            x = block(x)
        return x

    def forward(self, x: Tensor) -> Tensor:
        return F.silu(self.norm(self.features(x)))


def test_names_objects_and_state_dict_stay() -> None:
    """Fails if a module, parameter or buffer was replaced: optimisers and checkpoints would lose it."""
    model = made(Outer)
    keys = list(model.state_dict())
    kept = {name: id(each) for name, each in model.named_modules()}
    tensors = {name: id(each) for name, each in [*model.named_parameters(), *model.named_buffers()]}
    fused = fused_bn.fuse(model)
    assert fused is model
    assert isinstance(fused, Outer)
    assert type(fused).__name__ == "Outer"
    assert list(fused.state_dict()) == keys
    assert {name: id(each) for name, each in fused.named_modules()} == kept
    named = [*fused.named_parameters(), *fused.named_buffers()]
    assert {name: id(each) for name, each in named} == tensors
    assert fused.features(images()).shape == (3, 6, 6, 6)
    assert isinstance(fused.norm, fused_bn.BatchNorm2d)
    assert made(Outer).load_state_dict(fused.state_dict()).missing_keys == []


def test_modes_gradients_layouts_and_dtypes_stay() -> None:
    model = made(Outer).float().to(memory_format=torch.channels_last)
    model.norm.weight.requires_grad_(False)
    model.blocks[0].eval()
    expected = copy.deepcopy(model)
    fused = fused_bn.fuse(model, images().float())
    for (name, before), (_, after) in zip(expected.named_modules(), fused.named_modules(), strict=True):
        assert before.training == after.training, name
    for before_, after_ in zip(expected.parameters(), fused.parameters(), strict=True):
        assert before_.requires_grad == after_.requires_grad
        assert before_.stride() == after_.stride()
    for before_, after_ in zip(expected.buffers(), fused.buffers(), strict=True):
        assert torch.equal(before_, after_)
    x = images().float().to(memory_format=torch.channels_last)
    assert fused(x).is_contiguous(memory_format=torch.channels_last)


def test_an_optimiser_made_before_goes_on() -> None:
    """SGD with momentum: half of the steps before fuse() and half after it."""
    models = [made(Outer), made(Outer)]
    optimisers = [torch.optim.SGD(each.parameters(), lr=1e-2, momentum=0.9) for each in models]
    for number in range(4):
        if number == 2:
            fused_bn.fuse(models[1])
        for model, optimiser in zip(models, optimisers, strict=True):
            step(model, images(), number)
            optimiser.step()
    for left, right in zip(models[0].parameters(), models[1].parameters(), strict=True):
        torch.testing.assert_close(left, right, rtol=0, atol=1e-10)


def by_pickle(model: nn.Module) -> nn.Module:
    return pickle.loads(pickle.dumps(model))


def by_torch(model: nn.Module) -> nn.Module:
    file = io.BytesIO()
    torch.save(model, file)
    file.seek(0)
    return torch.load(file, weights_only=False)


@pytest.mark.parametrize("way", [copy.deepcopy, by_pickle, by_torch])
@pytest.mark.parametrize("make", [Outer, UNet, Pyramid])
def test_copies_are_fused_and_independent(way: Callable[[nn.Module], nn.Module], make: Any) -> None:
    """Fails if a copy's forward still uses the original's parameters."""
    model = fused_bn.fuse(made(make))
    copied = way(model)
    assert type(copied) is type(model)
    assert "fused: " in repr(copied)
    assert str(copied.fusion_report) == str(model.fusion_report)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.zero_()
    assert_same(made(make), copied, images())


@pytest.mark.parametrize("name", BLOCKS)
def test_unfuse_gives_the_original_back(name: str) -> None:
    original = made(BLOCKS[name][0])
    model = fused_bn.unfuse(fused_bn.fuse(copy.deepcopy(original)))
    for (path, before), (_, after) in zip(original.named_modules(), model.named_modules(), strict=True):
        assert type(before) is type(after), path
        assert vars(before).keys() == vars(after).keys(), path
    assert list(model.state_dict()) == list(original.state_dict())
    assert_same(original, model, images())


@pytest.mark.parametrize(
    "options", [{"activation": "elu", "activation_param": 0.4}, {"frozen": True}], ids=str
)
def test_unfuse_keeps_what_a_norm_was_constructed_with(options: dict[str, Any]) -> None:
    """Fails if an activation is lost on the way to PyTorch's modules or back."""

    class Block(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.norm = fused_bn.BatchNorm2d(4, **options)

        def forward(self, x: Tensor) -> Tensor:
            return self.norm(x, x * 2)

    original = made(Block)
    model = fused_bn.unfuse(copy.deepcopy(original))
    assert not isinstance(model.norm, fused_bn.BatchNorm2d)
    assert isinstance(model.norm, nn.BatchNorm2d)
    assert list(model.state_dict()) == list(original.state_dict())
    assert_same(copy.deepcopy(original), copy.deepcopy(model), images())
    report = fused_bn.fuse(model).fusion_report
    assert isinstance(model.norm, fused_bn.BatchNorm2d)
    assert report["norm"].fused == (("elu",) if "activation" in options else ())
    assert_same(original, model, images())


def test_fusing_again_gives_the_same() -> None:
    once = fused_bn.fuse(made(Outer))
    again = fused_bn.fuse(copy.deepcopy(once))
    assert again.fusion_report == once.fusion_report
    assert type(again) is type(once)


def test_hooks_on_blocks_run_as_before() -> None:
    """Hooks on the modules around a pair, on the convolutions in them, and on modules that were traced."""

    def calls(model: Any) -> list[tuple[str, int]]:
        seen: list[tuple[str, int]] = []
        for name, module in model.named_modules():
            if not isinstance(module, nn.BatchNorm2d):
                module.register_forward_hook(lambda *_, name=name: seen.append((name, 0)))
                if not isinstance(module, nn.ReLU):  # it works in place, which PyTorch refuses
                    module.register_full_backward_hook(lambda *_, name=name: seen.append((name, 1)))
        step(model, images(), 0)
        return seen

    assert calls(fused_bn.fuse(made(Outer))) == calls(made(Outer))


def test_forward_of_the_classes_and_its_signature_stay() -> None:
    forward = Basic.forward
    block = fused_bn.fuse(made(Basic))
    assert Basic.forward is forward
    assert inspect.signature(type(block).forward) == inspect.signature(forward)
    assert isinstance(block, Basic)


@pytest.mark.parametrize("name", ["basic", "basic, downsampling", "dense", "U-Net with concatenation"])
@pytest.mark.parametrize("training", [True, False])
def test_torch_compile_takes_the_fused_model_whole(name: str, training: bool) -> None:
    """The eager backend is enough: the test is that Dynamo finds no reason to break the graph."""
    original = made(BLOCKS[name][0]).train(training)
    fused = fused_bn.fuse(copy.deepcopy(original))
    torch._dynamo.reset()
    compiled = torch.compile(fused, fullgraph=True, backend="eager")
    expected, given = step(original, images(), 0), step(compiled, images(), 0)
    for (name_, left), right in zip(expected.items(), given.values(), strict=True):
        torch.testing.assert_close(left, right, rtol=0, atol=1e-10, msg=name_)


@pytest.mark.parametrize("use_reentrant", [False, True])
def test_activation_checkpointing_around_blocks(use_reentrant: bool) -> None:
    class Checkpointed(Outer):
        def features(self, x: Tensor) -> Tensor:
            for block in (self.stem, *self.blocks):
                x = checkpoint(block, x, use_reentrant=use_reentrant)
            return x

    original = made(Checkpointed)
    fused = fused_bn.fuse(copy.deepcopy(original))
    assert len(fused.fusion_report.fused) == 5
    assert_same(original, fused, images())


def test_conversion_to_torchs_sync_batch_norm_keeps_the_activations() -> None:
    """A pair checks its norm on every call. If it is not ours, the pair runs as it was written."""
    fused = fused_bn.fuse(made(Outer))
    converted = nn.SyncBatchNorm.convert_sync_batchnorm(copy.deepcopy(fused))
    assert isinstance(converted.norm, nn.SyncBatchNorm)
    x = images()
    torch.testing.assert_close(converted.eval()(x), fused.eval()(x), rtol=0, atol=1e-10)


def test_a_norm_alone_and_a_model_without_norms() -> None:
    norm: Any = fused_bn.fuse(nn.BatchNorm1d(3))
    assert norm.fusion_report.share == 0
    assert type(norm) is fused_bn.BatchNorm1d
    linear: Any = fused_bn.fuse(nn.Linear(2, 2))
    assert linear.fusion_report.share == 1
    with pytest.raises(TypeError, match=r"must be an nn\.Module"):
        fused_bn.fuse(3)  # type: ignore[type-var]


def test_the_report_is_a_table() -> None:
    text = str(fused_bn.fuse(made(Outer)).fusion_report)
    assert "blocks.1.downsample.1" in text
    assert "add, relu" in text
    assert text.endswith("6 of 7 norms fused with what follows them")


def test_other_threads_compute_while_one_fuses() -> None:
    """Tracing replaces methods of nn.Module in all threads. This caused NameError and RefusedError."""
    model, x = nn.Sequential(nn.Conv2d(4, 4, 3), nn.BatchNorm2d(4), nn.ReLU()).eval(), torch.randn(2, 4, 6, 6)
    expected, stop, failures, calls = model(x), threading.Event(), list[BaseException](), list[int]()

    def compute() -> None:
        try:
            while not stop.is_set():
                model.written = "meanwhile"  # type: ignore[assignment]
                assert torch.equal(model(x), expected)
                calls.append(1)
        except BaseException as error:
            failures.append(error)

    thread = threading.Thread(target=compute)
    thread.start()
    reports: list[Any] = [fused_bn.fuse(Basic()).fusion_report for _ in range(20)]
    stop.set()
    thread.join()
    assert calls
    assert not failures
    assert [report.share for report in reports] == [1.0] * 20


def test_hooks_on_every_module_see_what_they_saw() -> None:
    """Such as profilers register them: norm and activation are then computed apart."""
    model, x = nn.Sequential(nn.Conv2d(4, 4, 3), nn.BatchNorm2d(4), nn.ReLU()).eval(), torch.randn(2, 4, 6, 6)
    found = []
    for each in (copy.deepcopy(model), fused_bn.fuse(model)):
        seen: list[tuple[str, Tensor]] = []
        handle = nn.modules.module.register_module_forward_hook(
            lambda module, _, output, seen=seen: seen.append((type(module).__name__, output.clone()))
        )
        try:
            each(x)
        finally:
            handle.remove()
        found.append(seen)
    names, fused_names = ([name for name, _ in seen] for seen in found)
    assert fused_names == names == ["Conv2d", "BatchNorm2d", "ReLU", "Sequential"]
    for (_, left), (_, right) in zip(*found, strict=True):
        torch.testing.assert_close(left, right, rtol=0, atol=1e-6)


class Other(nn.Module):
    """A model of another thread, whose own code reads and writes attributes."""

    def __init__(self) -> None:
        super().__init__()
        self.layer, self.calls = nn.Linear(4, 4), 0

    def forward(self, x: Tensor) -> Tensor:
        self.calls += 1
        return self.layer(x) * self.calls


def test_what_another_thread_reads_and_writes_is_not_the_traced_forwards() -> None:
    """Where it was watched, the trace was refused: "reads a Other from elsewhere in the model"."""
    other, guards = Other(), watch.Guards()
    with ThreadPoolExecutor(1) as threads, watch.watching({}, guards, training=True):
        threads.submit(other, torch.ones(1, 4)).result()
        with pytest.raises(watch.RefusedError, match="reads a Other from elsewhere in the model"):
            other(torch.ones(1, 4))
    assert other.calls == 1
    assert not guards.conditions


PICKLED = {
    "fused_bn.modules": ("BatchNorm2d", "LazyBatchNorm2d", "SyncBatchNorm", "_SyncBatchNorm2d"),
    "fused_bn.fusion.classes": ("_new",),
    "fused_bn.fusion.norms": ("_activated_class", "_norm_act_class"),
    "fused_bn.fusion.recompute": ("keep_recipe",),
    "fused_bn.fusion.report": ("FusionReport", "NormReport"),
    "fused_bn.fusion.rewrite": ("Recipe", "Variant", "is_plain", "rewritten_class"),
    "fused_bn.fusion.runtime": ("norm_act", "norm_add_act"),
    "fused_bn.sync": ("convert_sync_batchnorm", "revert_sync_batchnorm"),
    "fused_bn._converters": ("Replaced",),
}


@pytest.mark.parametrize("module", PICKLED)
def test_names_in_the_pickles_of_earlier_versions_stay(module: str) -> None:
    """A class or function that moves leaves its name behind, or whole models no longer load."""
    imported = importlib.import_module(module)
    assert all(callable(getattr(imported, name)) for name in PICKLED[module])

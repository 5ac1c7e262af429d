"""Norm outputs that backward recomputes: the same bits, less memory, and autograd's rules."""

import copy
from collections.abc import Callable
from functools import partial
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.multiprocessing.reductions import StorageWeakRef
from torch.nn import functional as F
from torch.utils.checkpoint import checkpoint

import fused_bn
from fused_bn.fusion import recompute
from fused_bn.fusion.runtime import difference
from tests.cases import MEMORY_FORMATS
from tests.fuse.fuse_models import Basic, conv

pytestmark = pytest.mark.needs_extension


@pytest.fixture(autouse=True)
def _small_outputs_too(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(recompute, "WORTH_BYTES", 1)


@pytest.fixture(autouse=True)
def _convolutions_that_repeat_themselves(monkeypatch: pytest.MonkeyPatch) -> None:
    """cuDNN may add gradients with atomics, in a different order in each run, which changes bits."""
    monkeypatch.setattr(torch.backends.cudnn, "deterministic", True)


class Pair(nn.Module):
    """conv, norm and ReLU, and a following module that may keep their result."""

    def __init__(self, consumer: nn.Module, convolution: nn.Module | None = None) -> None:
        super().__init__()
        self.conv = convolution or conv(4, 4)
        self.norm = type_of_norm(self.conv)(4)
        self.consumer = consumer

    def forward(self, x: Tensor) -> Tensor:
        return self.consumer(torch.relu(self.norm(self.conv(x))))


def type_of_norm(convolution: nn.Module) -> type[nn.Module]:
    return nn.BatchNorm2d if isinstance(convolution, nn.Conv2d) else nn.BatchNorm1d


def chain(length: int) -> nn.Module:
    return nn.Sequential(*(Basic() for _ in range(length)))


def watched(model: nn.Module, kind: tuple[type[nn.Module], ...] = (nn.Conv2d,)) -> dict[str, StorageWeakRef]:
    """The last inputs of modules of these classes, by name. Does not keep the inputs alive."""
    given: dict[str, StorageWeakRef] = {}
    for name, module in model.named_modules():
        if isinstance(module, kind):
            module.register_forward_pre_hook(
                lambda _, arguments, name=name: given.update(
                    {name: StorageWeakRef(arguments[0].untyped_storage())}
                )
            )
    return given


def images(
    layout: torch.memory_format = torch.contiguous_format, dtype: torch.dtype = torch.float32
) -> Tensor:
    x = torch.randn(3, 4, 8, 8, generator=torch.Generator().manual_seed(1))
    return x.to(dtype).contiguous(memory_format=layout).requires_grad_()


def gradients(model: nn.Module, x: Tensor, create_graph: bool = False) -> list[Tensor]:
    output = model(x)
    wanted = [x, *model.parameters()]
    loss = (output * output.detach().cos()).sum()
    return list(torch.autograd.grad(loss, wanted, create_graph=create_graph))


def fused_both_ways(make: Callable[[], nn.Module]) -> tuple[Any, Any]:
    """The same model, without and with recomputation."""
    torch.manual_seed(0)
    model = make()
    kept = fused_bn.fuse(copy.deepcopy(model))
    return kept, fused_bn.fuse(model, recompute=True)


CONSUMERS: dict[str, Callable[[], nn.Module]] = {
    "Conv2d": lambda: Pair(nn.Conv2d(4, 3, 3)),
    "Conv2d, depthwise": lambda: Pair(nn.Conv2d(4, 4, 3, groups=4)),
    "ConvTranspose2d": lambda: Pair(nn.ConvTranspose2d(4, 3, 3)),
    "MaxPool2d": lambda: Pair(nn.MaxPool2d(2)),
    "AvgPool2d": lambda: Pair(nn.AvgPool2d(2)),
    "AdaptiveAvgPool2d": lambda: Pair(nn.AdaptiveAvgPool2d(4)),  # CUDA adds overlapping windows with atomics
    "Conv1d": lambda: nn.Sequential(nn.Flatten(2), Pair(nn.Conv1d(4, 3, 3), nn.Conv1d(4, 4, 1))),
    "Linear": lambda: nn.Sequential(nn.Flatten(), Pair(nn.Linear(4, 3), nn.Linear(256, 4))),
}


@pytest.mark.parametrize("name", CONSUMERS)
def test_the_consumer_keeps_no_output_and_gradients_keep_their_bits(name: str, device: str) -> None:
    kept, model = (each.to(device) for each in fused_both_ways(CONSUMERS[name]))
    x = images().detach().to(device).requires_grad_()
    pair = next(each for each in model.modules() if isinstance(each, Pair))
    expected = gradients(kept, x)
    given = watched(pair, (type(pair.consumer),))
    output = model(x)
    assert given["consumer"].expired(), "the output is still there"
    found = torch.autograd.grad((output * output.detach().cos()).sum(), [x, *model.parameters()])
    assert all(map(torch.equal, found, expected))


@pytest.mark.parametrize("bias", [True, False])
def test_a_linear_layer_keeps_an_input_of_three_dimensions(bias: bool, device: str) -> None:
    """Its node saves a view of the tensor, of which nothing is noted: the page promises two dimensions."""

    def make() -> nn.Module:
        return nn.Sequential(nn.Flatten(2), Pair(nn.Linear(64, 3, bias=bias), nn.Conv1d(4, 4, 1)))

    kept, model = (each.to(device) for each in fused_both_ways(make))
    x = images().detach().to(device).requires_grad_()
    expected = gradients(kept, x)
    given = watched(model, (nn.Linear,))
    output = model(x)
    assert not given["1.consumer"].expired()
    found = torch.autograd.grad((output * output.detach().cos()).sum(), [x, *model.parameters()])
    assert all(map(torch.equal, found, expected))


def make_contiguous(*models: nn.Module) -> None:
    """Convolutions with contiguous outputs for any input, as cuDNN's are in float64."""
    for model in models:
        for module in model.modules():
            if isinstance(module, nn.Conv2d):
                module.register_forward_hook(lambda _, __, output: output.contiguous())


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float64], ids=str)
@pytest.mark.parametrize("layout", ["contiguous", "channels_last", "channels_last to contiguous"])
@pytest.mark.parametrize("training", [True, False], ids=["training", "evaluation"])
def test_every_other_output_of_a_chain_of_residual_blocks_is_computed_again(
    training: bool, layout: str, dtype: torch.dtype, device: str
) -> None:
    """All inner norms, and those with a residual if the residual is kept anyway."""
    name, _, of_convolutions = layout.partition(" to ")
    both = fused_both_ways(lambda: chain(5))
    memory_format = MEMORY_FORMATS[name]
    kept, model = (each.to(device, dtype, memory_format=memory_format).train(training) for each in both)
    if of_convolutions:
        make_contiguous(kept, model)
    x = images(memory_format, dtype).detach().to(device).requires_grad_()
    expected = gradients(kept, x)
    given = watched(model)
    output = model(x)
    gone = {name for name, each in given.items() if each.expired()}
    # The first block's residual has another layout than its norm's input. It is added separately, and the sum
    # is kept.
    first = 1 if difference(kept[0].conv1(x), x) is None else 2
    assert gone == {*(f"{i}.conv2" for i in range(5)), f"{first}.conv1", f"{first + 2}.conv1"}
    found = torch.autograd.grad((output * output.detach().cos()).sum(), [x, *model.parameters()])
    assert all(map(torch.equal, found, expected))
    for left, right in zip(kept.buffers(), model.buffers(), strict=True):
        assert torch.equal(left, right)


def test_small_outputs_are_kept(monkeypatch: pytest.MonkeyPatch) -> None:
    """Recording them would take longer than it saves."""
    monkeypatch.setattr(recompute, "WORTH_BYTES", 3 * 4 * 8 * 8 * 4 + 1)
    _, model = fused_both_ways(lambda: chain(1))
    given = watched(model)
    output = model(images())
    assert not given["0.conv2"].expired()
    assert output.requires_grad


def test_backward_twice_and_the_second_derivative() -> None:
    kept, model = (each.double() for each in fused_both_ways(lambda: Pair(conv(4, 3))))
    x = images(dtype=torch.float64)
    output = model(x)
    first, second = (torch.autograd.grad(output.sum(), x, retain_graph=True) for _ in range(2))
    assert torch.equal(first[0], second[0])
    both = []
    for each in (kept, model):
        (grad, *_) = gradients(each, x, create_graph=True)
        both.append(torch.autograd.grad(grad.square().sum(), [x, *each.parameters()]))
    for left, right in zip(*both, strict=True):
        torch.testing.assert_close(left, right, rtol=0, atol=1e-10 * float(left.abs().max()))


class Written(Pair):
    """Code that writes between the norm and the next convolution, or after that."""

    def __init__(self, write: Callable[[Tensor, Tensor], object], when: str) -> None:
        super().__init__(conv(4, 3))
        self.write, self.when = write, when

    def forward(self, x: Tensor) -> Tensor:
        z = self.conv(x)
        y = torch.relu(self.norm(z))
        if self.when == "before":
            self.write(z, y)
        output = self.consumer(y)
        if self.when == "behind":
            self.write(z, y)
        return output


def double_output(_: Tensor, y: Tensor) -> None:
    y.mul_(2)


def double_output_unseen(_: Tensor, y: Tensor) -> None:
    y.detach().mul_(2)


def double_input(z: Tensor, _: Tensor) -> None:
    z.detach().mul_(2)


def test_an_output_written_before_it_is_used_is_kept_as_it_is() -> None:
    for write in (double_output, double_output_unseen):
        kept, model = fused_both_ways(partial(Written, write, "before"))
        assert "fused: norm+relu" in repr(model)
        assert all(map(torch.equal, gradients(kept, images()), gradients(model, images())))


def test_an_input_written_in_between_raises_as_ever() -> None:
    """Otherwise the gradient would be wrong without an error."""
    for make in fused_both_ways(partial(Written, double_input, "behind")):
        with pytest.raises(RuntimeError, match="modified by an inplace operation"):
            gradients(make, images())


def test_parameters_written_in_between_do_not_matter_to_the_consumer() -> None:
    """Sharded parameters are freed after forward. The norm's own backward gathers them again."""
    _, model = fused_both_ways(lambda: Pair(conv(4, 3)))
    x = images()
    expected = torch.autograd.grad(model(x).sum(), model.consumer.weight)
    output = model(x)
    with torch.no_grad():
        model.norm.weight.zero_()
    assert torch.equal(torch.autograd.grad(output.sum(), model.consumer.weight)[0], expected[0])


@pytest.mark.parametrize("reentrant", [True, False], ids=["reentrant", "not reentrant"])
def test_activation_checkpointing_takes_precedence(reentrant: bool) -> None:
    class Checkpointed(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.blocks = chain(3)

        def forward(self, x: Tensor) -> Tensor:
            for block in self.blocks:  # type: ignore[attr-defined]
                x = checkpoint(block, x, use_reentrant=reentrant)
            return x

    both = fused_both_ways(Checkpointed)
    for model in both:
        model(images()).sum().backward()
    for left, right in zip(*(each.parameters() for each in both), strict=True):
        assert torch.equal(left.grad, right.grad)


def test_hooks_on_saved_tensors_see_what_they_saw() -> None:
    """The user's hooks decide how each tensor is kept. They see tensors, not our placeholders."""
    seen = []
    both = fused_both_ways(lambda: chain(2))
    for model in both:
        packed: list[tuple[torch.Size, float]] = []

        def pack(tensor: Tensor, packed: list[tuple[torch.Size, float]] = packed) -> Tensor:
            packed.append((tensor.shape, float(tensor.double().sum())))
            return tensor

        with torch.autograd.graph.saved_tensors_hooks(pack, lambda tensor: tensor):
            output = model(images())
        output.sum().backward()
        seen.append(packed)
    assert seen[0] == seen[1]


def test_unfuse_and_models_without_a_gradient() -> None:
    _, model = fused_both_ways(lambda: chain(1))
    assert type(model[0].conv1) is nn.Conv2d
    assert model[0].conv1._forward_hooks
    given = watched(model)
    with torch.no_grad():
        output = model(images())
    assert output.grad_fn is None
    assert all(each.expired() for name, each in given.items() if name != "0.conv1")
    fused_bn.unfuse(model)
    assert not model[0].conv1._forward_hooks
    assert "_notes_outputs" not in vars(model[0].bn1)


def test_subclasses_of_convolutions_are_left_alone() -> None:
    class Own(nn.Conv2d):
        def forward(self, input: Tensor) -> Tensor:
            return super().forward(input * 2)

    _, model = fused_both_ways(lambda: Pair(Own(4, 3, 3)))
    assert type(model.consumer) is Own
    assert model(images()).requires_grad


def test_an_output_that_another_keeps_is_not_lost() -> None:
    """F.conv2d is no module and keeps the tensor. Both get the same gradient as without recomputation."""

    class Branches(Pair):
        def forward(self, x: Tensor) -> Tensor:
            y = torch.relu(self.norm(self.conv(x)))
            return self.consumer(y) + F.conv2d(y, self.conv.weight[:3], padding=1)  # type: ignore[index]

    kept, model = fused_both_ways(lambda: Branches(conv(4, 3)))
    assert all(map(torch.equal, gradients(kept, images()), gradients(model, images())))


class Accumulates(nn.Module):
    """A residual that nothing keeps and that is overwritten afterwards."""

    def __init__(self) -> None:
        super().__init__()
        self.conv, self.norm, self.consumer = conv(4, 4), nn.BatchNorm2d(4), conv(4, 4)

    def forward(self, x: Tensor) -> Tensor:
        sum_ = x * 1
        y = torch.relu(self.norm(self.conv(x)) + sum_)
        sum_ += self.consumer(y)
        return sum_


def test_a_residual_that_nobody_keeps_is_not_relied_on() -> None:
    """It may be overwritten, and autograd would not notice."""
    kept, model = fused_both_ways(Accumulates)
    assert "fused: norm+add+relu" in repr(model)
    assert all(map(torch.equal, gradients(kept, images()), gradients(model, images())))


def test_a_fused_model_can_be_traced() -> None:
    _, model = fused_both_ways(lambda: chain(2))
    model.eval()
    traced = torch.jit.trace(model, images().detach(), check_trace=False)
    torch.testing.assert_close(traced(images()), model(images()), rtol=0, atol=1e-6)


def test_without_the_extension_a_fused_model_runs(monkeypatch: pytest.MonkeyPatch) -> None:
    """As a model that was pickled on a machine with the extension."""
    kept, model = fused_both_ways(lambda: chain(1))
    monkeypatch.setattr(recompute, "extension", None)
    assert all(map(torch.equal, gradients(kept, images()), gradients(model, images())))


def test_attributes_of_the_users_own_stay() -> None:
    class Flagged(Pair):
        def __init__(self) -> None:
            super().__init__(conv(4, 3))
            self.recompute = True

    _, model = fused_both_ways(Flagged)
    assert fused_bn.unfuse(model).recompute is True


def test_an_output_that_is_held_holds_no_input_behind_backward() -> None:
    _, model = fused_both_ways(lambda: Pair(conv(4, 3)))
    inputs, outputs = [], []
    model.conv.register_forward_hook(lambda _, __, z: inputs.append(StorageWeakRef(z.untyped_storage())))
    model.consumer.register_forward_pre_hook(lambda _, arguments: outputs.append(arguments[0]))
    model(images()).sum().backward()
    assert outputs
    assert inputs[0].expired()


def test_a_model_without_norms_stays_as_it_is() -> None:
    model = fused_bn.fuse(nn.Sequential(nn.Conv2d(3, 4, 3), nn.ReLU()), recompute=True)
    assert type(model[0]) is nn.Conv2d

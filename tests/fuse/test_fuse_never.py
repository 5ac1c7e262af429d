"""Code that fuse() must leave alone, or compute as it is written."""

import copy
from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F
from torch.nn.utils import parametrize

import fused_bn
from tests.fuse.fuse_models import Written, assert_fuses_to_the_same, assert_same, images, made


class UsedTwice(Written):
    def forward(self, x: Tensor) -> Tensor:
        z = self.bn(self.conv(x))
        return F.relu(z) + z


class TwiceInTheSum(Written):
    def forward(self, x: Tensor) -> Tensor:
        z = self.bn(self.conv(x))
        return F.relu(z + z)


class Alpha(Written):
    def forward(self, x: Tensor) -> Tensor:
        return F.relu(torch.add(self.bn(self.conv(x)), x, alpha=2))


class Number(Written):
    def forward(self, x: Tensor) -> Tensor:
        return F.relu(self.bn(self.conv(x)) + 1)


class IntoAnother(Written):
    """The sum must be visible in `before`, which is the same tensor."""

    def forward(self, x: Tensor) -> Tensor:
        total = x * 2
        before = total
        total += self.bn(self.conv(x))
        return torch.cat((total, before), 1)


class CalledInBetween(Written):
    """The running statistics depend on the order of the two calls."""

    def forward(self, x: Tensor) -> Tensor:
        return self.act(self.bn(self.conv(x)) + self.conv(self.bn(x * 3)))


class StatisticsInBetween(Written):
    def forward(self, x: Tensor) -> Tensor:
        z = self.bn(self.conv(x))
        norm: Any = self.bn
        return z + x * norm.running_mean.mean()


class OtherShape(Written):
    def forward(self, x: Tensor) -> Tensor:
        return F.relu(self.bn(self.conv(x)) + x.mean((2, 3), keepdim=True))


class WiderResidual(Written):
    def forward(self, x: Tensor) -> Tensor:
        return F.relu(x.repeat(2, 1, 1, 1, 1) + self.bn(self.conv(x)))


class Softsign(Written):
    def forward(self, x: Tensor) -> Tensor:
        return F.softsign(self.bn(self.conv(x)))


class Threshold(Written):
    def forward(self, x: Tensor) -> Tensor:
        return F.softplus(self.bn(self.conv(x)), 1, 2)


class NamedThreshold(Written):
    def forward(self, x: Tensor) -> Tensor:
        return F.softplus(self.bn(self.conv(x)), threshold=2)


@pytest.mark.parametrize(
    ("kind", "reason"),
    [
        (UsedTwice, "its output is used 2 times"),
        (TwiceInTheSum, "its output is used twice"),
        (Alpha, "the addition has an alpha"),
        (Number, "a number is added, not a tensor"),
        (IntoAnother, "it is added to another tensor in place"),
        (CalledInBetween, "it is called again before the addition"),
        (StatisticsInBetween, "its parameters or statistics are read before the addition"),
        (Softsign, "softsign follows"),
        (Threshold, "softplus follows"),
        (NamedThreshold, "softplus follows"),
    ],
)
def test_code_that_is_no_pair_stays_as_written(kind: type[nn.Module], reason: str) -> None:
    report = assert_fuses_to_the_same(made(kind), images())
    assert reason in report["bn"].reason


def test_what_follows_a_sum_without_activation_is_no_part_of_the_pair() -> None:
    """The graph lost such an nn.Identity together with the sum, although it was still used."""

    class Block(Written):
        def forward(self, x: Tensor) -> Tensor:
            return self.act(self.bn(self.conv(x)) + x)

    report = assert_fuses_to_the_same(made(lambda: Block(act=nn.Identity())), images())
    assert report["bn"].fused == ("add",)


def test_a_norm_does_not_move_behind_a_write_to_its_input() -> None:
    """Fails if the norm is computed at the addition, from values that were overwritten meanwhile."""

    class Block(Written):
        def forward(self, x: Tensor) -> Tensor:
            z = self.bn(x)
            x.mul_(0.5)
            return z + x

    block = made(Block).eval()
    fused = fused_bn.fuse(copy.deepcopy(block))
    assert fused.fusion_report["bn"].reason == "its input may change before the addition"
    with torch.no_grad():
        torch.testing.assert_close(fused(images()), block(images()))


@pytest.mark.parametrize("kind", [OtherShape, WiderResidual])
def test_residuals_that_are_broadcast_are_added_by_pytorch(kind: type[nn.Module]) -> None:
    """Shapes are known only at run time. With example inputs the report names them. Results stay the same."""
    block = made(kind)
    assert_same(copy.deepcopy(block), fused_bn.fuse(copy.deepcopy(block)), images())
    fused = fused_bn.fuse(copy.deepcopy(block), images())
    assert not fused.fusion_report["bn"].fused
    assert "the residual has shape" in fused.fusion_report["bn"].reason
    assert_same(block, fused, images())


@pytest.mark.parametrize("in_place", [False, True])
def test_types_are_promoted_as_without_fuse(in_place: bool) -> None:
    """A half-precision norm with a float32 residual: float32 after x + r, half precision after x += r."""

    class Block(Written):
        def forward(self, x: Tensor, residual: Tensor) -> Tensor:
            z = self.bn(x)
            if self.in_place:
                z += residual
                return F.relu(z)
            return F.relu(z + residual)

    block: Any = Block(in_place=in_place).eval()
    fused = fused_bn.fuse(copy.deepcopy(block))
    assert fused.fusion_report["bn"].fused == ("add, relu",)
    x = images().to(torch.bfloat16)
    given, expected = fused(x, images().float()), block(x, images().float())
    assert given.dtype == expected.dtype == (torch.bfloat16 if in_place else torch.float32)
    torch.testing.assert_close(given, expected)


@pytest.mark.parametrize("layout", [torch.contiguous_format, torch.channels_last])
def test_the_layout_of_a_sum_stays(layout: Any) -> None:
    class Block(Written):
        def forward(self, x: Tensor, residual: Tensor) -> Tensor:
            return residual + self.bn(x)

    block = made(Block).eval()
    fused = fused_bn.fuse(copy.deepcopy(block))
    for other in (torch.contiguous_format, torch.channels_last):
        inputs = images().contiguous(memory_format=layout), images().contiguous(memory_format=other)
        assert fused(*inputs).stride() == block(*inputs).stride()


class Custom(nn.BatchNorm2d):
    def forward(self, input: Tensor) -> Tensor:
        return super().forward(input) * 2


class Half(nn.Module):
    def forward(self, weight: Tensor) -> Tensor:
        return weight / 2


def hooked_forward(block: Any) -> None:
    block.bn.register_forward_hook(lambda _, __, output: output * 2)


def hooked_before(block: Any) -> None:
    block.bn.register_forward_pre_hook(lambda _, args: (args[0] + 1,))


def hooked_backward(block: Any) -> None:
    block.bn.register_full_backward_hook(lambda _, gradients, __: (gradients[0] * 2,))


def hooked_activation(block: Any) -> None:
    block.act.register_forward_pre_hook(lambda _, args: (args[0] + 1,))


def hooked_activation_backward(block: Any) -> None:
    block.act.register_full_backward_hook(lambda _, gradients, __: (gradients[0] * 2,))


def replaced_forward(block: Any) -> None:
    block.bn.forward = lambda input: input * 2


def parametrized(block: Any) -> None:
    parametrize.register_parametrization(block.bn, "weight", Half())


CHANGES = {
    hooked_forward: "it has hooks",
    hooked_before: "it has hooks",
    hooked_backward: "it has hooks",
    hooked_activation: "the activation act has hooks",
    hooked_activation_backward: "the activation act has hooks",
    replaced_forward: "it has hooks",
    parametrized: "it has parametrizations",
}


class Chain(Written):
    def forward(self, x: Tensor) -> Tensor:
        return self.act(self.bn(self.conv(x)))


@pytest.mark.parametrize("change", CHANGES)
@pytest.mark.parametrize("late", [False, True], ids=["before", "after"])
def test_hooks_see_and_do_what_they_did(change: Any, late: bool) -> None:
    """A hook that exists at fuse() keeps the norm alone, as the report says. A later one splits the pair."""
    block = made(Chain)
    fused = copy.deepcopy(block)
    if late:
        fused = fused_bn.fuse(fused)
        change(fused)
    else:
        change(fused)
        fused = fused_bn.fuse(fused)
        assert fused.fusion_report["bn"].reason == CHANGES[change]
        assert not fused.fusion_report["bn"].fused
    change(block)
    assert_same(block, fused, images())


def test_unknown_and_lazy_norms_are_left_alone() -> None:
    for norm, reason in (
        (Custom(4), "Custom is an unknown subclass of BatchNorm2d"),
        (nn.LazyBatchNorm2d(), "it is lazy"),
    ):
        block: Any = fused_bn.fuse(nn.Sequential(norm, nn.ReLU()))
        assert reason in block.fusion_report["0"].reason
        assert type(block[0]) is type(norm)


class NormWithAct(nn.BatchNorm2d):
    """Works like timm's BatchNormAct2d."""

    def __init__(
        self, channels: int, act: nn.Module, drop: nn.Module | None = None, factor: float = 1
    ) -> None:
        super().__init__(channels)
        self.drop, self.act = drop or nn.Identity(), act
        self.factor = factor

    def forward(self, x: Tensor) -> Tensor:
        return self.act(self.drop(super().forward(x))) * self.factor


@pytest.mark.parametrize("act", [nn.ReLU(inplace=True), nn.SiLU(), nn.LeakyReLU(0.3), nn.Identity()], ids=str)
def test_norms_with_an_activation_of_their_own(act: nn.Module) -> None:
    """They keep class, children and keys. Without an activation they are fused with a following sum."""

    class Block(Written):
        def forward(self, x: Tensor) -> Tensor:
            return self.act(self.bn(self.conv(x)) + x)

    block = made(lambda: Block(bn=NormWithAct(4, act)))
    report = assert_fuses_to_the_same(block, images())
    name = {nn.ReLU: "relu", nn.SiLU: "silu", nn.LeakyReLU: "leaky_relu", nn.Identity: "add, relu"}[type(act)]
    assert report["bn"].fused == (name,)
    fused = fused_bn.fuse(copy.deepcopy(block))
    assert isinstance(fused.bn, NormWithAct)
    fused.bn.drop = block.bn.drop = nn.Hardtanh()
    assert_same(block, fused, images())


@pytest.mark.parametrize(
    "options", [{"factor": 2}, {"drop": nn.Dropout(0.5)}, {"act": nn.Softplus(threshold=2)}], ids=str
)
def test_norms_that_only_look_like_that_are_left_alone(options: dict[str, Any]) -> None:
    norm = NormWithAct(4, **{"act": nn.ReLU(), **options})
    fused: Any = fused_bn.fuse(nn.Sequential(norm))
    assert type(fused[0]) is NormWithAct
    assert "unknown subclass" in fused.fusion_report["0"].reason


# ---- models without a norm to be found


def plain_model() -> nn.Module:
    return nn.Sequential(nn.Conv2d(3, 4, 3), nn.BatchNorm2d(4)).eval()


def batch() -> Tensor:
    return torch.randn(2, 3, 5, 5)


class Functional(nn.Module):
    def forward(self, x: Tensor) -> Tensor:
        return F.batch_norm(x, None, None, training=True)


WITHOUT: dict[str, tuple[Callable[[], nn.Module], str]] = {
    "scripted": (lambda: torch.jit.script(plain_model()), "torch.jit has compiled the model"),
    "traced": (lambda: torch.jit.trace(plain_model(), batch()), "torch.jit has compiled the model"),
    "exported": (
        lambda: torch.export.export(plain_model(), (batch(),)).module(),
        "calls batch_norm as an operator",
    ),
    "functional": (lambda: nn.Sequential(Functional()), "the forward of '0', a Functional, calls batch_norm"),
    "none": (lambda: nn.Sequential(nn.Linear(2, 2)), "no module of the model is an nn.BatchNorm"),
}


@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize("name", WITHOUT)
def test_fuse_says_why_it_found_no_norm(name: str) -> None:
    make, text = WITHOUT[name]
    fused: Any = fused_bn.fuse(make())
    assert text in str(fused.fusion_report)


def test_a_norm_whose_forward_was_replaced_is_left_alone(monkeypatch: pytest.MonkeyPatch) -> None:
    """Some code patches torch for all models."""
    monkeypatch.setattr(nn.modules.batchnorm._BatchNorm, "forward", lambda _, x: x * 2)
    fused: Any = fused_bn.fuse(nn.Sequential(nn.BatchNorm2d(3), nn.ReLU()))
    assert "the forward of BatchNorm2d was replaced" in str(fused.fusion_report)
    x = torch.randn(2, 3, 4, 4)
    assert torch.equal(fused(x), (x * 2).relu())

"""Forwards with Python code that a traced graph would freeze, lose or run twice."""

import copy
import os
import random
from typing import Any

import pytest
import torch
from torch import Tensor, nn

import fused_bn
from fused_bn.fusion.watch import is_of, is_users_file
from tests.fuse.fuse_models import Written, assert_fuses_to_the_same, assert_same, images, made

SCALE = 2.0


class Chain(Written):
    def forward(self, x: Tensor) -> Tensor:
        return self.act(self.bn(self.conv(x)))


class Random(Written):
    def forward(self, x: Tensor) -> Tensor:
        z = self.act(self.bn(self.conv(x)))
        return z if random.random() < 0.5 else z * 2


class TorchRandom(Written):
    def forward(self, x: Tensor) -> Tensor:
        z = self.act(self.bn(self.conv(x)))
        return z if float(torch.rand(1)) < 0.5 else z * 2


class Noise(Written):
    def forward(self, x: Tensor) -> Tensor:
        return self.act(self.bn(self.conv(x))) + torch.randn(4, 1, 1)


class GradMode(Written):
    def forward(self, x: Tensor) -> Tensor:
        z = self.act(self.bn(self.conv(x)))
        return z * 2 if torch.is_grad_enabled() else z


class NoGrad(Written):
    def forward(self, x: Tensor) -> Tensor:
        with torch.no_grad():
            y = self.conv(x)
        return self.act(self.bn(y + x))


class Named(Written):
    def forward(self, x: Tensor) -> Tensor:
        with torch.profiler.record_function("norm"):
            return self.act(self.bn(self.conv(x)))


class Decorated(Written):
    @torch.no_grad()
    def frozen(self, x: Tensor) -> Tensor:
        return self.conv(x)

    def forward(self, x: Tensor) -> Tensor:
        return self.act(self.bn(self.frozen(x) + x))


class CallsItself(nn.Conv2d):
    def __call__(self, x: Tensor) -> Tensor:
        return super().__call__(x) * 2


class Doubled(Written):
    def forward(self, x: Tensor) -> Tensor:
        return self.act(self.bn(self.branch(x)))


class Counts(Written):
    calls = 0

    def forward(self, x: Tensor) -> Tensor:
        self.calls += 1
        return self.act(self.bn(self.conv(x))) * self.calls


class Keeps(Written):
    def forward(self, x: Tensor) -> Tensor:
        self.kept.append(x.shape)
        return self.act(self.bn(self.conv(x)))


class ReadsGlobal(Written):
    def forward(self, x: Tensor) -> Tensor:
        return self.act(self.bn(self.conv(x))) * SCALE


class MaybeNone(Written):
    def forward(self, x: Tensor) -> Tensor:
        extra = self.branch(x)
        z = self.act(self.bn(self.conv(x)))
        return z if extra is None else z + extra


class Nothing(nn.Module):
    def forward(self, _: Tensor) -> None:
        return None


@pytest.mark.parametrize(
    ("kind", "reason"),
    [
        (Random, "its forward draws random numbers in Python"),
        (TorchRandom, "its forward"),
        (Noise, "its forward sets self"),
        (GradMode, "its forward asks for is_grad_enabled"),
        (NoGrad, "its forward switches gradients or autocast"),
        (Named, "its forward has a `with` statement"),
        (Decorated, "its forward switches gradients or autocast"),
        (Doubled, "CallsItself has a __call__ of its own"),
        (Counts, "its forward sets self.calls"),
        (Keeps, "its forward reads self.kept, a list"),
        (ReadsGlobal, "its forward uses the global SCALE"),
        (MaybeNone, "its forward tests whether a computed value is None"),
    ],
)
def test_a_forward_that_does_more_than_compute_is_not_rewritten(kind: Any, reason: str) -> None:
    """A traced graph would freeze, lose or run twice something in each of these."""
    branch = CallsItself(4, 4, 1) if kind is Doubled else Nothing()
    block = made(lambda: kind(branch=branch, kept=[]))
    state = random.getstate(), torch.get_rng_state()
    fused = fused_bn.fuse(copy.deepcopy(block))
    assert random.getstate() == state[0]
    assert torch.equal(torch.get_rng_state(), state[1])
    assert reason in fused.fusion_report["bn"].reason
    assert type(fused) is kind
    assert isinstance(fused.bn, fused_bn.BatchNorm2d)
    random.seed(0)
    expected = block(images())
    random.seed(0)
    torch.testing.assert_close(fused(images()).mean(), expected.mean(), rtol=9, atol=9)


class Conditional(Written):
    """Reads its mode, flags, options of its configuration, an optional module and an optional argument."""

    negated = False

    def forward(self, x: Tensor, mask: Tensor | None = None, *, twice: bool = False) -> Tensor:
        z = self.bn(self.conv(x))
        if self.training:
            z = z * 1.5
        if self.flag:
            z = z + x
        if self.negated:
            z = -z
        if self.extra is not None:
            z = self.extra(z)
        if self.config.scaled:
            z = z * self.config.scale
        if mask is not None:
            z = z * mask
        return self.act(z) * 2 if twice else self.act(z)


class Config:
    def __init__(self) -> None:
        self.scaled, self.scale = False, 2.0


def test_what_a_forward_reads_may_change_after_fuse() -> None:
    """Fails if a graph keeps the flags, modes and arguments of its trace."""
    block = made(lambda: Conditional(flag=False, extra=None, config=Config()))
    fused = fused_bn.fuse(copy.deepcopy(block))
    assert "not in training" in fused.fusion_report["bn"].reason
    mask = (images() > 0).double()

    def compare() -> None:
        assert_same(block, fused, images())
        for arguments in ({}, {"mask": mask}, {"twice": True}, {"mask": mask, "twice": True}):
            torch.testing.assert_close(fused(images(), **arguments), block(images(), **arguments))

    compare()
    for change in (
        lambda each: setattr(each, "flag", True),
        lambda each: setattr(each, "negated", True),
        lambda each: setattr(each, "extra", nn.Hardtanh()),
        lambda each: setattr(each.config, "scaled", True),
        lambda each: setattr(each.config, "scale", 3.0),
        lambda each: setattr(each, "act", nn.Tanh()),
        lambda each: setattr(each, "act", nn.Softsign()),
        lambda each: setattr(each, "bn", nn.InstanceNorm2d(4)),
    ):
        change(block)
        change(fused)
        compare()


class Mixed(nn.Module):
    """A norm that stays in evaluation while the block around it trains."""

    def __init__(self) -> None:
        super().__init__()
        self.block = Chain()

    def train(self, mode: bool = True) -> "Mixed":
        super().train(mode)
        self.block.bn.eval()
        return self

    def forward(self, x: Tensor) -> Tensor:
        return self.block(x)


def test_a_frozen_norm_stays_frozen() -> None:
    report = assert_fuses_to_the_same(made(Mixed), images())
    assert report.share == 1


DROPPING = """
class Dropping(Written):
    drop_rate = 0.3

    def forward(self, x):
        z = self.act(self.bn(self.conv(x)))
        return F.dropout(z, self.drop_rate, self.training)
"""


def test_a_package_whose_name_begins_with_torchs_is_the_models_own_code() -> None:
    """torchvision is installed beside torch. What its forwards read was not noticed, so dropout stayed on."""
    home = os.path.dirname(torch.__file__)
    scope: dict[str, Any] = {"Written": Written, "F": nn.functional, "__name__": "torchlike.models"}
    exec(compile(DROPPING, f"{home}like/models.py", "exec"), scope)
    block = made(scope["Dropping"])
    fused = fused_bn.fuse(copy.deepcopy(block).train()).eval()
    assert torch.equal(fused(images()), fused(images()))
    assert_same(block.eval(), fused, images())
    assert not is_users_file(f"{home}/nn/modules/conv.py")


@pytest.mark.parametrize(
    ("name", "packages", "found"),
    [
        ("torch.nn.modules.conv", ("torch.nn",), True),
        ("torch.nn", ("torch.nn",), True),
        ("torch.nnapi", ("torch.nn", "fused_bn"), False),
        ("torchvision.ops", ("torch",), False),
    ],
)
def test_a_package_is_more_than_the_beginning_of_a_name(
    name: str, packages: tuple[str, ...], found: bool
) -> None:
    assert is_of(name, *packages) is found

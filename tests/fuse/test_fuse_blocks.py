"""fuse() on hand-written blocks: it finds every spelling of a pair, and the results stay the same."""

import copy
import functools
import re
from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F

import fused_bn
from tests.fuse.fuse_models import BLOCKS, TOLERANCE, Written, assert_fuses_to_the_same, images, made


@pytest.mark.parametrize("name", BLOCKS)
def test_blocks_compute_the_same_and_are_fused(name: str) -> None:
    """Fails if rewriting changes the common blocks' results, or if their pairs are no longer found."""
    make, fused, count = BLOCKS[name]
    report = assert_fuses_to_the_same(made(make), images())
    assert (len(report.fused), len(report.norms)) == (fused, count)


def without_addresses(value: object) -> str:
    """A test id that is the same in every process."""
    return re.sub(" at 0x[0-9a-f]+", "", str(value))


@pytest.mark.parametrize(
    ("activation", "label"),
    [
        (nn.ReLU(), "relu"),
        (nn.ReLU(inplace=True), "relu"),
        (nn.LeakyReLU(0.3), "leaky_relu"),
        (nn.ReLU6(), "relu6"),
        (nn.Hardswish(), "hardswish"),
        (nn.Hardsigmoid(), "hardsigmoid"),
        (nn.ELU(0.7), "elu"),
        (nn.SiLU(), "silu"),
        (nn.GELU(), "gelu"),
        (nn.GELU("tanh"), "gelu_tanh"),
        (nn.Tanh(), "tanh"),
        (nn.Sigmoid(), "sigmoid"),
        (nn.SELU(), "selu"),
        (nn.Softplus(0.4), "softplus"),
        (nn.Mish(), "mish"),
        (F.relu, "relu"),
        (torch.relu, "relu"),
        (F.leaky_relu, "leaky_relu"),
        (F.relu6, "relu6"),
        (F.hardswish, "hardswish"),
        (F.hardsigmoid, "hardsigmoid"),
        (F.elu, "elu"),
        (F.silu, "silu"),
        (F.gelu, "gelu"),
        (torch.tanh, "tanh"),
        (torch.sigmoid, "sigmoid"),
        (F.selu, "selu"),
        (torch.selu, "selu"),
        (torch.selu_, "selu"),
        (F.softplus, "softplus"),
        (F.mish, "mish"),
        (functools.partial(F.mish, inplace=True), "mish"),
        (functools.partial(F.softplus, beta=0.4, threshold=20), "softplus"),
        (lambda z: F.softplus(z, -0.4, 20), "softplus"),
        (functools.partial(F.gelu, approximate="tanh"), "gelu_tanh"),
        (functools.partial(F.leaky_relu, negative_slope=0.4), "leaky_relu"),
        (functools.partial(F.elu, alpha=0.4, inplace=True), "elu"),
        (functools.partial(F.relu, inplace=True), "relu"),
    ],
    ids=without_addresses,
)
def test_every_activation_as_module_and_as_function(
    activation: Callable[[Tensor], Tensor], label: str
) -> None:
    """Fails if an activation is mistaken for another, or its parameter is lost.

    PyTorch's slope of hardsigmoid is 1/6 rounded to float32, which is off by a factor of 2^-25, in each of
    the three terms of a gradient.
    """

    class Block(Written):
        def forward(self, x: Tensor) -> Tensor:
            return self.act(self.bn(self.conv(x)) + x)

    tolerance = 3 * 2.0**-25 if label == "hardsigmoid" else TOLERANCE
    report = assert_fuses_to_the_same(made(lambda: Block(act=activation)), images(), tolerance)
    assert report["bn"].fused == (f"add, {label}",)


class Methods(Written):
    def forward(self, x: Tensor) -> Tensor:
        z = self.bn(self.conv(x))
        z.relu_()
        return z


class MethodChain(Written):
    def forward(self, x: Tensor) -> Tensor:
        return self.bn(self.conv(x)).add(x).sigmoid()


class InPlaceChain(Written):
    def forward(self, x: Tensor) -> Tensor:
        z = self.bn(self.conv(x))
        z.add_(x)
        z.tanh_()
        return z * 2


class TorchAdd(Written):
    def forward(self, x: Tensor) -> Tensor:
        return F.relu(torch.add(self.bn(self.conv(x)), x))


class TorchAddOtherOrder(Written):
    def forward(self, x: Tensor) -> Tensor:
        return F.relu(torch.add(x, other=self.bn(self.conv(x)), alpha=1))


class OtherOrder(Written):
    def forward(self, x: Tensor) -> Tensor:
        return self.act(x + self.bn(self.conv(x)))


class Positional(Written):
    def forward(self, x: Tensor) -> Tensor:
        return F.leaky_relu(self.bn(self.conv(x)), 0.3, True)


class SumAlone(Written):
    def forward(self, x: Tensor) -> Tensor:
        z = self.bn(self.conv(x))
        z += x
        return z.flatten(1)


class TwoCalls(Written):
    def forward(self, x: Tensor) -> Tensor:
        z = self.act(self.bn(self.conv(x)))
        return self.act(self.bn(self.conv(z)) + z)


class BothAreNorms(Written):
    def forward(self, x: Tensor) -> Tensor:
        return self.act(self.bn(self.conv(x)) + self.bn2(x))


@pytest.mark.parametrize(
    ("kind", "labels"),
    [
        (Methods, ("relu",)),
        (MethodChain, ("add, sigmoid",)),
        (InPlaceChain, ("add, tanh",)),
        (TorchAdd, ("add, relu",)),
        (TorchAddOtherOrder, ("add, relu",)),
        (OtherOrder, ("add, relu",)),
        (Positional, ("leaky_relu",)),
        (SumAlone, ("add",)),
        (TwoCalls, ("relu", "add, relu")),
    ],
)
def test_every_way_to_write_it(kind: type[nn.Module], labels: tuple[str, ...]) -> None:
    """Fails if a spelling is not recognised, or is mistaken for another."""
    report = assert_fuses_to_the_same(made(kind), images())
    assert report["bn"].fused == labels


def test_one_of_two_added_norms_is_the_others_residual() -> None:
    report = assert_fuses_to_the_same(made(lambda: BothAreNorms(bn2=nn.BatchNorm2d(4))), images())
    assert report["bn2"].fused == ("add, relu",)
    assert report["bn"].reason == "it is the residual of another norm"


@pytest.mark.parametrize("rank", [1, 2, 3])
def test_sequential_keeps_its_modules_and_slices(rank: int) -> None:
    """Fails if a part of a Sequential, used alone, loses its activation."""
    norm: Any = {1: nn.BatchNorm1d, 2: nn.BatchNorm2d, 3: nn.BatchNorm3d}[rank]
    block: Any = made(lambda: nn.Sequential(nn.Identity(), norm(4), nn.ReLU(), norm(4), nn.Tanh()))
    x = images(3, 4, *[5] * rank)
    report = assert_fuses_to_the_same(block, x)
    assert report.share == 1
    fused: Any = fused_bn.fuse(copy.deepcopy(block))
    for part in (slice(2), slice(1, 3), slice(None)):
        torch.testing.assert_close(fused[part](x), block[part](x), rtol=0, atol=1e-12)
    fused.append(nn.Softsign())
    torch.testing.assert_close(fused(x), F.softsign(fused[:5](x)))

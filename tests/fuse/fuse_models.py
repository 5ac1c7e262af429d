"""Blocks with norm, addition and activation in all spellings that `fuse` knows, and their comparison."""

import copy
from collections.abc import Callable
from typing import Any
from unittest import mock

import torch
from torch import Tensor, nn
from torch.nn import functional as F

import fused_bn
from fused_bn.fusion import runtime

TOLERANCE = 1e-10
"""fp64, relative to the largest value above 1: 1e-16 per operation, through tens of layers."""


def conv(inside: int, outside: int, size: int = 3, **options: Any) -> nn.Conv2d:
    return nn.Conv2d(inside, outside, size, padding=size // 2, bias=False, **options)


class Basic(nn.Module):
    """torchvision's BasicBlock: one in-place ReLU for both norms. bn2 runs before the residual's norm."""

    def __init__(self, inside: int = 4, outside: int = 4) -> None:
        super().__init__()
        self.conv1, self.bn1 = conv(inside, outside), nn.BatchNorm2d(outside)
        self.relu = nn.ReLU(inplace=True)
        self.conv2, self.bn2 = conv(outside, outside), nn.BatchNorm2d(outside)
        self.downsample: nn.Module | None = None
        if inside != outside:
            self.downsample = nn.Sequential(conv(inside, outside, 1), nn.BatchNorm2d(outside))

    def forward(self, x: Tensor) -> Tensor:
        identity = x
        out = self.conv1(x)
        out = self.bn1(out)
        out = self.relu(out)
        out = self.conv2(out)
        out = self.bn2(out)
        if self.downsample is not None:
            identity = self.downsample(x)
        out += identity
        return self.relu(out)


class DenseLayer(nn.Module):
    """torchvision's DenseNet layer: takes a tensor or a list, has a method of its own, and uses dropout."""

    def __init__(self, inside: int, growth: int, drop_rate: float = 0.0) -> None:
        super().__init__()
        self.norm1, self.relu1, self.conv1 = nn.BatchNorm2d(inside), nn.ReLU(True), conv(inside, 8, 1)
        self.norm2, self.relu2, self.conv2 = nn.BatchNorm2d(8), nn.ReLU(True), conv(8, growth)
        self.drop_rate = drop_rate

    def bottleneck(self, inputs: list[Tensor]) -> Tensor:
        return self.conv1(self.relu1(self.norm1(torch.cat(inputs, 1))))

    def forward(self, input: Tensor | list[Tensor]) -> Tensor:
        previous = [input] if isinstance(input, Tensor) else input
        new = self.conv2(self.relu2(self.norm2(self.bottleneck(previous))))
        if self.drop_rate > 0:
            new = F.dropout(new, p=self.drop_rate, training=self.training)
        return new


class Dense(nn.ModuleDict):
    def __init__(self, drop_rate: float = 0.0) -> None:
        super().__init__({f"layer{i}": DenseLayer(4 + 3 * i, 3, drop_rate) for i in range(3)})

    def forward(self, x: Tensor) -> Tensor:
        features = [x]
        for layer in self.values():
            features.append(layer(features))
        return torch.cat(features, 1)


class SqueezeExcite(nn.Module):
    def __init__(self, channels: int) -> None:
        super().__init__()
        self.reduce, self.expand = nn.Conv2d(channels, 2, 1), nn.Conv2d(2, channels, 1)

    def forward(self, x: Tensor) -> Tensor:
        scale = x.mean((2, 3), keepdim=True)
        return x * F.hardsigmoid(self.expand(F.relu(self.reduce(scale))))


class Inverted(nn.Module):
    """MobileNetV2's and V3's block: one nn.Sequential, and a sum without an activation."""

    def __init__(self, activation: Callable[[], nn.Module], excite: bool, channels: int = 4) -> None:
        super().__init__()
        hidden = 2 * channels
        self.block = nn.Sequential(
            nn.Sequential(conv(channels, hidden, 1), nn.BatchNorm2d(hidden), activation()),
            nn.Sequential(conv(hidden, hidden, groups=hidden), nn.BatchNorm2d(hidden), activation()),
            SqueezeExcite(hidden) if excite else nn.Identity(),
            conv(hidden, channels, 1),
            nn.BatchNorm2d(channels),
        )

    def forward(self, x: Tensor) -> Tensor:
        return x + self.block(x)


class UNet(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.down = self.twice(4, 6)
        self.bottom = self.twice(6, 8)
        self.up = self.twice(14, 4)
        self.head = nn.Conv2d(4, 2, 1)

    @staticmethod
    def twice(inside: int, outside: int) -> nn.Sequential:
        relu = nn.ReLU(inplace=True)
        first = (conv(inside, outside), nn.BatchNorm2d(outside), relu)
        return nn.Sequential(*first, conv(outside, outside), nn.BatchNorm2d(outside), relu)

    def forward(self, x: Tensor) -> Tensor:
        skip = self.down(x)
        deep = self.bottom(F.max_pool2d(skip, 2))
        deep = F.interpolate(deep, size=skip.shape[2:], mode="nearest")
        return self.head(self.up(torch.cat((deep, skip), 1)))


class PreActivation(nn.Module):
    """A pre-activation block: the norm precedes the convolution, and the next block normalises the sum."""

    def __init__(self, channels: int = 4) -> None:
        super().__init__()
        self.bn1, self.conv1 = nn.BatchNorm2d(channels), conv(channels, channels)
        self.bn2, self.conv2 = nn.BatchNorm2d(channels), conv(channels, channels)

    def forward(self, x: Tensor) -> Tensor:
        out = self.conv1(F.relu(self.bn1(x)))
        out = self.conv2(F.silu(self.bn2(out)))
        return out + x


class Loop(nn.Module):
    """Norms and convolutions in lists that a loop calls. One norm's statistics are used twice."""

    def __init__(self, channels: int = 4) -> None:
        super().__init__()
        self.convs = nn.ModuleList(conv(channels, channels) for _ in range(3))
        self.norms = nn.ModuleList(nn.BatchNorm2d(channels) for _ in range(2))
        self.norms.append(self.norms[0])

    def forward(self, x: Tensor) -> Tensor:
        for one, norm in zip(self.convs, self.norms, strict=True):
            x = torch.relu(norm(one(x)))
        return x


class Head(nn.Module):
    """Takes a list, as decoders of segmentation models do."""

    def __init__(self) -> None:
        super().__init__()
        self.projections = nn.ModuleList(nn.Conv2d(4, 3, 1) for _ in range(2))
        self.bn = nn.BatchNorm2d(6)
        self.activation = nn.ELU(0.5)

    def forward(self, features: list[Tensor]) -> Tensor:
        made = ()
        for feature, projection in zip(features, self.projections):  # noqa: B905 (as transformers writes it)
            made += (projection(feature),)  # type: ignore[assignment]
        return self.activation(self.bn(torch.cat(made, 1)))


class Pyramid(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.stages = nn.ModuleList([Basic(), Basic()])
        self.head = Head()

    def forward(self, x: Tensor) -> Tensor:
        features = []
        for stage in self.stages:
            x = stage(x)
            features.append(x)
        return self.head(features)


class DataDependent(nn.Module):
    def __init__(self, channels: int = 4) -> None:
        super().__init__()
        self.conv, self.bn = conv(channels, channels), nn.BatchNorm2d(channels)

    def forward(self, x: Tensor) -> Tensor:
        z = self.bn(self.conv(x))
        return F.relu(z) if float(x.mean()) > 0 else F.relu(-z)


class Written(nn.Module):
    """conv, norm, the code that a test writes after them, and any other modules that it needs."""

    act: Any
    bn2: Any
    branch: Any
    config: Any
    extra: Any
    flag: Any
    in_place: Any
    kept: Any

    def __init__(self, **modules: Any) -> None:
        super().__init__()
        self.conv, self.bn = conv(4, 4), nn.BatchNorm2d(4)
        for name, module in {"act": nn.ReLU(), **modules}.items():
            setattr(self, name, module)


BLOCKS: dict[str, tuple[Callable[[], nn.Module], int, int]] = {
    "basic": (Basic, 2, 2),
    "basic, downsampling": (lambda: Basic(4, 6), 2, 3),
    "dense": (Dense, 6, 6),
    "inverted residual, relu6": (lambda: Inverted(nn.ReLU6, False), 3, 3),
    "inverted residual, hardswish and squeeze-excite": (lambda: Inverted(nn.Hardswish, True), 3, 3),
    "U-Net with concatenation": (UNet, 6, 6),
    "pre-activation": (PreActivation, 2, 2),
    "loop over lists, one norm shared": (Loop, 2, 2),
    "pyramid with a head that takes a list": (Pyramid, 5, 5),
    "one block that cannot be traced": (lambda: nn.Sequential(Basic(), DataDependent(), Basic()), 4, 5),
}
"""A block, how many of its norms are fused with what follows them, and how many it has."""


def made(make: Callable[[], nn.Module]) -> Any:
    """The block in fp64, with weights, biases and statistics that differ from their initial values."""
    torch.manual_seed(0)
    model = make().double()
    for module in model.modules():
        if isinstance(module, nn.modules.batchnorm._BatchNorm) and module.affine:
            nn.init.uniform_(module.weight, -1.5, 1.5)
            nn.init.uniform_(module.bias, -1.0, 1.0)
    return model


def images(*sizes: int) -> Tensor:
    return torch.randn(sizes or (3, 4, 6, 6), dtype=torch.float64, generator=torch.Generator().manual_seed(1))


def step(model: Any, input: Tensor, seed: int) -> dict[str, Tensor]:
    """Output, every gradient and every buffer of one forward and backward."""
    torch.manual_seed(seed)
    input = input.clone().requires_grad_()
    output = model(input)
    output = output if isinstance(output, Tensor) else output.logits
    model.zero_grad()
    weights = torch.randn(output.shape, dtype=output.dtype, generator=torch.Generator().manual_seed(2))
    (output * weights).sum().backward()
    assert input.grad is not None
    gradients = {f"gradient of {name}": each.grad for name, each in model.named_parameters()}
    found = {"output": output.detach(), "gradient of input": input.grad, **gradients}
    found.update({name: each.clone() for name, each in model.named_buffers()})
    return {name: each for name, each in found.items() if each is not None}


def assert_same(original: nn.Module, other: nn.Module, input: Tensor, tolerance: float = TOLERANCE) -> None:
    """Compares in training, in evaluation and in training again."""
    for seed, training in enumerate((True, False, True)):
        original.train(training)
        other.train(training)
        expected, given = step(original, input, seed), step(other, input, seed)
        assert expected.keys() == given.keys()
        for name, values in expected.items():
            error = ((values - given[name]).abs().max() / values.abs().max().clamp(min=1)).item()
            assert error <= tolerance, f"{name}, training={training}: off by {error}"


def passes(model: nn.Module, input: Tensor) -> int:
    """How many norms a forward computes together with an addition or an activation."""
    with mock.patch.object(runtime, "one_pass", wraps=runtime.one_pass) as one_pass:
        model(input)
    return one_pass.call_count


def assert_fuses_to_the_same(
    model: nn.Module, input: Tensor, tolerance: float = TOLERANCE
) -> fused_bn.FusionReport:
    """Compares a model with its fused copy. Returns the copy's report, after checking that it is true."""
    fused: Any = fused_bn.fuse(copy.deepcopy(model))
    count = sum(len(norm.fused) for norm in fused.fusion_report.norms if not norm.reason.startswith("not in"))
    assert passes(copy.deepcopy(fused), input) == count
    assert_same(model, fused, input, tolerance)
    report = fused.fusion_report
    assert isinstance(report, fused_bn.FusionReport)
    print(report)
    return report

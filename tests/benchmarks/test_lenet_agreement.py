"""The comparison of losses passes rounding differences and fails slightly wrong norms."""

from collections.abc import Callable
from dataclasses import replace

import pytest
import torch
from torch import Tensor, nn

from benchmarks.lenet import agreement
from benchmarks.lenet.model import VARIANTS, NormFactory, relu_after
from benchmarks.lenet.training import Settings
from tests.benchmarks.lenet_data import one_thread, small_data  # noqa: F401


class WrittenOut(nn.BatchNorm2d):
    """nn.BatchNorm2d's training function in other operations, in which a fault can be planted."""

    def __init__(self, channels: int, correction: int = 0, detach_mean: bool = False) -> None:
        super().__init__(channels)
        self.correction = correction
        self.detach_mean = detach_mean

    def forward(self, input: Tensor) -> Tensor:
        variance, mean = torch.var_mean(input, (0, 2, 3), correction=self.correction)
        scale = self.weight * torch.rsqrt(variance + self.eps)
        shift = self.bias - (mean.detach() if self.detach_mean else mean) * scale
        return input * scale[:, None, None] + shift[:, None, None]


RIGHT: dict[str, NormFactory] = {"PyTorch's own": nn.BatchNorm2d, "written out": WrittenOut}
WRONG: dict[str, NormFactory] = {
    "eps 2e-5 for 1e-5": lambda channels: nn.BatchNorm2d(channels, eps=2e-5),
    "unbiased variance": lambda channels: WrittenOut(channels, correction=1),
    "no gradient through the mean": lambda channels: WrittenOut(channels, detach_mean=True),
}


CASES = [("fused", "article"), ("fused-relu", "modern")]


def follow(id: str, norm: NormFactory, recipe: str = "article") -> agreement.Agreement:
    variant = VARIANTS[id]
    norm = norm if variant.tanh else relu_after(norm)
    return agreement.follow(replace(variant, norm=norm), small_data(), Settings(recipe))


pytestmark = pytest.mark.usefixtures("one_thread")


@pytest.fixture(autouse=True)
def few_steps(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(agreement, "STEPS", 12)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("id", agreement.PAIRS)
def test_fused_bn_follows_pytorch(id: str, dtype: torch.dtype) -> None:
    found = agreement.follow(VARIANTS[id], small_data(), Settings(dtype=dtype))
    assert found.passed, str(found)
    assert len(found.differences) == len(found.bounds) == len(found.our_losses) == 12


@pytest.mark.parametrize(("id", "recipe"), CASES)
@pytest.mark.parametrize("norm", RIGHT.values(), ids=RIGHT)
def test_rounding_passes(id: str, norm: NormFactory, recipe: str) -> None:
    found = follow(id, norm, recipe)
    assert found.passed, str(found)


@pytest.mark.parametrize(("id", "recipe"), CASES)
@pytest.mark.parametrize("norm", WRONG.values(), ids=WRONG)
def test_a_wrong_norm_fails(id: str, norm: NormFactory, recipe: str) -> None:
    found = follow(id, norm, recipe)
    assert not found.passed, str(found)
    assert "BEYOND ROUNDING" in str(found)


def test_nan_fails() -> None:
    class NotANumber(nn.BatchNorm2d):
        def forward(self, input: Tensor) -> Tensor:
            return super().forward(input) * torch.nan

    found = follow("fused", NotANumber)
    assert not found.passed
    assert "BEYOND ROUNDING from step 1 on" in str(found)


@pytest.mark.parametrize(
    ("ours", "passed"),
    [
        (lambda losses: losses, True),
        (lambda losses: losses * (1 + 1e-7), True),
        (lambda losses: losses + torch.tensor([0.0, 1e-5, 0.0, 0.0]), False),
        (lambda losses: losses + torch.tensor([0.0, 0.0, 0.0, 1e-5]), True),
    ],
    ids=["equal", "one float32 rounding", "before the controls drift", "after a control has drifted"],
)
def test_bound_is_the_drift_of_the_controls(ours: Callable[[Tensor], Tensor], passed: bool) -> None:
    reference = torch.tensor([2.0, 1.9, 1.8, 1.7], dtype=torch.float64)
    control = reference + torch.tensor([0.0, 0.0, -1e-5, 0.0])
    differences, bounds = agreement.compare(reference, ours(reference), [reference, control])
    assert bool((differences <= bounds).all()) == passed
    smallest = agreement.FACTOR * torch.finfo(torch.float32).eps
    largest = agreement.FACTOR * 1e-5 / 1.8
    assert bounds.tolist() == pytest.approx([smallest, smallest, largest, largest], rel=1e-3)


def test_rounding_moves_values_and_gradients_by_its_units() -> None:
    rounding = agreement.Rounding(torch.Generator().manual_seed(0))
    input = torch.randn(64, 6, 28, 28, requires_grad=True)
    output = rounding(input)
    (gradient,) = torch.autograd.grad(output, input, input.detach())
    for moved in (output.detach(), gradient):
        scale = agreement.ROUNDING_UNITS * torch.finfo(torch.float32).eps * (input.detach().abs() + 1)
        units = ((moved - input.detach()) / scale).abs()
        assert 0.9 < units.max() < 1.1  # the root mean square of the values is 1 within a few parts in 1000
        assert units.mean() == pytest.approx(0.5, abs=0.05)

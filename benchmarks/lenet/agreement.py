"""Do nn.BatchNorm2d and fused_bn follow the same losses from one seed, up to rounding?

Rounding differences grow in training. Where a ReLU's input is within rounding of zero, they change a gradient
by far more than a rounding. A fixed tolerance would either miss faults or fail good kernels, so the bound is
measured by A/A controls: nn.BatchNorm2d trains again from the same seed, CONTROLS times, with `Rounding` on
each norm's output and on the gradient that it receives. The largest difference of a control's losses up to a
step, times FACTOR, bounds ours at that step.

ROUNDING_UNITS is what a kernel is allowed: 2e-6 of the scale of its output, which is 16.8 units of float32.
FACTOR comes from 8 to 14 seeds of both placements and both recipes in float32. The same norm was computed in
other ways: in float64, as one multiply-add, by sum and sum of squares, with 1 or 2 units of rounding. These
differed by at most 1.5 times the controls' drift with tanh (80 runs), 4.3 times with ReLU (233 runs), and 2.9
times in bfloat16 (72 runs, 3 seeds). FACTOR is about twice the largest. Faults of one part in 1e5 of the
variance (the unbiased one, or eps 2e-5 for 1e-5) reach 13 times and more with tanh. With ReLU a few reach
only 4 and pass; in bfloat16 rounding hides them. A gradient without the term of the mean reaches tens of
thousands.
"""

from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from benchmarks.lenet import processes
from benchmarks.lenet.model import VARIANTS, NormFactory, Variant, relu_after
from benchmarks.lenet.training import Data, Settings, Trainer

PAIRS = {"fused": "torch", "fused-relu": "torch-relu"}
"""The variant that each of ours must follow."""

STEPS = 100
CONTROLS = 3
ROUNDING_UNITS = 16
FACTOR = 8.0


@dataclass(frozen=True)
class Agreement:
    """The distance of `ours`' losses from `reference`'s. Lists have one entry per step."""

    reference: str
    ours: str
    passed: bool
    largest: float
    largest_at_step: int
    reference_losses: list[float]
    our_losses: list[float]
    differences: list[float]
    bounds: list[float]

    def __str__(self) -> str:
        text = (
            f"{self.ours} against {self.reference}: largest relative difference of the losses over "
            f"{len(self.differences)} steps {self.largest:.1e} at step {self.largest_at_step} "
            f"(rounding allows {self.bounds[self.largest_at_step - 1]:.1e})"
        )
        if self.passed:
            return text
        step = next(
            i for i, (d, b) in enumerate(zip(self.differences, self.bounds, strict=True)) if not d <= b
        )
        return (
            f"{text}: BEYOND ROUNDING from step {step + 1} on, "
            f"{self.differences[step]:.1e} where rounding allows {self.bounds[step]:.1e}"
        )


class Rounding(nn.Module):
    """Moves each value, and in backward each gradient, by up to ROUNDING_UNITS float32 roundings.

    The moves are random and uniform, and at least one rounding of the value's dtype. The rounding of a value
    x in a tensor with root mean square r is eps * (|x| + r), because a norm adds and subtracts terms of that
    size.
    """

    def __init__(self, generator: torch.Generator) -> None:
        super().__init__()
        self.generator = generator

    def forward(self, input: Tensor) -> Tensor:
        output: Tensor = _RoundBothWays.apply(input, self.generator)
        return output


class _RoundBothWays(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, input: Tensor, generator: torch.Generator) -> Tensor:
        ctx.generator = generator
        return _rounded(input, generator)

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor, None]:
        return _rounded(gradients[0], ctx.generator), None


def _rounded(values: Tensor, generator: torch.Generator) -> Tensor:
    unit = max(ROUNDING_UNITS * torch.finfo(torch.float32).eps, torch.finfo(values.dtype).eps)
    wide = values.float()
    noise = torch.empty_like(wide).uniform_(-unit, unit, generator=generator)
    return (wide + noise * (wide.abs() + wide.square().mean().sqrt())).to(values.dtype)


def compare(reference: Tensor, ours: Tensor, controls: list[Tensor]) -> tuple[Tensor, Tensor]:
    """The relative differences of `ours` and their bounds. All arguments are losses of shape (steps,)."""

    def relative(losses: Tensor) -> Tensor:
        return (losses - reference).abs() / reference.abs()

    drift = torch.stack([relative(control) for control in controls]).amax(0).cummax(0).values
    return relative(ours), FACTOR * drift.clamp_min(torch.finfo(torch.float32).eps)


def follow(ours: Variant, data: Data, settings: Settings, trainer: type[Trainer] = Trainer) -> Agreement:
    """Trains `ours`, its reference and the A/A controls, each for STEPS steps from `settings.seed`.

    `trainer` trains `ours` and may share the work with other processes, which all call this. The first
    process alone trains the others.
    """
    reference = VARIANTS[PAIRS[ours.id]]

    def losses(norm: NormFactory | None, trainer: type[Trainer] = Trainer) -> Tensor:
        return trainer(norm, ours.tanh, data, settings).losses(STEPS)

    reference_losses, controls = processes.broadcast(
        lambda: (losses(reference.norm), [losses(_control(ours.tanh, settings, i)) for i in range(CONTROLS)])
    )
    our_losses = losses(ours.norm, trainer)
    differences, bounds = compare(reference_losses, our_losses, controls)
    worst = int(differences.nan_to_num(torch.inf).argmax())
    return Agreement(
        reference.id,
        ours.id,
        bool((differences <= bounds).all()),
        differences[worst].item(),
        worst + 1,
        reference_losses.tolist(),
        our_losses.tolist(),
        differences.tolist(),
        bounds.tolist(),
    )


def _control(tanh: bool, settings: Settings, number: int) -> NormFactory:
    generator = torch.Generator(settings.device).manual_seed(settings.seed * CONTROLS + number)

    def norm(channels: int) -> nn.Module:
        return nn.Sequential(nn.BatchNorm2d(channels), Rounding(generator))

    return norm if tanh else relu_after(norm)

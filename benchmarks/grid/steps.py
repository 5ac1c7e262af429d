"""Whole training steps of LeNet-5 and ResNet-50, with eager norms and with ours."""

from collections.abc import Callable
from dataclasses import dataclass
from functools import partial

import torch
from torch import nn

from benchmarks.comparison import Case, WrongResultError
from benchmarks.grid.cells import STEPS, Cell
from benchmarks.grid.group import Effort, Measured, read
from benchmarks.lenet.model import VARIANTS
from benchmarks.lenet.training import Data, Settings, Trainer
from benchmarks.memory import peak_bytes
from benchmarks.resnet.comparison import Case as ResNetCase
from benchmarks.resnet.comparison import Comparison as ResNetComparison

LENET_ROWS = {"eager": "torch-relu", "compile": "torch-relu", "ours": "fused-relu"}
LOSS = 1e-5
"""Relative, for the first two steps. Over 100 steps the losses of LeNet-5's variants were up to 2e-7 apart.
"""


@dataclass(frozen=True)
class Step:
    """One training step: frees the last step's gradients, then forward, backward and update."""

    model: nn.Module
    run: Callable[[], object]

    def __call__(self) -> object:
        return self.run()

    def peak_bytes(self, device: torch.device) -> int:
        """The peak of live bytes in a step that starts without gradients."""
        self.model.zero_grad(set_to_none=True)
        return peak_bytes(self.run, device)


Steps = dict[str, Step]
"""The steps by row."""


@dataclass(frozen=True)
class StepCell:
    """A network and its images. `quick`: a step takes milliseconds."""

    network: str
    case: Case
    quick: bool = False

    @property
    def cell(self) -> Cell:
        return Cell(STEPS, self.case, f"{self.network} step")


STEP_CELLS = (
    StepCell("LeNet-5", Case((64, 1, 32, 32), "contiguous", "float32"), quick=True),
    StepCell("ResNet-50", Case((8, 3, 224, 224), "contiguous", "float32")),
    StepCell("ResNet-50", Case((8, 3, 224, 224), "channels_last", "float32")),
    StepCell("ResNet-50", Case((8, 3, 224, 224), "channels_last", "bfloat16")),
)


def measure(step_cell: StepCell, device: torch.device, effort: Effort, compile: bool = False) -> Measured:
    """Times steps in turns. Raises WrongResultError if losses or gradients are not eager's."""
    make = {"LeNet-5": lenet_steps, "ResNet-50": resnet_steps}[step_cell.network]
    steps = make(step_cell.case, device, compile)
    measured = Measured(step_cell.cell, str(device))
    measured.readings = read(steps, effort, device)
    measured.peaks = {row: step.peak_bytes(device) for row, step in steps.items()}
    return measured


def lenet_steps(case: Case, device: torch.device, compile: bool) -> Steps:
    """Steps on random images. Their values do not affect the time."""
    generator = torch.Generator().manual_seed(0)
    images = torch.rand(case.shape, generator=generator).to(device)
    labels = torch.randint(10, case.shape[:1], generator=generator).to(device)
    data = Data(images, labels, images, labels)
    settings = Settings("modern", batch_size=case.shape[0], device=device)
    rows = LENET_ROWS if compile else {row: id for row, id in LENET_ROWS.items() if row != "compile"}
    trainers = {
        row: Trainer(VARIANTS[id].norm, VARIANTS[id].tanh, data, settings) for row, id in rows.items()
    }
    if compile:
        torch.compiler.reset()
        # The module's own method `compile` would silently compile nothing of an nn.Sequential.
        compiled = torch.compile(trainers["compile"].model, dynamic=False)
        trainers["compile"].model = compiled  # type: ignore[assignment]
    losses = {row: trainer.losses(2) for row, trainer in trainers.items()}
    for row, loss in losses.items():
        if not torch.allclose(loss, losses["eager"], rtol=LOSS, atol=0):
            raise WrongResultError(f"{row}: losses {loss.tolist()}, eager's {losses['eager'].tolist()}")
    return {
        row: Step(trainer.model, partial(trainer.step, images, labels)) for row, trainer in trainers.items()
    }


def resnet_steps(case: Case, device: torch.device, compile: bool) -> Steps:
    """The rows of `python -m benchmarks.resnet`. "ours" is called as in the other groups."""
    batch, _, size, _ = case.shape
    comparison = ResNetComparison(ResNetCase(batch, size, case.layout, case.dtype), device, compile)
    comparison.check()
    names = {"fused": "ours", "fused, recomputed": "ours, recomputed", "eager, compiled": "compile"}
    return {
        names.get(row, row): Step(model, comparison.step(row)) for row, model in comparison.models.items()
    }

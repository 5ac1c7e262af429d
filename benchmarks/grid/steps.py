"""Whole training steps, end to end: LeNet-5 and ResNet-50 with eager norms and with ours."""

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
"""Relatively, of the first two steps; over 100 the losses of LeNet-5's variants were seen 2e-7 apart."""


@dataclass(frozen=True)
class Step:
    """Forward, backward and update of a model, which frees the gradients of the step before at its start."""

    model: nn.Module
    run: Callable[[], object]

    def __call__(self) -> object:
        return self.run()

    def peak_bytes(self, device: torch.device) -> int:
        """The most bytes alive at once in a step that begins without gradients and makes its own."""
        self.model.zero_grad(set_to_none=True)
        return peak_bytes(self.run, device)


Steps = dict[str, Step]
"""By row."""


@dataclass(frozen=True)
class StepCell:
    """A network and its images; `quick` where a step takes milliseconds."""

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
    """Steps in turns; raises WrongResultError where losses or gradients are not eager's."""
    make = {"LeNet-5": lenet_steps, "ResNet-50": resnet_steps}[step_cell.network]
    steps = make(step_cell.case, device, compile)
    measured = Measured(step_cell.cell, str(device))
    measured.readings = read(steps, effort, device)
    measured.peaks = {row: step.peak_bytes(device) for row, step in steps.items()}
    return measured


def lenet_steps(case: Case, device: torch.device, compile: bool) -> Steps:
    """On random images: what is in them takes no time."""
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
        # Its own method `compile` would compile nothing of an nn.Sequential, and not say so.
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
    """The rows of `python -m benchmarks.resnet`, "ours" as in the other groups."""
    batch, _, size, _ = case.shape
    comparison = ResNetComparison(ResNetCase(batch, size, case.layout, case.dtype), device, compile)
    comparison.check()
    names = {"fused": "ours", "fused, recomputed": "ours, recomputed", "eager, compiled": "compile"}
    return {
        names.get(row, row): Step(model, comparison.step(row)) for row, model in comparison.models.items()
    }

"""The compared models: one ResNet-50 with four kinds of norms, on the same images, in every process."""

import copy
from collections.abc import Callable, Iterator

import torch
from torch import Tensor, distributed, nn
from torch.nn import functional as F

import fused_bn
from benchmarks.comparison import LAYOUTS, WrongResultError
from benchmarks.parallel import data_parallel
from benchmarks.resnet.comparison import distance, training_step
from benchmarks.sync import traffic
from benchmarks.sync.baseline import LeanSyncBatchNorm, PythonSyncBatchNorm, with_norms

LOCAL, SYNCHRONISED, PYTHON, LEAN = "own statistics", "synchronised", "Python", "Python, lean"
"""Rows: our norms without synchronisation, ours with it, `PythonSyncBatchNorm`, `LeanSyncBatchNorm`."""


class Comparison:
    """The models of one process. All processes of the group must make, check and run theirs at the same time.

    Args:
        batch: images per step and process, of (3, size, size).
        make: makes the model, with nn.BatchNorm2d. All rows start with the same parameters, and train.
    """

    def __init__(self, batch: int, size: int, layout: str, make: Callable[[], nn.Module]) -> None:
        torch.manual_seed(0)
        count, rank = distributed.get_world_size(), distributed.get_rank()
        format = LAYOUTS[layout]
        self.alone = make().to(memory_format=format)  # type: ignore[call-overload]

        def copied() -> nn.Module:
            return copy.deepcopy(self.alone)

        self.models: dict[str, nn.Module] = {
            LOCAL: fused_bn.fuse(copied()),
            SYNCHRONISED: fused_bn.convert_sync_batchnorm(fused_bn.fuse(copied())),
            PYTHON: with_norms(copied(), PythonSyncBatchNorm),
            LEAN: with_norms(copied(), LeanSyncBatchNorm),
        }
        self.parallel = {row: data_parallel(model) for row, model in self.models.items()}
        self.whole = torch.randn(count * batch, 3, size, size).contiguous(memory_format=format)
        self.whole_labels = torch.randint(0, 1000, (count * batch,))
        mine = slice(rank * batch, (rank + 1) * batch)
        self.images, self.labels = self.whole[mine], self.whole_labels[mine]

    @property
    def norms(self) -> int:
        """The number of norms in the model."""
        return sum(isinstance(module, nn.BatchNorm2d) for module in self.alone.modules())

    def step(self, row: str) -> Callable[[], object]:
        """One step of training."""
        model = self.parallel[row]
        return training_step(model, lambda: F.cross_entropy(model(self.images), self.labels))

    def traffic(self, row: str) -> dict[str, traffic.Traffic]:
        """The messages of a step's norms, by direction."""
        return traffic.of_step(self.models[row], self.images)

    def check(self) -> None:
        """Runs all synchronised rows once and compares them with each other and with one process.

        The one process runs the whole batch. Call it before timing. As in benchmarks/resnet, gradients may
        differ three times as much as those of one process if every pixel moves by its last bit.

        Raises:
            WrongResultError: in all processes, because all have the same averages.
        """
        loss, gradients = _alone(self.alone, self.whole, self.whole_labels)
        moved = torch.nextafter(self.whole, torch.full_like(self.whole, torch.inf))
        allowed = 3 * distance(_alone(self.alone, moved, self.whole_labels)[1], gradients)
        found = {"one process": (loss, gradients)}
        for row in (SYNCHRONISED, PYTHON, LEAN):
            found[row] = self._together(row)
        for row, other in _pairs(list(found)):
            (one, of_one), (two, of_two) = found[row], found[other]
            if not abs(one - two) <= 1e-4 * abs(two):
                raise WrongResultError(f"{row}: loss {one}, but {two} by {other}")
            if not (off := distance(of_one, of_two)) <= allowed:
                raise WrongResultError(f"{row}: gradients off {other} by {off:.1e}, allowed {allowed:.1e}")

    def _together(self, row: str) -> tuple[float, list[Tensor]]:
        """The mean loss of all processes, and its gradients."""
        model = self.parallel[row]
        loss = F.cross_entropy(model(self.images), self.labels)
        loss.backward()
        gradients = [parameter.grad for parameter in model.parameters() if parameter.grad is not None]
        model.zero_grad(set_to_none=True)
        total = loss.detach().clone()
        distributed.all_reduce(total)
        return total.item() / distributed.get_world_size(), gradients


def _alone(model: nn.Module, images: Tensor, labels: Tensor) -> tuple[float, list[Tensor]]:
    loss = F.cross_entropy(model(images), labels)
    return loss.item(), list(torch.autograd.grad(loss, list(model.parameters())))


def _pairs(names: list[str]) -> Iterator[tuple[str, str]]:
    """All pairs of a name with an earlier one."""
    return ((name, other) for i, name in enumerate(names) for other in names[:i])

"""Training of one LeNet-5 by several processes, each with its share of every batch, as if by one."""

import torch
from torch import Tensor, distributed
from torch.nn import functional as F

import fused_bn
from benchmarks.lenet import processes
from benchmarks.lenet.model import NormFactory
from benchmarks.lenet.training import Data, Settings, Trainer
from benchmarks.parallel import data_parallel

VARIANTS = ("none", "fused", "fused-relu")
"""Those that several processes can train: PyTorch has no synchronised norm for the CPU."""


def share(total: int, rank: int, count: int) -> slice:
    """The part of `total` images that process `rank` of `count` takes: sizes differ by at most one."""
    return slice(total * rank // count, total * (rank + 1) // count)


class SharedTrainer(Trainer):
    """A `Trainer` that exists in every process; `batches`, `losses` and epochs are those of one process.

    The norms are synchronised, the gradients averaged by DistributedDataParallel. In training, `loss` is of
    this process's share, weighted so that the average over the processes is that of the whole batch, however
    it is split; a share may be empty. `step` returns the whole batch's.
    """

    def __init__(self, norm: NormFactory | None, tanh: bool, data: Data, settings: Settings) -> None:
        super().__init__(norm, tanh, data, settings)
        fused_bn.convert_sync_batchnorm(self.model)
        self.parallel = data_parallel(self.model)

    def loss(self, images: Tensor, labels: Tensor) -> tuple[Tensor, Tensor]:
        if not self.model.training:
            return super().loss(images, labels)
        mine = share(len(labels), processes.rank(), processes.count())
        with self.settings.autocast():
            output = self.parallel(images[mine])
        total = F.cross_entropy(output.float(), labels[mine], reduction="sum")
        correct = (output.argmax(1) == labels[mine]).sum()
        return total * (processes.count() / len(labels)), correct

    def step(self, images: Tensor, labels: Tensor) -> tuple[Tensor, Tensor]:
        loss, correct = super().step(images, labels)
        sums = torch.stack([loss.double() / processes.count(), correct.double()])
        distributed.all_reduce(sums)
        return sums[0], sums[1]

    def evaluate(self) -> dict[str, float]:
        """By the first process; the others wait for what it found."""
        return processes.told(super().evaluate)

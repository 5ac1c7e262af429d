"""Trains one LeNet-5 in several processes. Each takes a share of every batch."""

import torch
from torch import Tensor, distributed
from torch.nn import functional as F

import fused_bn
from benchmarks.lenet import processes
from benchmarks.lenet.model import NormFactory
from benchmarks.lenet.training import Data, Settings, Trainer
from benchmarks.parallel import data_parallel

VARIANTS = ("none", "fused", "fused-relu")
"""Variants that several processes can train. PyTorch has no synchronised norm for the CPU."""


def share(total: int, rank: int, count: int) -> slice:
    """The slice of `total` images for process `rank` of `count`. Sizes differ by at most one."""
    return slice(total * rank // count, total * (rank + 1) // count)


class SharedTrainer(Trainer):
    """A `Trainer` for one of several processes. `batches`, `losses` and epochs are as in one process.

    Norms are synchronised, and DistributedDataParallel averages the gradients. In training, `loss` is the
    loss of this process's share, weighted so that the processes' average is the loss of the whole batch.
    Shares may differ in size or be empty. `step` returns the loss of the whole batch.
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
        """The first process evaluates. The others wait for its result."""
        return processes.broadcast(super().evaluate)

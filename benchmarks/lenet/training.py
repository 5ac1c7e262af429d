"""Trains and evaluates one LeNet-5. Data are in memory; the same seed gives the same batches."""

import math
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from itertools import islice
from typing import NamedTuple

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from benchmarks.lenet.model import NormFactory, lenet5
from benchmarks.mnist import Mnist
from benchmarks.timing import synchronize

LEARNING_RATE = 1e-3
REPORT_EVERY = 20  # steps between two reports: reading a loss waits for the device
EVALUATION_BATCH = 1000


class Progress(NamedTuple):
    """The progress of an epoch: finished steps, and means over them."""

    steps: int
    loss: float
    accuracy: float
    images_per_second: float


@dataclass(frozen=True)
class Settings:
    """Settings of all variants of a job. bfloat16 means autocast around float32 parameters."""

    recipe: str = "article"
    batch_size: int = 64
    device: torch.device = field(default_factory=lambda: torch.device("cpu"))
    dtype: torch.dtype = torch.float32
    seed: int = 0

    def autocast(self) -> torch.autocast:
        return torch.autocast(self.device.type, torch.bfloat16, enabled=self.dtype == torch.bfloat16)


@dataclass(frozen=True)
class Data:
    """Images are float32 of shape (N, 1, 32, 32) in [0, 1], labels int64 of shape (N,)."""

    train_images: Tensor
    train_labels: Tensor
    test_images: Tensor
    test_labels: Tensor

    @classmethod
    def of(cls, mnist: Mnist, device: torch.device) -> "Data":
        """MNIST on `device`, enlarged from 28x28 to 32x32.

        Bilinear with antialias on uint8, as torchvision's Resize and ToTensor do by default.
        """
        pairs = ((mnist.train_images, mnist.train_labels), (mnist.test_images, mnist.test_labels))
        tensors: list[Tensor] = []
        for images, labels in pairs:
            small = torch.from_numpy(images).unsqueeze(1)
            large = F.interpolate(small, size=(32, 32), mode="bilinear", antialias=True)
            tensors += [
                large.to(device, torch.float32).div_(255),
                torch.from_numpy(labels).to(device, torch.int64),
            ]
        return cls(*tensors)


@dataclass(frozen=True)
class Epoch:
    """The figures of one epoch: accuracies in [0, 1], seconds of training without the evaluation."""

    number: int
    steps: int
    seconds: float
    images_per_second: float
    train_loss: float
    train_accuracy: float
    test_loss: float
    test_accuracy: float


class Trainer:
    """A model with its optimiser and its own order of the data, all from `settings.seed`."""

    def __init__(self, norm: NormFactory | None, tanh: bool, data: Data, settings: Settings) -> None:
        torch.manual_seed(settings.seed)
        self.model: nn.Sequential = lenet5(norm, tanh=tanh, recipe=settings.recipe).to(settings.device)
        self.optimizer = torch.optim.Adam(self.model.parameters(), lr=LEARNING_RATE)
        self.data = data
        self.settings = settings
        self.epochs: list[Epoch] = []
        self._order = torch.Generator().manual_seed(settings.seed)

    def batches(self) -> Iterator[tuple[Tensor, Tensor]]:
        """One epoch of (images, labels) in a new random order. The last batch may be smaller."""
        images, labels = self.data.train_images, self.data.train_labels
        order = torch.randperm(len(labels), generator=self._order).to(images.device)
        for indices in order.split(self.settings.batch_size):
            yield images.index_select(0, indices), labels.index_select(0, indices)

    def loss(self, images: Tensor, labels: Tensor) -> tuple[Tensor, Tensor]:
        """The mean loss and the number of right answers, both scalar tensors."""
        with self.settings.autocast():
            output = self.model(images)
        return F.cross_entropy(output.float(), labels), (output.argmax(1) == labels).sum()

    def step(self, images: Tensor, labels: Tensor) -> tuple[Tensor, Tensor]:
        """Updates the parameters once. Returns the results of `loss`, detached."""
        self.optimizer.zero_grad(set_to_none=True)
        loss, correct = self.loss(images, labels)
        loss.backward()
        self.optimizer.step()
        return loss.detach(), correct

    def losses(self, steps: int) -> Tensor:
        """The losses of the next `steps` steps, over several epochs if needed: float64 of shape (steps,)."""
        self.model.train()
        endless = (batch for _ in iter(int, 1) for batch in self.batches())
        return torch.stack([self.step(*batch)[0] for batch in islice(endless, steps)]).double().cpu()

    @property
    def steps_per_epoch(self) -> int:
        """The number of batches in the training images."""
        return math.ceil(len(self.data.train_labels) / self.settings.batch_size)

    def train_epoch(
        self, limit: int | None = None, report: Callable[[Progress], None] = lambda _: None
    ) -> Epoch:
        """Trains on all images or at most `limit` batches of them, evaluates, and stores the figures."""
        self.model.train()
        device = self.settings.device
        sums = torch.zeros(2, dtype=torch.float64, device=device)  # sums of losses and of right answers
        steps = images_seen = 0

        def progress() -> Progress:
            loss, correct = sums.tolist()  # waits for the device
            seconds = time.perf_counter() - start
            return Progress(steps, loss / images_seen, correct / images_seen, images_seen / seconds)

        synchronize(device)
        start = time.perf_counter()
        for images, labels in islice(self.batches(), limit):
            loss, correct = self.step(images, labels)
            sums += torch.stack([loss * len(labels), correct])
            steps += 1
            images_seen += len(labels)
            if steps % REPORT_EVERY == 0:
                report(progress())
        end = progress()
        report(end)
        epoch = Epoch(
            number=len(self.epochs) + 1,
            steps=steps,
            seconds=images_seen / end.images_per_second,
            images_per_second=end.images_per_second,
            train_loss=end.loss,
            train_accuracy=end.accuracy,
            **self.evaluate(),
        )
        self.epochs.append(epoch)
        return epoch

    @torch.no_grad()
    def evaluate(self) -> dict[str, float]:
        """The mean loss and the accuracy on the test images, with `Epoch`'s names."""
        self.model.eval()
        sums = torch.zeros(2, dtype=torch.float64, device=self.settings.device)
        batches = zip(
            self.data.test_images.split(EVALUATION_BATCH),
            self.data.test_labels.split(EVALUATION_BATCH),
            strict=True,
        )
        for images, labels in batches:
            loss, correct = self.loss(images, labels)
            sums += torch.stack([loss * len(labels), correct])
        loss_sum, correct_sum = sums.tolist()
        count = len(self.data.test_labels)
        return {"test_loss": loss_sum / count, "test_accuracy": correct_sum / count}

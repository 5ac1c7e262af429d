"""Stage lenet: training steps of LeNet-5, eager and in a CUDA graph, and host time of a tiny call."""

import itertools
import random
import sys
from collections.abc import Callable, Iterator

import numpy as np
import torch
from torch import Tensor

from benchmarks import contest, mnist, timing
from benchmarks.gpu.captured import Captured, own_stream
from benchmarks.gpu.job import Job, main, require_kernels
from benchmarks.lenet.model import VARIANTS, Variant
from benchmarks.lenet.training import LEARNING_RATE, Data, Settings, Trainer

BATCH = 64
ROUNDS, SMOKE_ROUNDS = 11, 2
SLOT_SECONDS, SMOKE_SLOT_SECONDS = 0.05, 0.001
WARM_UP = 3
COMPARED_STEPS = 10
TOLERANCE = 1e-3
"""Relatively, of the losses: convolutions may be computed in another order in a graph."""
RANDOM_IMAGES = 6400
TINY = contest.Case((2, 4, 2, 2), "contiguous", "float32")
"""So small that its time is what the host needs to call anything."""


def images() -> mnist.Mnist:
    """MNIST where it is on this machine, else random images of its shape."""
    try:
        return mnist.load(download=False)
    except mnist.MnistError:
        generator = np.random.default_rng(0)
        pictures = generator.integers(0, 256, (RANDOM_IMAGES, 28, 28), np.uint8)
        labels = generator.integers(0, 10, RANDOM_IMAGES, np.uint8)
        return mnist.Mnist("random images", pictures, labels, pictures[:1000], labels[:1000])


class Steps:
    """One variant's training, a step a call, on batches that lie on the device."""

    def __init__(self, variant: Variant, data: Data, settings: Settings, captured: bool) -> None:
        self.trainer = Trainer(variant.norm, variant.tanh, data, settings)
        self.trainer.model.train()
        if settings.device.type == "cuda":  # in a graph Adam counts its steps on the device; so do both
            parameters = self.trainer.model.parameters()
            self.trainer.optimizer = torch.optim.Adam(parameters, lr=LEARNING_RATE, capturable=True)
        self._batches = self._whole_batches()
        self.captured: Captured[Tensor] | None = None
        if captured:
            self._capture(settings.device)

    def __call__(self) -> Tensor:
        """One step; its loss, which a graph's next step overwrites."""
        images, labels = next(self._batches)
        if self.captured is None:
            return self.trainer.step(images, labels)[0]
        self._images.copy_(images)
        self._labels.copy_(labels)
        self.captured.replay()
        return self.captured.result

    def _capture(self, device: torch.device) -> None:
        """After WARM_UP real steps, each on a batch of its own, as eager steps are."""
        self._images, self._labels = (tensor.clone() for tensor in next(self._batches))
        following = itertools.chain([(self._images.clone(), self._labels.clone())], self._batches)
        for images, labels in itertools.islice(following, WARM_UP):
            self._images.copy_(images)
            self._labels.copy_(labels)
            self.trainer.step(self._images, self._labels)
        self.captured = Captured(lambda: self.trainer.step(self._images, self._labels)[0], device, warm_up=0)

    def _whole_batches(self) -> Iterator[tuple[Tensor, Tensor]]:
        """Without end, and without an epoch's last batch where it is smaller."""
        while True:
            for images, labels in self.trainer.batches():
                if len(labels) == self.trainer.settings.batch_size:
                    yield images, labels


def disagreement(variant: Variant, data: Data, settings: Settings) -> str:
    """Where a graph's losses leave those of eager steps from the same seed; empty where they do not."""
    eager, graph = (Steps(variant, data, settings, captured) for captured in (False, True))
    for _ in range(WARM_UP):
        eager()
    for step in range(WARM_UP, WARM_UP + COMPARED_STEPS):
        expected, actual = eager().item(), graph().item()
        if not abs(actual - expected) <= TOLERANCE * abs(expected):
            return f"step {step}: loss {actual:.6f} in a graph, {expected:.6f} by eager calls"
    return ""


def measure_steps(job: Job, device: torch.device, order: random.Random) -> None:
    """Seconds a step by variant and mode, the modes and variants in turn."""
    found = images()
    job.readings.update(images=found.source, batch=BATCH)
    data, settings = Data.of(found, device), Settings(batch_size=BATCH, device=device)
    variants = [VARIANTS["fused-relu"], VARIANTS["torch-relu"]] if job.smoke else list(VARIANTS.values())
    modes = {"eager": False, "graph": True} if device.type == "cuda" else {"eager": False}
    slots: dict[str, Callable[[], object]] = {}
    with own_stream(device):
        for variant in variants:
            if "graph" in modes and (wrong := disagreement(variant, data, settings)):
                job.fail(f"{variant.id}: {wrong}")
            for mode, captured in modes.items():
                slots[f"{variant.id} {mode}"] = Steps(variant, data, settings, captured)
        rounds, slot = (SMOKE_ROUNDS, SMOKE_SLOT_SECONDS) if job.smoke else (ROUNDS, SLOT_SECONDS)
        job.readings["steps"] = timing.interleaved(slots, rounds, device, order, slot)
    for name, values in job.readings["steps"].items():
        print(f"{name}: {BATCH / sorted(values)[len(values) // 2]:,.0f} images/s", flush=True)


def measure_host(job: Job, device: torch.device, order: random.Random) -> None:
    """Seconds of a call on next to no data, ours and eager's."""
    competition = contest.Contest(TINY, device)
    competition.check()
    rounds, slot = (SMOKE_ROUNDS, SMOKE_SLOT_SECONDS) if job.smoke else (ROUNDS, SLOT_SECONDS)
    job.readings["host"] = {
        direction: timing.interleaved(competition.slots(direction), rounds, device, order, slot)
        for direction in contest.DIRECTIONS
    }


def work(job: Job) -> None:
    device = require_kernels(job)
    order = random.Random(0)
    measure_host(job, device, order)
    job.save()
    measure_steps(job, device, order)


if __name__ == "__main__":
    sys.exit(main(work))

"""Slots whose data is in no cache: CUDA graphs that run a call on one set of tensors after the other."""

import math
from collections.abc import Iterable

import torch
from torch import Tensor

from benchmarks.comparison import Comparison, Slot
from benchmarks.gpu.captured import Captured
from benchmarks.gpu.table import sets_beyond_l2


def wipe(results: Iterable[Tensor]) -> None:
    """Leaves NaN where results were: who is handed their memory and writes nothing is wrong."""
    for result in results:
        result.detach().fill_(math.nan)


class ColdSlot:
    """Replays one row's calls on all sets, each with results of its own."""

    def __init__(self, calls: list[Slot], device: torch.device) -> None:
        self.captured = Captured(lambda: [call() for call in calls], device, warm_up=2)

    def __call__(self) -> None:
        self.captured.replay()

    def over_nan(self, position: int) -> tuple[Tensor, ...]:
        """One set's results, which only a replay that computes can make right."""
        wipe(self.captured.result[position])
        self.captured.replay()
        return self.captured.result[position]


def sets_of(comparison: Comparison) -> list[Comparison]:
    """The comparison and others on other tensors, more than L2 holds together."""
    device = comparison.device
    l2_bytes = torch.cuda.get_device_properties(device).L2_cache_size if device.type == "cuda" else 0
    count = sets_beyond_l2(comparison.case.tensor_bytes, l2_bytes)
    return [comparison, *(comparison.another(seed) for seed in range(1, count))]

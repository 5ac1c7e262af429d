"""Timing with cold caches: CUDA graphs that run a call on one set of tensors after the other."""

import math
from collections.abc import Iterable

import torch
from torch import Tensor

from benchmarks.comparison import Comparison, Slot
from benchmarks.gpu.captured import Captured
from benchmarks.gpu.table import sets_beyond_l2


def wipe(results: Iterable[Tensor]) -> None:
    """Fills freed results with NaN. A kernel that gets this memory and writes nothing is then wrong."""
    for result in results:
        result.detach().fill_(math.nan)


class ColdSlot:
    """Replays one row's calls on all sets. Each set has its own results."""

    def __init__(self, calls: list[Slot], device: torch.device) -> None:
        self.captured = Captured(lambda: [call() for call in calls], device, warm_up=2)

    def __call__(self) -> None:
        self.captured.replay()

    def over_nan(self, position: int) -> tuple[Tensor, ...]:
        """One set's results. Only a replay that computes can make them right."""
        wipe(self.captured.result[position])
        self.captured.replay()
        return self.captured.result[position]


def sets_of(comparison: Comparison) -> list[Comparison]:
    """The comparison and copies with other tensors, larger together than L2."""
    device = comparison.device
    l2_bytes = torch.cuda.get_device_properties(device).L2_cache_size if device.type == "cuda" else 0
    count = sets_beyond_l2(comparison.case.tensor_bytes, l2_bytes)
    return [comparison, *(comparison.another(seed) for seed in range(1, count))]

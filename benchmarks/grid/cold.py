"""Slots whose data is in no cache: CUDA graphs that run a call on one set of tensors after the other."""

import math
from collections.abc import Mapping

import torch
from torch import Tensor

from benchmarks.contest import Contest, Slot
from benchmarks.gpu.captured import Captured
from benchmarks.gpu.table import sets_beyond_l2


class ColdSlot:
    """Replays one row's calls on all sets, each with results of its own; returns those of the first set."""

    def __init__(self, calls: list[Slot], device: torch.device) -> None:
        self.captured = Captured(lambda: [call() for call in calls], device, warm_up=2)

    def __call__(self) -> tuple[Tensor, ...]:
        self.captured.replay()
        return self.captured.result[0]

    def poison(self) -> None:
        """Overwrites the results, so that only a replay that computes can make them right again."""
        for result in self.captured.result[0]:
            result.detach().fill_(math.nan)


def sets_of(contest: Contest) -> list[Contest]:
    """The contest and others on other tensors, more than L2 holds together."""
    device = contest.device
    l2_bytes = torch.cuda.get_device_properties(device).L2_cache_size if device.type == "cuda" else 0
    count = sets_beyond_l2(contest.case.tensor_bytes, l2_bytes)
    return [contest, *(contest.another(seed) for seed in range(1, count))]


def cold_slots(direction: str, sets: list[Contest], rows: Mapping[str, Slot]) -> dict[str, ColdSlot]:
    """By row, for those in `rows`; a call of a slot is as many calls of the row as there are sets."""
    slots = [one.slots(direction) for one in sets]
    return {row: ColdSlot([each[row] for each in slots], sets[0].device) for row in rows}

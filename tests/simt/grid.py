"""The grid of launches: which shapes, plans and options the kernels are run with, and why each is there."""

from collections.abc import Iterator
from dataclasses import dataclass, replace
from itertools import cycle, product
from typing import Any

import torch

from fused_bn._activations import ACTIVATIONS
from tests.cases import DTYPES, HAS_EXTENSION, Case
from tests.simt.harness import SMALL_DEVICE, Launch

EXCHANGES = ("none", "cluster", "barrier", "two_kernels")

SHAPES: dict[tuple[tuple[int, ...], str], str] = {
    ((3, 2, 4096), "contiguous"): "rows: a row is one full step of single precision",
    ((2, 3, 4104), "contiguous"): "rows: the last step has two lanes",
    ((3, 2, 1001), "contiguous"): "rows: the last vector of each has one element; images begin unaligned",
    ((1, 1, 5003), "contiguous"): "rows: N = 1, C = 1",
    ((2, 3, 13, 400), "contiguous"): "rows: rank 4, a step spans two images",
    ((64, 6, 28, 28), "contiguous"): "LeNet's first: few channels that blocks must share",
    ((64, 16, 10, 10), "contiguous"): "LeNet's second; columns",
    ((5, 24, 7, 7), "contiguous"): "columns: three units of eight channels of 49",
    ((7, 20, 7, 7), "contiguous"): "columns: C is no multiple of the unit, so nothing is aligned",
    ((3, 200, 7, 7), "contiguous"): "columns: slabs of whole units, the last one narrower",
    ((9, 6, 4, 4), "contiguous"): "columns: rows of two vectors",
    ((3, 3, 5, 7), "contiguous"): "columns: everything odd",
    ((1500, 64), "contiguous"): "channels_last, 8 vectors a pixel: sums by shuffles; many steps",
    ((61, 24, 3, 3), "channels_last"): "3 vectors a pixel: sums without shuffles, and idle threads",
    ((16, 3, 8, 8), "channels_last"): "8 pixels a matrix row",
    ((3, 5, 7, 3), "channels_last"): "8 pixels a matrix row, the last row short",
    ((7, 20, 5, 5), "channels_last"): "2 pixels a matrix row, the last row short",
    ((3, 1030, 2, 2), "channels_last"): "pixels cut into slabs, no vector aligned, the last slab narrow",
    ((5, 1032, 2, 2), "channels_last"): "pixels cut into slabs, the last one a single vector",
    ((6, 2056), "contiguous"): "C > 2048: more slabs than groups, and more channels than threads",
    ((1000, 1), "contiguous"): "C = 1: 8 values side by side belong to one channel",
    ((2, 1), "contiguous"): "N * S = 2, the least that can be normalised, of one channel",
    ((2, 40), "contiguous"): "N * S = 2",
    ((1, 5, 2), "contiguous"): "N * S = 2, of one image",
}


@dataclass(frozen=True)
class Trial:
    """A case and how it is launched, forward and backward."""

    case: Case
    launch: Launch
    quick: bool = True

    def __str__(self) -> str:
        return f"{self.case}-{self.launch}"


def small(exchange: str | None = None, **changes: Any) -> Launch:
    return Launch(device=SMALL_DEVICE, exchange=exchange, seed=1, **changes)


def possible(case: Case, launch: Launch) -> bool:
    """Whether there is a plan with this exchange: a slab of one step is not shared by blocks."""
    try:
        launch.plan(case, "forward")
        launch.plan(case, "backward")
    except ValueError:
        return False
    return True


def shape_trials() -> Iterator[Trial]:
    """Every shape, dtype and exchange, aligned and not; in the quick part each shape and exchange once."""
    turn = cycle(range(len(DTYPES)))
    for (shape, layout), exchange in product(SHAPES, EXCHANGES):
        chosen = next(turn)
        for i, (dtype, parameter_dtype) in enumerate(DTYPES):
            case = Case(
                shape, layout, dtype, parameter_dtype, activation=("relu", "leaky_relu", "none")[i % 3]
            )
            for alignment in {16, dtype.itemsize}:
                launch = small(exchange, alignment=alignment)
                if possible(case, launch):
                    quick = i == chosen and (alignment == 16 or exchange == "none")
                    yield Trial(case, launch, quick)


MODES: tuple[dict[str, Any], ...] = (
    {"momentum": 0.1},
    {"momentum": None},
    {"momentum": 1.0},
    {"buffers": False},
    {"buffers": False, "momentum": None},
    {"training": False},
)

OPTION_SHAPES = (
    ((2, 3, 4104), "contiguous"),
    ((3, 2, 1001), "contiguous"),
    ((61, 24, 3, 3), "channels_last"),
    ((3, 5, 7, 3), "channels_last"),
)
"""Each mapping, with whole vectors and without."""


def option_trials() -> Iterator[Trial]:
    """Every combination of options, on each kind of kernel; in the quick part some of them."""
    dtypes = cycle(DTYPES)
    exchanges = cycle(EXCHANGES)
    options = product(
        OPTION_SHAPES, MODES, ("none", "relu", "leaky_relu"), (False, True), (True, False), (True, False)
    )
    for i, ((shape, layout), mode, activation, residual, weight, bias) in enumerate(options):
        dtype, parameter_dtype = next(dtypes)
        case = Case(
            shape, layout, dtype, parameter_dtype, weight, bias, activation=activation, residual=residual
        )
        case, launch = replace(case, **mode), small(next(exchanges))
        if i % 24 == 23:
            next(dtypes), next(exchanges)  # else each option would meet the same few
        yield Trial(case, launch if possible(case, launch) else small(), quick=i % 5 == 0)


def activation_trials() -> Iterator[Trial]:
    """The activations that the others leave out, on each kind of kernel, in training and in evaluation.

    In the quick part two of them for each shape and dtype without a residual, and two with one.
    """
    exchanges = cycle(EXCHANGES)
    others = [name for name in ACTIVATIONS if name not in ("none", "relu", "leaky_relu")]
    options = product(enumerate(OPTION_SHAPES), enumerate(DTYPES), enumerate(others), (False, True))
    for (i, (shape, layout)), (j, dtypes), (k, activation), residual in options:
        case = Case(shape, layout, *dtypes, activation=activation, residual=residual)
        launch = small(next(exchanges))
        quick = (i + j + k) % 4 == 2 * residual
        yield Trial(case, launch if possible(case, launch) else small(), quick)
        yield Trial(replace(case, training=False), small(), quick=False)
        if k == 0:
            next(exchanges)  # else each activation would meet the same ones


RETAINING: dict[tuple[tuple[int, ...], str], tuple[int, ...]] = {
    ((4, 2, 24576), "contiguous"): (3, 4, 5, 6, 12),  # rows: 24 steps of 512 threads; by blocks 8 to 2
    ((3000, 64), "contiguous"): (5, 16, 24),  # columns: 47 steps; by blocks 10 or 9, 3 or 2, 2 or 1
}
"""Shapes of many steps, and into how many blocks they are split."""


def retention_trials() -> Iterator[Trial]:
    """What a block keeps in registers and in shared memory: nothing, a step, a few, all it can."""
    kept: tuple[int | None, ...] = (0, 1, None)
    dtypes = (torch.float32, torch.bfloat16, torch.float16, torch.float64)
    for ((shape, layout), groups), dtype, v, ps in product(RETAINING.items(), dtypes, kept, kept):
        if dtype is torch.float64 and v is not None:
            continue  # keeps nothing in registers
        parameters = dtype if dtype is torch.float64 else torch.float32
        case = Case(shape, layout, dtype, parameters, residual=ps == 1)
        alone = small("none", register_steps=v, shared_steps=ps)
        yield Trial(case, alone, quick=dtype in (torch.float32, torch.bfloat16))
        if v == 0:
            yield Trial(replace(case, activation="silu"), alone, quick=dtype is torch.bfloat16)
        for group, exchange in product(groups, ("cluster", "barrier")):
            if exchange == "cluster" and group not in (2, 4, 8, 16):
                continue
            launch = replace(alone, exchange=exchange, group=group, groups=1)
            yield Trial(case, launch, quick=dtype is torch.float32 and v == 1 and ps != 1)


TEAMS: tuple[tuple[tuple[int, ...], str, dict[str, Any], str], ...] = (
    (
        (2, 3, 4104),
        "contiguous",
        {"group": 4, "groups": 1},
        "3 steps for 4 blocks, 3 slabs one after the other",
    ),
    ((2, 3, 4104), "contiguous", {"group": 2, "groups": 3}, "blocks of 2 steps and of 1"),
    (
        (2, 3, 1001),
        "contiguous",
        {"group": 4, "groups": 2},
        "one step for 4 blocks, and a group with less slabs",
    ),
    ((37, 2056), "contiguous", {"group": 2, "groups": 2}, "5 slabs, the last one narrower, for 2 groups"),
    ((37, 2056), "contiguous", {"group": 1, "groups": 2}, "the same without company"),
    ((37, 2056), "contiguous", {"group": 8, "groups": 1}, "5 steps for 8 blocks"),
    ((37, 1030), "contiguous", {"group": 4, "groups": 2}, "the same without whole vectors"),
    (
        (1500, 64),
        "contiguous",
        {"group": 8, "groups": 1},
        "more than a block's share of registers is not needed",
    ),
    ((1500, 64), "contiguous", {"group": 16, "groups": 1}, "the largest cluster"),
    (
        (25, 5, 7, 3),
        "channels_last",
        {"group": 4, "groups": 1},
        "the short last matrix row is the last block's",
    ),
    ((2, 1), "contiguous", {"group": 2, "groups": 1}, "one element too few for the second block"),
)


def team_trials() -> Iterator[Trial]:
    """Groups that the planner would not choose for so little: several rounds, and blocks without a step."""
    for (shape, layout, team, _), exchange in product(TEAMS, EXCHANGES):
        if (exchange == "none") != (team["group"] == 1):
            continue
        for dtype, parameter_dtype in (DTYPES[0], DTYPES[1], DTYPES[3]):
            for momentum in (0.1, None):
                case = Case(shape, layout, dtype, parameter_dtype, momentum=momentum)
                yield Trial(case, small(exchange, **team), quick=dtype is torch.float32)


def evaluation_trials() -> Iterator[Trial]:
    """Every shape; values that training refuses, because each is its channel's only one; and many blocks."""
    lonely = (((1, 1), "contiguous"), ((1, 17), "contiguous"), ((1, 2056, 1, 1), "channels_last"))
    turn = cycle(range(len(DTYPES)))
    for shape, layout in (*lonely, *SHAPES):
        chosen = next(turn)
        for i, (dtype, parameter_dtype) in enumerate(DTYPES):
            case = Case(shape, layout, dtype, parameter_dtype, training=False, residual=i % 2 == 0)
            yield Trial(case, small(), quick=i == chosen)
            yield Trial(case, small(group=3, groups=1), quick=False)


def trials() -> list[Trial]:
    if not HAS_EXTENSION:  # it holds the planner
        return []
    training = (shape_trials, option_trials, activation_trials, retention_trials, team_trials)
    sources = (*training, evaluation_trials)
    return list(dict.fromkeys(trial for source in sources for trial in source()))

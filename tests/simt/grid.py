"""The grid of launches: the shapes, plans and options with which the kernels run, and the reason for each."""

from collections.abc import Iterator
from dataclasses import dataclass, replace
from itertools import cycle, product
from typing import Any

import torch

from fused_bn._activations import ACTIVATIONS
from tests.cases import DTYPES, HAS_EXTENSION, Case
from tests.simt.harness import SMALL_DEVICE, Launch

PLANS = {
    "none": "resident exchange=none",
    "cluster": "resident exchange=cluster",
    "words": "resident exchange=words",
    "streamed": "streamed",
}
"""The kernels, and how blocks exchange their sums."""

SHAPES: dict[tuple[tuple[int, ...], str], str] = {
    ((3, 2, 4096), "contiguous"): "rows: four passes each, of every thread",
    ((2, 3, 4104), "contiguous"): "rows: the last pass has two lanes",
    ((3, 2, 1001), "contiguous"): "rows of elements: channels and images begin unaligned",
    ((1, 1, 5003), "contiguous"): "rows of elements: N = 1, C = 1",
    ((2, 3, 13, 400), "contiguous"): "rows: rank 4, a pass spans two images",
    ((64, 6, 28, 28), "contiguous"): "LeNet's first: few channels that blocks must share",
    ((64, 16, 10, 10), "contiguous"): "LeNet's second: short rows, in columns",
    ((5, 24, 7, 7), "contiguous"): "columns: units of four or eight channels of 49",
    ((7, 20, 7, 7), "contiguous"): "columns: C is no multiple of a half type's unit",
    ((3, 200, 7, 7), "contiguous"): "columns: tiles of whole units, the last one narrower",
    ((9, 6, 4, 4), "contiguous"): "columns: a channel has two or four vectors",
    ((40, 5, 8), "contiguous"): "columns: a channel is one or two vectors",
    ((3, 3, 5, 7), "contiguous"): "columns of elements: everything odd",
    ((8, 3, 5, 7), "contiguous"): "columns: eight images stand side by side",
    ((1500, 64), "contiguous"): "channels_last, 8 or 16 vectors a pixel: sums by shuffles; many passes",
    ((61, 24, 3, 3), "channels_last"): "3 or 6 vectors a pixel, which is no power of two, and idle threads",
    ((16, 3, 8, 8), "channels_last"): "4 or 8 pixels side by side",
    ((3, 5, 7, 3), "channels_last"): "63 pixels: no number of them that makes whole vectors divides that",
    ((7, 20, 4, 4), "channels_last"): "2 pixels side by side in a half type",
    ((3, 1030, 2, 2), "channels_last"): "2 or 4 pixels would fill more than a block: elements",
    ((5, 1032, 2, 2), "channels_last"): "pixels cut into tiles, the last one narrower",
    ((6, 2056), "contiguous"): "C > 2048: more tiles than groups, and more channels than threads",
    ((1000, 1), "contiguous"): "C = 1: values side by side belong to one channel",
    ((2, 1), "contiguous"): "N * S = 2, the least that can be normalised, of one channel",
    ((2, 40), "contiguous"): "N * S = 2",
    ((1, 5, 2), "contiguous"): "N * S = 2, of one image",
}


@dataclass(frozen=True)
class Trial:
    """A case and its launches, forward and backward."""

    case: Case
    launch: Launch
    quick: bool = True

    def __str__(self) -> str:
        return f"{self.case}-{self.launch}"


def forced(plan: str | None, **parts: int | None) -> str:
    """The text of a forced plan. Only words have several groups; a group has at least two blocks."""
    words = [] if plan is None else [PLANS[plan]]
    if plan != "words":
        parts.pop("groups", None)
    if plan == "none":
        parts.pop("group", None)
    return " ".join([*words, *(f"{name}={value}" for name, value in parts.items() if value is not None)])


def small(
    plan: str | None = None,
    *,
    group: int | None = None,
    groups: int | None = None,
    tile: int | None = None,
    slots: int | None = None,
    **changes: Any,
) -> Launch:
    text = forced(plan, group=group, groups=groups, tile=tile, slots=slots)
    return Launch(device=SMALL_DEVICE, forced=text, seed=1, **changes)


def possible(case: Case, launch: Launch) -> bool:
    """Whether there is such a plan: the resident kernel needs whole vectors that fit shared memory."""
    try:
        launch.plan(case, "forward")
        launch.plan(case, "backward")
    except ValueError:
        return False
    return True


def possible_or_any(case: Case, launch: Launch) -> Launch:
    return launch if possible(case, launch) else small()


def shape_trials() -> Iterator[Trial]:
    """Every shape, dtype and plan, aligned and not. The quick part has each shape and plan once."""
    for (n, (shape, layout)), (k, plan) in product(enumerate(SHAPES), enumerate(PLANS)):
        for i, (dtype, parameter_dtype) in enumerate(DTYPES):
            activation = ("relu", "leaky_relu", "none")[(i + n // len(DTYPES)) % 3]
            case = Case(shape, layout, dtype, parameter_dtype, activation=activation)
            for alignment in (16, dtype.itemsize):
                launch = small(plan, alignment=alignment)
                if possible(case, launch):
                    yield Trial(case, launch, quick=i == (5 * n + k) % len(DTYPES))


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
    ((9, 6, 4, 4), "contiguous"),
    ((61, 24, 3, 3), "channels_last"),
    ((3, 5, 7, 3), "channels_last"),
)
"""Rows and columns, with vectors, single elements and mixed vectors."""


def option_trials() -> Iterator[Trial]:
    """Every combination of options on each kind of kernel. The quick part has some of them."""
    dtypes = cycle(DTYPES)
    plans = cycle(PLANS)
    options = product(
        OPTION_SHAPES, MODES, ("none", "relu", "leaky_relu"), (False, True), (True, False), (True, False)
    )
    for i, ((shape, layout), mode, activation, residual, weight, bias) in enumerate(options):
        dtype, parameter_dtype = next(dtypes)
        case = Case(
            shape, layout, dtype, parameter_dtype, weight, bias, activation=activation, residual=residual
        )
        case, launch = replace(case, **mode), small(next(plans))
        if i % 24 == 23:
            next(dtypes), next(plans)  # otherwise each option would always get the same ones
        yield Trial(case, possible_or_any(case, launch), quick=i % 4 == 0)


def activation_trials() -> Iterator[Trial]:
    """The remaining activations on each kind of kernel, in training and in evaluation.

    For each dtype plans alternate. In the quick part half of the dtypes have a residual.
    """
    plans = tuple(PLANS)
    others = [name for name in ACTIVATIONS if name not in ("none", "relu", "leaky_relu")]
    options = product(enumerate(OPTION_SHAPES), enumerate(DTYPES), enumerate(others), (False, True))
    for (i, (shape, layout)), (j, dtypes), (k, activation), residual in options:
        case = Case(shape, layout, *dtypes, activation=activation, residual=residual)
        launch = possible_or_any(case, small(plans[(j + k + 2 * residual) % 4]))
        yield Trial(case, launch, quick=(i + j + k) % 2 == residual)
        yield Trial(replace(case, training=False), small(), quick=False)


GROUPS: tuple[tuple[tuple[int, ...], str, dict[str, Any], str], ...] = (
    ((3, 7, 4096), "contiguous", {"group": 4, "groups": 2}, "two groups take 7 tiles in turn"),
    ((2, 3, 4104), "contiguous", {"group": 7, "groups": 1}, "blocks with more vectors than others"),
    ((2, 3, 4104), "contiguous", {"group": 16, "groups": 3}, "the largest cluster; a pass has idle threads"),
    ((24, 5, 256), "contiguous", {"group": 3, "tile": 1, "slots": 8}, "slots that stay empty"),
    ((20, 512), "contiguous", {"group": 2, "groups": 1, "tile": 256}, "a lane a channel"),
    ((37, 2056), "contiguous", {"group": 2, "groups": 2}, "tiles in turn, the last one narrower"),
    (
        (37, 2056),
        "contiguous",
        {"group": 9, "groups": 1, "tile": 256},
        "so many words that channels have owners",
    ),
    ((37, 1032), "contiguous", {"group": 5, "groups": 1, "tile": 64}, "all blocks read all words"),
    ((1500, 64), "contiguous", {"group": 16, "groups": 1}, "a channel has more blocks than a batch"),
    ((64, 24, 7, 7), "contiguous", {"group": 2, "groups": 1, "tile": 8}, "three tiles, of channels of 49"),
    ((64, 3, 8, 8), "channels_last", {"group": 4, "groups": 1}, "pixels that stand side by side"),
    ((96, 8, 8), "contiguous", {"group": 2, "groups": 1, "tile": 8}, "channels of whole vectors"),
)


def group_trials() -> Iterator[Trial]:
    """Groups that the planner would not choose for so little: several iterations, and unequal shares."""
    for (shape, layout, parts, _), plan in product(GROUPS, PLANS):
        for dtype, parameter_dtype in (DTYPES[0], DTYPES[2], DTYPES[3], DTYPES[5]):
            for residual in (False, True):
                case = Case(shape, layout, dtype, parameter_dtype, momentum=None, residual=residual)
                launch = small(plan, **parts)
                if possible(case, launch):
                    yield Trial(case, launch, quick=dtype is torch.float32 and residual == (plan == "words"))


DEVICES = ("t4", "a100", "rtx5090")


def device_trials() -> Iterator[Trial]:
    """Devices without features of sm_90: clusters, cp.async, programmatic dependent launch."""
    for (shape, layout), (i, device) in product(OPTION_SHAPES, enumerate(DEVICES)):
        for plan in (None, "streamed"):
            case = Case(shape, layout, activation=("relu", "leaky_relu", "silu")[i])
            yield Trial(case, Launch(device=device, forced=forced(plan), seed=1), quick=plan == "streamed")


def evaluation_trials() -> Iterator[Trial]:
    """Every shape, and one value per channel, which training refuses."""
    lonely = (((1, 1), "contiguous"), ((1, 17), "contiguous"), ((1, 2056, 1, 1), "channels_last"))
    turn = cycle(range(len(DTYPES)))
    for shape, layout in (*lonely, *SHAPES):
        chosen = next(turn)
        for i, (dtype, parameter_dtype) in enumerate(DTYPES):
            case = Case(shape, layout, dtype, parameter_dtype, training=False, residual=i % 2 == 0)
            yield Trial(case, small(), quick=i == chosen)
            yield Trial(case, small(alignment=dtype.itemsize), quick=False)


def trials() -> list[Trial]:
    if not HAS_EXTENSION:  # it holds the planner
        return []
    training = (shape_trials, option_trials, activation_trials, group_trials)
    sources = (*training, device_trials, evaluation_trials)
    return list(dict.fromkeys(trial for source in sources for trial in source()))

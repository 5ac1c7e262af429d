"""What the launch planner decides for a shape on a device: no GPU is needed to ask."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, fields
from math import prod
from typing import Any

import torch

from fused_bn._activations import ACTIVATIONS
from fused_bn._extension import HOW_TO_BUILD, extension, missing_reason

DTYPES = {
    "f32": torch.float32,
    "f64": torch.float64,
    "bf16": torch.bfloat16,
    "f16": torch.float16,
}
OTHER_NAMES = {
    "fp32": "f32",
    "float": "f32",
    "float32": "f32",
    "fp64": "f64",
    "double": "f64",
    "float64": "f64",
    "bfloat16": "bf16",
    "fp16": "f16",
    "half": "f16",
    "float16": "f16",
}
LAYOUTS = ("channels_first", "channels_last")
DIRECTIONS = ("forward", "backward", "evaluation")
MOST = 2**50
"""Elements: see csrc/cuda/plan.h."""
EXCHANGES = {
    "none": "blocks on their own",
    "cluster": "clusters of blocks",
    "barrier": "cooperative launch",
    "two_kernels": "two kernels",
}


@dataclass(frozen=True)
class LaunchPlan:
    """The launch of one direction. Times are in microseconds and predicted, not measured.

    mapping: rows, vectors run along the rows of one channel; or columns, a thread keeps its eight columns of
        a matrix whose columns each belong to one channel.
    whole: all accesses are of 16 aligned bytes. Otherwise nothing is retained.
    slabs, slab_channels, steps: channels whose statistics are computed together, and how many steps of a
        block their values take.
    group, groups, grid: blocks that share a slab; groups that run side by side, taking slabs in turn; blocks.
    rounds: slabs that the busiest group takes.
    exchange: how a group's blocks share sums: none, cluster, barrier, two_kernels.
    register_steps, shared_steps, streamed_steps: of a block's steps, those kept in registers and in shared
        memory, and the most that are left, which are read twice.
    shared_bytes: dynamic shared memory of a block.
    workspace_bytes, words: global memory for the sums, and counters beside it.
    mask_bytes: saved by forward for backward, where there is a residual and its activation needs no more.
    read, written: bytes to and from device memory or L2.
    retained, retained_at_once: bytes that the second pass finds on chip, in all and at one time.
    l2_hits: bytes of the second read that L2 is expected to serve.
    floor_time: every tensor read or written once, at the bandwidth of a copy.
    """

    device: str
    direction: str
    mapping: str
    whole: bool
    exchange: str
    launches: int
    grid: int
    threads: int
    group: int
    groups: int
    rounds: int
    slabs: int
    slab_channels: int
    slab_vectors: int
    lanes: int
    steps: int
    register_steps: int
    shared_steps: int
    streamed_steps: int
    shared_bytes: int
    workspace_bytes: int
    words: int
    mask_bytes: int
    read: int
    written: int
    retained: int
    retained_at_once: int
    l2_hits: int
    floor_time: float
    predicted_time: float

    @property
    def variant(self) -> str:
        """The kernel and how its blocks work together, in a few words."""
        vectors = "whole vectors" if self.whole else "partial vectors"
        return f"{self.direction}, {self.mapping}, {vectors}, {EXCHANGES[self.exchange]}"


def plan(
    shape: Sequence[int],
    dtype: torch.dtype | str = torch.float32,
    layout: str = "channels_first",
    device: str | Mapping[str, float | str] = "h200",
    direction: str = "forward",
    residual: bool = False,
    alignment: int = 16,
    activation: str = "relu",
) -> LaunchPlan:
    """How the CUDA kernels would be launched for a tensor of this shape.

    Args:
        shape: (N, C) or (N, C, ...), none of them 0.
        dtype: torch's, or its name: "bf16", "float32", ...
        layout: "channels_first" or "channels_last".
        device: a model's name ("h200"), or a dict with "architecture" (90 is sm_90) and whatever else of its
            fields differs from the nearest model's.
        direction: "forward" and "backward" in training, or "evaluation".
        residual: whether a tensor is added before the activation.
        alignment: in bytes, the largest power of two up to 16 that divides all the tensors' addresses.
        activation: what follows; of some, kernels keep less on chip, and read a residual in backward too.

    Raises:
        ValueError: names the argument and its value.
        RuntimeError: the extension is not built.
    """
    if extension is None:
        raise RuntimeError(f"the launch planner is part of the extension ({missing_reason}); {HOW_TO_BUILD}")
    sizes = tuple(shape)
    if len(sizes) < 2 or not all(isinstance(size, int) for size in sizes):
        raise ValueError(f"shape must be integers (N, C) or (N, C, ...), but got {sizes}")
    if any(size < 1 or size > MOST for size in sizes) or prod(sizes) > MOST:
        raise ValueError(f"shape must hold at least 1 and at most 2**50 elements, but got {sizes}")
    spatial = prod(sizes[2:])
    made = extension.plan(
        sizes[0],
        sizes[1],
        spatial,
        _one_of("layout", layout, LAYOUTS) if spatial > 1 else "channels_last",
        _dtype_name(dtype),
        _one_of("direction", direction, DIRECTIONS),
        bool(residual),
        _small("alignment", alignment),
        device if isinstance(device, str) else dict(device),
        activation=_one_of("activation", activation, tuple(ACTIVATIONS)),
    )
    saves_mask = residual and direction != "evaluation" and extension.plan_has_mask(activation)
    longest = -(-made.steps // made.group)
    known: dict[str, Any] = {
        "device": device if isinstance(device, str) else str(device.get("name", "a device of its own")),
        "direction": direction,
        "streamed_steps": max(0, longest - made.register_steps - made.shared_steps),
        "mask_bytes": made.mask_bytes if saves_mask else 0,
    }
    names = [field.name for field in fields(LaunchPlan)]
    return LaunchPlan(**{name: known[name] if name in known else getattr(made, name) for name in names})


def device_names() -> list[str]:
    """The device models that `plan` knows; empty where the extension is not built."""
    return [] if extension is None else list(extension.plan_devices())


def _one_of(what: str, value: str, known: Sequence[str]) -> str:
    if value not in known:
        raise ValueError(f"{what} must be one of {', '.join(known)}, but got {value!r}")
    return value


def _small(what: str, value: int) -> int:
    if value not in (1, 2, 4, 8, 16):
        raise ValueError(f"{what} must be 1, 2, 4, 8 or 16, but got {value!r}")
    return value


def _dtype_name(dtype: torch.dtype | str) -> str:
    for name, known in DTYPES.items():
        if dtype in (name, known):
            return name
    if isinstance(dtype, str) and dtype in OTHER_NAMES:
        return OTHER_NAMES[dtype]
    raise ValueError(f"dtype must be one of {', '.join(DTYPES)}, but got {str(dtype)!r}")


def report(plans: Sequence[LaunchPlan]) -> str:
    """A table with a line for each fact and a column for each plan."""
    rows = [(label, [text(each) for each in plans]) for label, text in LINES]
    widths = [max(len(texts[i]) for _, texts in rows) + 3 for i in range(len(plans))]
    first = max(len(label) for label, _ in rows) + 2
    lines = []
    for label, texts in rows:
        cells = "".join(text.ljust(width) for text, width in zip(texts, widths, strict=True))
        lines.append((label.ljust(first) + cells).rstrip())
    return "\n".join(lines)


def _bytes(count: int) -> str:
    for unit, size in (("GB", 10**9), ("MB", 10**6), ("kB", 10**3)):
        if count >= size:
            return f"{count / size:.4g} {unit}"
    return f"{count} B"


def _time(microseconds: float) -> str:
    return f"{microseconds:.1f} us" if microseconds < 10_000 else f"{microseconds / 1000:.1f} ms"


LINES: tuple[tuple[str, Callable[[LaunchPlan], str]], ...] = (
    ("direction", lambda p: p.direction),
    ("kernel", lambda p: f"{p.mapping}, {'whole' if p.whole else 'partial'} vectors"),
    ("exchange", lambda p: EXCHANGES[p.exchange]),
    ("launches", lambda p: str(p.launches)),
    ("grid", lambda p: f"{p.grid} blocks of {p.threads} threads"),
    ("groups", lambda p: f"{p.groups} side by side, of {p.group} blocks"),
    ("slabs", lambda p: f"{p.slabs} of {p.slab_channels} channels, in {p.rounds} rounds"),
    ("steps of a slab", lambda p: str(p.steps)),
    ("  in registers", lambda p: f"up to {min(p.register_steps, -(-p.steps // p.group))} a block"),
    ("  in shared memory", lambda p: f"up to {p.shared_steps} a block"),
    ("  streamed twice", lambda p: f"up to {p.streamed_steps} a block"),
    ("shared memory", lambda p: f"{_bytes(p.shared_bytes)} a block"),
    ("workspace", lambda p: f"{_bytes(p.workspace_bytes)}, {p.words} words"),
    ("mask", lambda p: _bytes(p.mask_bytes)),
    ("read", lambda p: _bytes(p.read)),
    ("  from L2", lambda p: _bytes(p.l2_hits)),
    ("written", lambda p: _bytes(p.written)),
    ("retained", lambda p: f"{_bytes(p.retained)}, {_bytes(p.retained_at_once)} at once"),
    ("floor", lambda p: _time(p.floor_time)),
    ("predicted", lambda p: _time(p.predicted_time)),
)

"""What the launch planner decides for a shape on a device: no GPU is needed to ask."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from math import prod

import torch

from fused_bn._activations import ACTIVATIONS
from fused_bn._extension import HOW_TO_BUILD, extension, missing_reason

DTYPES = {"f32": torch.float32, "f64": torch.float64, "bf16": torch.bfloat16, "f16": torch.float16}
OTHER_NAMES = {
    **dict.fromkeys(("fp32", "float", "float32"), "f32"),
    **dict.fromkeys(("fp64", "double", "float64"), "f64"),
    **dict.fromkeys(("fp16", "half", "float16"), "f16"),
    "bfloat16": "bf16",
}
LAYOUTS = ("channels_first", "channels_last")
OTHER_LAYOUTS = {
    **dict.fromkeys(("contiguous", "NCHW", "nchw"), "channels_first"),
    **dict.fromkeys(("NHWC", "nhwc"), "channels_last"),
}
DIRECTIONS = ("forward", "backward", "evaluation")
MOST = 2**50
"""The most elements. Beyond these, the planner's products would overflow 64 bits."""
EXCHANGES = {
    "none": "blocks on their own",
    "cluster": "clusters of blocks",
    "words": "words in global memory",
}


@dataclass(frozen=True)
class LaunchPlan:
    """The launch of one direction. Times are in microseconds and predicted, not measured.

    If there are two launches, everything but apply_grid describes the first.

    Attributes:
        device: the name of the device's model.
        direction: forward, backward or evaluation.
        kernel: resident, which reads every element once and keeps it in shared memory; streamed, a reduce
            pass and an apply pass; or apply, the apply pass alone, for evaluation.
        exchange: how the blocks that share a tile exchange sums in the resident kernel: none, cluster, words.
        forced: the text that forces this plan.
        launches: the number of launches.
        grid: blocks of the first launch.
        apply_grid: blocks of the apply pass that follows it; 0 if there is none.
        threads: threads of a block.
        walk: along_rows, the threads of a block process the vectors of one channel in turn; or down_columns,
            each thread stays in a column of a matrix whose columns belong to one channel each.
        vector: elements that a thread moves at once: as many as 16 bytes hold, or one.
        mixed: whether the elements of a vector may belong to several channels.
        tiles: tiles of the tensor. The statistics of a tile's channels are computed together.
        tile_channels: channels of a tile.
        tile_vectors: vectors in a row of a tile.
        group: blocks that share a tile.
        groups: groups that run at the same time.
        iterations: tiles that each group processes in turn.
        passes: vectors of the thread that has most.
        slots: vectors that a thread has room for in the resident kernel.
        shared_bytes: shared memory of a block.
        blocks_per_multiprocessor: blocks that share a multiprocessor.
        partials_bytes: global memory for the sums of the reduce pass.
        mask_bytes: the mask that forward saves for backward, with a residual and an activation that needs it.
        read: bytes read from device memory or L2.
        written: bytes written to device memory or L2.
        l2_hits: bytes of a second read that L2 should serve.
        floor_time: the time of a copy of as many bytes as the tensors have, each read or written once.
        predicted_time: the time that the planner predicts for the plan.
    """

    device: str
    direction: str
    kernel: str
    exchange: str
    forced: str
    launches: int
    grid: int
    apply_grid: int
    threads: int
    walk: str
    vector: int
    mixed: bool
    tiles: int
    tile_channels: int
    tile_vectors: int
    group: int
    groups: int
    iterations: int
    passes: int
    slots: int
    shared_bytes: int
    blocks_per_multiprocessor: int
    partials_bytes: int
    mask_bytes: int
    read: int
    written: int
    l2_hits: int
    floor_time: float
    predicted_time: float


def plan(
    shape: Sequence[int],
    dtype: torch.dtype | str = torch.float32,
    layout: str = "channels_first",
    device: str | Mapping[str, float | str] = "h200",
    direction: str = "forward",
    residual: bool = False,
    alignment: int = 16,
    activation: str = "relu",
    forced: str = "",
) -> LaunchPlan:
    """Returns how the CUDA kernels would be launched for a tensor of this shape.

    Args:
        shape: (N, C) or (N, C, ...), without zeros.
        dtype: a dtype of torch, or its name: "bf16", "float32", ...
        layout: "channels_first" or "channels_last".
        device: the name of a model ("h200"), or a dict with "architecture" (90 is sm_90) and the other fields
            that differ from those of the nearest model.
        direction: "forward" and "backward" in training, or "evaluation".
        residual: whether a tensor is added before the activation.
        alignment: the largest power of two up to 16, in bytes, that divides the addresses of all tensors.
        activation: the name of the activation; for some, backward reads the residual too.
        forced: parts of the plan, in the syntax of FUSED_BN_CUDA_PLAN: "resident exchange=words group=132
            groups=4 tile=64 slots=12" or "streamed group=264 tile=64". Each part may be left out.

    Raises:
        ValueError: an argument is wrong, or no plan fits what is forced; the text says which or why.
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
    evaluates = _one_of("direction", direction, DIRECTIONS) == "evaluation"
    name = _dtype_name(dtype)
    facts = extension.plan(
        sizes[0],
        sizes[1],
        spatial,
        _one_of("layout", OTHER_LAYOUTS.get(layout, layout), LAYOUTS) if spatial > 1 else "channels_last",
        name,
        "forward" if evaluates else direction,
        bool(residual),
        _alignment(alignment, DTYPES[name].itemsize),
        device.lower() if isinstance(device, str) else dict(device),
        part="apply" if evaluates else "both",
        activation=_one_of("activation", activation, tuple(ACTIVATIONS)),
        forced=forced,
    )
    model = device.lower() if isinstance(device, str) else str(device.get("name", "a device of its own"))
    return LaunchPlan(device=model, direction=direction, **facts)


def device_names() -> list[str]:
    """The device models that `plan` knows; empty where the extension is not built."""
    return [] if extension is None else list(extension.plan_devices())


def _one_of(what: str, value: str, choices: Sequence[str]) -> str:
    if value not in choices:
        raise ValueError(f"{what} must be one of {', '.join(choices)}, but got {value!r}")
    return value


def _alignment(value: int, least: int) -> int:
    if value not in (1, 2, 4, 8, 16):
        raise ValueError(f"alignment must be 1, 2, 4, 8 or 16, but got {value!r}")
    if value < least:
        raise ValueError(f"alignment must be at least an element's {least} bytes, but got {value}")
    return value


def _dtype_name(dtype: torch.dtype | str) -> str:
    for name, value in DTYPES.items():
        if dtype in (name, value):
            return name
    if isinstance(dtype, str) and dtype in OTHER_NAMES:
        return OTHER_NAMES[dtype]
    raise ValueError(f"dtype must be one of {', '.join(DTYPES)}, but got {str(dtype)!r}")


def report(plans: Sequence[LaunchPlan]) -> str:
    """Returns a table with a line for each fact and a column for each plan."""
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


def _grid(plan: LaunchPlan) -> str:
    after = f" and {plan.apply_grid}" if plan.apply_grid else ""
    return f"{plan.grid}{after} blocks of {plan.threads} threads"


LINES: tuple[tuple[str, Callable[[LaunchPlan], str]], ...] = (
    ("direction", lambda p: p.direction),
    ("kernel", lambda p: p.kernel),
    ("exchange", lambda p: EXCHANGES[p.exchange] if p.kernel == "resident" else "-"),
    ("launches", lambda p: str(p.launches)),
    ("grid", _grid),
    ("blocks a tile", lambda p: str(p.group)),
    ("tiles", lambda p: f"{p.tiles} of {p.tile_channels} channels, {p.iterations} a group"),
    ("vectors", lambda p: f"{p.vector} elements, {p.walk.replace('_', ' ')}, {p.passes} a thread"),
    ("shared memory", lambda p: f"{_bytes(p.shared_bytes)} a block, for {p.slots} vectors a thread"),
    ("blocks at once", lambda p: f"{p.blocks_per_multiprocessor} a multiprocessor"),
    ("partial sums", lambda p: _bytes(p.partials_bytes)),
    ("mask", lambda p: _bytes(p.mask_bytes)),
    ("read", lambda p: _bytes(p.read)),
    ("  from L2", lambda p: _bytes(p.l2_hits)),
    ("written", lambda p: _bytes(p.written)),
    ("floor", lambda p: _time(p.floor_time)),
    ("predicted", lambda p: _time(p.predicted_time)),
    ("as text", lambda p: p.forced),
)

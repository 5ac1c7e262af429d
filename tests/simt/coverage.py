"""Names the properties that a launch exercises, so that a test can check that the grid covers them all."""

from collections.abc import Iterator, Sequence
from itertools import product
from typing import Any

from fused_bn._activations import ACTIVATIONS
from tests.simt.harness import Configuration

DIRECTIONS = ("forward", "backward")
RESIDENT = ("none", "cluster", "words")


def kinds(configuration: Configuration) -> Iterator[tuple[str, Any]]:
    """Its kernels, with the exchange of the resident one, and their tilings."""
    evaluation = "" if configuration.case.training else "evaluation, "
    for kernel, tiling in configuration.kernels.items():
        name = configuration.exchange if kernel == "resident" else kernel
        yield f"{evaluation}{configuration.direction}, {name}", tiling


def elements(tiling: Any) -> str:
    walk = "rows" if tiling.walk.name == "along_rows" else "columns"
    what = "elements" if tiling.vector == 1 else "mixed vectors" if tiling.mixed else "vectors"
    return f"{walk} of {what}"


def groups(name: str, t: Any) -> Iterator[str]:
    iterations = -(-t.tiles // t.groups)
    yield f"{name}, {'several iterations' if iterations > 1 else 'one iteration'}"
    if t.tiles % t.groups:
        yield f"{name}, a group has fewer iterations"
    if t.groups > 1:
        yield f"{name}, several groups"
    if t.group > 1:
        units = {t.block_units(block) for block in range(t.group)}
        yield f"{name}, blocks with {'unequal' if len(units) > 1 else 'equal'} shares"


def columns(name: str, t: Any) -> Iterator[str]:
    """Properties of tiles whose threads go down columns."""
    if t.walk.name == "along_rows":
        return
    last = t.row_vectors % t.tile_vectors
    if t.tiles > 1:
        yield f"{name}, {'a narrower last tile' if last else 'equal tiles'}"
    if t.fold > 1:
        yield f"{name}, rows side by side"
    if t.pass_units * t.tile_vectors < t.threads:
        yield f"{name}, idle threads"
    power_of_two = t.tile_vectors & (t.tile_vectors - 1) == 0
    where = "a row for each" if t.tile_vectors >= 32 else "shuffles" if power_of_two else "odd shuffles"
    yield f"{name}, sums by {where}"


def lane_groups(name: str, t: Any) -> Iterator[str]:
    """How many lanes merge a channel, and whether they take several batches of partial results."""
    size = min(32, 1 << (t.threads // t.tile_channels).bit_length() - 1)
    yield f"{name}, {'a warp' if size == 32 else 'a lane' if size == 1 else 'some lanes'} a channel"
    if t.group > 4 * size:
        yield f"{name}, several batches"


def exercised(configuration: Configuration) -> set[str]:
    c = configuration
    found = set(c.instances)
    for name, tiling in kinds(c):
        found |= {f"{name}, {elements(tiling)}", *groups(name, tiling)}
        if any(tiling.block_units(b) % tiling.pass_units for b in range(tiling.group)):
            found.add(f"{name}, a last pass that is not full")
        summing = name.rpartition(" ")[2] != "apply"
        if summing:
            found |= {*lane_groups(name, tiling), *columns(name, tiling)}
        if name.endswith("words"):
            owners = c.module.words_have_owners(tiling.group, tiling.tile_channels)
            found.add(f"{name}, {'channels have owners' if owners else 'all blocks read all'}")
        if summing and c.plan.resident and c.plan.slots > c.plan.first.passes:
            found.add(f"{name}, slots that stay empty")
        residual = "residual" if c.case.residual else "no residual"
        found.add(f"{name}, {elements(tiling)}, {c.case.activation}, {residual}")
    return found


EVERY_KIND = tuple(
    f"{walk} of {what}"
    for walk, what in product(("rows", "columns"), ("elements", "vectors", "mixed vectors"))
    if (walk, what) != ("rows", "mixed vectors")
)
VECTORS = tuple(kind for kind in EVERY_KIND if "vectors" in kind)


def each(*parts: Sequence[str]) -> Iterator[str]:
    return map(", ".join, product(*parts))


def demanded() -> Iterator[str]:
    """All possible combinations of properties."""
    yield from each(DIRECTIONS, RESIDENT, VECTORS)
    yield from each(DIRECTIONS, ("reduce", "apply"), EVERY_KIND)
    yield from each(["evaluation"], DIRECTIONS, ["apply"], EVERY_KIND)

    residual = ("residual", "no residual")
    yield from each(DIRECTIONS, ["apply"], EVERY_KIND, list(ACTIVATIONS), residual)
    yield from each(["evaluation"], DIRECTIONS, ["apply"], EVERY_KIND, list(ACTIVATIONS), residual)

    yield from each(DIRECTIONS, ["words"], ("one iteration", "several iterations", "several groups"))
    how = ("a group has fewer iterations", "channels have owners", "all blocks read all")
    yield from each(DIRECTIONS, ["words"], how)
    summing = (*RESIDENT, "reduce")
    yield from each(DIRECTIONS, summing[1:], ("blocks with equal shares", "blocks with unequal shares"))
    yield from each(DIRECTIONS, (*summing, "apply"), ["a last pass that is not full"])
    yield from each(DIRECTIONS, RESIDENT, ["slots that stay empty"])
    tiles = ("a narrower last tile", "equal tiles", "rows side by side", "idle threads")
    yield from each(DIRECTIONS, summing, tiles)
    sums = ("sums by a row for each", "sums by shuffles", "sums by odd shuffles")
    yield from each(DIRECTIONS, summing, sums)
    yield from each(DIRECTIONS, summing, ("a warp a channel", "a lane a channel", "some lanes a channel"))
    yield from each(DIRECTIONS, summing[1:], ["several batches"])

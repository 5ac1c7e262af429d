"""What a launch exercises, in words: so that a test can say what the grid must hold and miss nothing."""

from collections.abc import Iterator, Sequence
from itertools import product

from fused_bn._activations import ACTIVATIONS
from tests.simt.harness import Configuration

DIRECTIONS = ("forward", "backward")


def steps_of_blocks(configuration: Configuration) -> list[int]:
    g = configuration.geometry
    each, more = divmod(g.steps, g.group)
    return [each + (block < more) for block in range(g.group)]


def level(kept: int, most: int) -> str:
    return "no" if kept == 0 else "all" if kept == most else "some"


def retention(configuration: Configuration) -> Iterator[str]:
    """How many of a block's steps are kept in registers and in shared memory, and whether others are left.

    "all" registers are those that the kernel has.
    """
    c, g = configuration, configuration.geometry
    if not c.case.training or not g.whole or c.exchange == "two_kernels":
        return
    for steps in set(steps_of_blocks(c)):
        registers = min(steps, g.register_steps)
        shared = min(steps - registers, g.shared_steps)
        words = (
            f"{level(registers, c.most_registers)} registers",
            "shared memory" if shared else "no shared memory",
            "streams" if steps > registers + shared else "keeps all",
        )
        yield ", ".join((c.direction, c.plan.mapping, *words))


def teams(configuration: Configuration) -> Iterator[str]:
    c, g = configuration, configuration.geometry
    where = f"{c.direction}, {c.exchange}"
    rounds = -(-g.slabs // g.groups)
    yield f"{where}, {'several rounds' if rounds > 1 else 'one round'}"
    if g.slabs % g.groups:
        yield f"{where}, a group has fewer rounds"
    if g.groups > 1:
        yield f"{where}, several groups"
    if g.group > 1:
        yield f"{where}, blocks with and without a step" if g.group > g.steps else f"{where}, several blocks"
    if g.group > 1 and g.steps > g.group and g.steps % g.group:
        yield f"{where}, blocks with more steps than others"


def tails(configuration: Configuration) -> Iterator[str]:
    c, g, plan = configuration, configuration.geometry, configuration.plan
    where = f"{c.direction}, {plan.mapping}"
    yield f"{where}, {'some lanes have one step less' if g.last_lanes else 'full steps'}"
    if plan.mapping == "rows":
        if g.S % 8:
            yield f"{where}, short last vector of a row"
        return
    where += ", channels_last" if plan.channels_last else ", channels_first"
    if plan.channels_last and g.slab_columns > g.slab_channels:
        yield f"{where}, several pixels a matrix row"
    if g.elements % g.row_length:
        yield f"{where}, short last matrix row"
    if g.row_length % 8:
        yield f"{where}, matrix rows that begin unaligned"
    if g.slabs > 1:
        yield f"{where}, {'a narrower last slab' if g.row_length % g.slab_columns else 'equal slabs'}"
    if g.lanes * g.slab_vectors < g.threads:
        yield f"{where}, idle threads"
    power_of_two = g.slab_vectors & (g.slab_vectors - 1) == 0
    yield f"{where}, sums {'by shuffles' if power_of_two and g.slab_vectors < 32 else 'without shuffles'}"


def exercised(configuration: Configuration) -> set[str]:
    c = configuration
    alignment = "whole" if c.plan.whole else "partial"
    combination = f"{c.direction}, {c.plan.mapping}, {alignment} vectors, {c.exchange}"
    residual = "residual" if c.case.residual else "no residual"
    activation = f"{c.direction}, {c.plan.mapping}, {c.case.activation}, {residual}"
    return {c.instance, combination, activation, *retention(c), *teams(c), *tails(c)}


MAPPINGS = ("rows", "columns")
EXCHANGES = ("none", "cluster", "barrier", "two_kernels")


def each(*parts: Sequence[str]) -> Iterator[str]:
    return map(", ".join, product(*parts))


def demanded() -> Iterator[str]:
    """Everything that the properties of a launch can be combined to."""
    yield from each(DIRECTIONS, MAPPINGS, ("whole vectors", "partial vectors"), EXCHANGES)
    yield from each(["evaluation"], MAPPINGS, ("whole vectors", "partial vectors"), ["none"])

    yield from each(("evaluation", *DIRECTIONS), MAPPINGS, list(ACTIVATIONS), ("residual", "no residual"))

    registers = ("no registers", "some registers", "all registers")
    shared = ("shared memory", "no shared memory")
    yield from each(DIRECTIONS, MAPPINGS, registers, shared, ("streams", "keeps all"))

    rounds = ("one round", "several rounds", "several groups", "a group has fewer rounds")
    yield from each(DIRECTIONS, EXCHANGES, rounds)
    blocks = ("several blocks", "blocks with and without a step", "blocks with more steps than others")
    yield from each(DIRECTIONS, EXCHANGES[1:], blocks)

    directions = (*DIRECTIONS, "evaluation")
    yield from each(directions, MAPPINGS, ("full steps", "some lanes have one step less"))
    yield from each(directions, ["rows, short last vector of a row"])
    columns = (
        "matrix rows that begin unaligned",
        *("a narrower last slab", "equal slabs"),
        *("idle threads", "sums by shuffles", "sums without shuffles"),
    )
    yield from each(directions, ["columns, channels_first", "columns, channels_last"], columns)
    pixels = ("several pixels a matrix row", "short last matrix row")
    yield from each(directions, ["columns, channels_last"], pixels)

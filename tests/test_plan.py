"""The launch planner: what must hold of every plan, on every device, whatever the shape."""

import random
from collections import Counter
from collections.abc import Iterator
from contextlib import suppress
from dataclasses import dataclass
from itertools import pairwise
from typing import TYPE_CHECKING, Any

import pytest
from hypothesis import assume, example, given, settings
from hypothesis import strategies as st

from fused_bn._activations import ACTIVATIONS
from fused_bn._extension import extension
from fused_bn._plan import DIRECTIONS, LAYOUTS

if TYPE_CHECKING:
    from fused_bn._C import LaunchPlan

pytestmark = pytest.mark.needs_extension

DEVICES = {} if extension is None else {n: extension.plan_device_fields(n) for n in extension.plan_devices()}
BYTES = {"f32": 4, "f64": 8, "bf16": 2, "f16": 2}
MASKED = ("relu", "leaky_relu", "relu6")
"""Activations of which forward saves a bit an element where there is a residual."""
BULK = 75_000
"""Random shapes: a few microseconds each."""
STEPPED = 2**33
"""Values of a channel: beyond, a slab can have more steps than an int holds, and is refused."""
COUNTED = 60_000
"""Elements a tensor whose every visit is counted."""


@dataclass(frozen=True)
class Problem:
    N: int
    C: int
    S: int
    layout: str = "channels_last"
    dtype: str = "bf16"
    direction: str = "forward"
    residual: bool = False
    alignment: int = 16
    device: str = "h200"
    activation: str = "relu"

    def plan(self, exchange: str | None = None, **changes: Any) -> "LaunchPlan":
        assert extension is not None
        arguments = {**self.__dict__, **changes}
        made: LaunchPlan = extension.plan(**arguments, exchange=exchange)
        return made

    @property
    def elements(self) -> int:
        return self.N * self.C * self.S

    @property
    def tensors(self) -> int:
        return {"forward": 1, "backward": 2, "evaluation": 0}[self.direction]


def size(draw: random.Random, most: int) -> int:
    """Spread over the powers of two, with those next to one drawn often."""
    power = 2 ** draw.uniform(0, most.bit_length() - 1)
    value = int(power) if draw.random() < 0.5 else 2 ** int(power).bit_length() + draw.choice((-1, 0, 0, 1))
    return min(max(value, 1), most)


def problem(draw: random.Random, device: str) -> Problem:
    most = 2 ** draw.choice((6, 10, 14, 20))
    dtype = draw.choice(tuple(BYTES))
    return Problem(
        size(draw, most),
        size(draw, 2 * most),
        size(draw, 4 * most),
        draw.choice(LAYOUTS),
        dtype,
        draw.choice(DIRECTIONS),
        draw.random() < 0.3,
        draw.choice((16, 16, 16, BYTES[dtype])),
        device,
        draw.choice(tuple(ACTIVATIONS)),
    )


def bulk(seed: int = 0) -> Iterator[tuple[Problem, "LaunchPlan"]]:
    draw = random.Random(seed)
    for i in range(BULK):
        each = problem(draw, tuple(DEVICES)[i % len(DEVICES)])
        if each.N * each.S < STEPPED and each.elements < 2**50:
            yield each, each.plan()


@st.composite
def small_problems(draw: st.DrawFn) -> Problem:
    """Few enough elements to count each; channels and rows around the edges of vectors and slabs."""
    edges = st.sampled_from((1, 2, 3, 6, 7, 8, 9, 15, 16, 17, 24, 49, 63, 64, 65, 100, 511, 512, 520, 784))
    n = draw(st.one_of(st.integers(1, 70), edges))
    c = min(draw(st.one_of(edges, st.integers(1, 1200), st.sampled_from((2044, 4095, 4104)))), COUNTED // n)
    s = min(draw(st.one_of(edges, st.sampled_from((196, 3136, 4096, 4104, 5001)))), max(1, COUNTED // n // c))
    dtype = draw(st.sampled_from(tuple(BYTES)))
    return Problem(
        n,
        c,
        s,
        draw(st.sampled_from(LAYOUTS)),
        dtype,
        draw(st.sampled_from(DIRECTIONS)),
        draw(st.booleans()),
        draw(st.sampled_from((16, 16, BYTES[dtype]))),
        draw(st.sampled_from(tuple(DEVICES))),
        draw(st.sampled_from(tuple(ACTIVATIONS))),
    )


small = given(small_problems())
edge_cases = (
    Problem(1, 1, 1),
    Problem(1, 5, 1, "channels_first"),
    Problem(64, 6, 784, "channels_first", "f32"),
    Problem(3, 24, 49, "channels_first"),
    Problem(7, 3, 11),  # the last row of pixels is short
    Problem(9, 4097, 1),  # the last slab is one column wide
    Problem(2, 3, 5001, "channels_first"),  # rows whose last vector is short
)


def with_edges(test: Any) -> Any:
    for each in edge_cases:
        test = example(each)(test)
    return small(test)


def exchanges_of(each: Problem) -> list["LaunchPlan"]:
    """The best plan with each exchange that is possible, so that the ones never chosen are tested too."""
    plans = []
    for exchange in ("none", "cluster", "barrier", "two_kernels"):
        with suppress(ValueError):
            plans.append(each.plan(exchange))
    assert plans
    return plans


# ---- who touches what


@settings(max_examples=150)
@with_edges
def test_every_element_is_visited_exactly_once(each: Problem) -> None:
    """Protects against elements left out, and sums that count one twice."""
    assert extension is not None
    for plan in exchanges_of(each):
        visits = extension.plan_element_visits(plan)
        assert len(visits) == each.elements
        assert set(visits) == {1}, plan


@settings(max_examples=150)
@with_edges
def test_every_element_is_attributed_to_its_channel(each: Problem) -> None:
    """Protects the sums: a column taken for its neighbour's would mix two channels."""
    assert extension is not None
    for plan in exchanges_of(each):
        assert extension.plan_misattributed(plan) == 0, plan


@with_edges
def test_each_block_counts_the_values_it_reads(each: Problem) -> None:
    """Protects the merge of the blocks' means, which weighs each by its count."""
    assert extension is not None
    for plan in exchanges_of(each):
        promised, counted = extension.plan_block_values(plan)
        assert sum(promised) == each.N * each.S
        for count, of_channels in zip(promised, counted, strict=True):
            assert set(of_channels) == {count}, plan


@with_edges
def test_each_byte_of_the_mask_belongs_to_one_vector(each: Problem) -> None:
    """Protects against two threads that write one byte, and a mask that is too small."""
    assert extension is not None
    for plan in exchanges_of(each):
        visits = extension.plan_mask_visits(plan)
        assert len(visits) == plan.mask_bytes
        assert set(visits) <= {0, 1}
        assert each.elements <= 8 * sum(visits)


def assert_mask_fits(each: Problem, plan: "LaunchPlan") -> None:
    """Into what is set aside for it by those who know the shape alone."""
    assert extension is not None
    assert plan.mask_bytes <= extension.plan_mask_bytes_set_aside(each.N, each.C, each.S, each.layout)


@settings(max_examples=200)
@with_edges
def test_the_mask_fits_into_what_is_set_aside_for_it(each: Problem) -> None:
    """Protects whatever lies behind the mask that forward returns."""
    for plan in exchanges_of(each):
        assert_mask_fits(each, plan)


@settings(max_examples=200)
@with_edges
def test_forward_and_backward_agree_on_the_mask(each: Problem) -> None:
    """Protects backward from reading other elements' bits, whatever plans and alignments the two have."""
    assert extension is not None
    masks = set()
    for direction in ("forward", "backward"):
        for alignment in {BYTES[each.dtype], 16}:
            for device in ("h200", "t4"):
                plan = each.plan(direction=direction, alignment=alignment, device=device)
                masks.add((plan.mask_bytes, extension.plan_mask_bits(plan)))
    assert len(masks) == 1


@settings(max_examples=150)
@with_edges
def test_whole_vectors_are_whole_and_aligned(each: Problem) -> None:
    """Protects 16-byte accesses, which fault at other addresses and run past a short vector's end."""
    assert extension is not None
    for plan in exchanges_of(each):
        partial, unaligned = extension.plan_partial_and_unaligned(plan)
        if plan.whole:
            assert (partial, unaligned, each.alignment) == (0, 0, 16)
        elif each.alignment == 16:
            assert partial + unaligned > 0, "whole vectors were possible"


# ---- limits, for large shapes too


def assert_within_limits(each: Problem, plan: "LaunchPlan") -> None:
    device = DEVICES[each.device]
    assert (plan.N, plan.C, plan.S, plan.elements) == (each.N, each.C, each.S, each.elements)
    assert plan.shared_bytes <= device["shared_per_block"]
    assert 1 <= plan.grid == plan.group * plan.groups < 2**31
    threads = 256 if each.dtype == "f64" else 512
    assert plan.threads == threads
    assert 1 <= plan.slab_vectors * plan.lanes <= plan.threads
    assert plan.slabs * plan.slab_channels >= each.C > (plan.slabs - 1) * plan.slab_channels
    assert plan.groups <= plan.slabs
    assert plan.group <= plan.steps, "a block without a step"
    assert plan.steps < 2**31
    if plan.mapping == "rows":
        vectors = -(-each.S // 8)
        assert plan.row_vectors == vectors
        assert (plan.steps - 1) * threads < each.N * vectors <= plan.steps * threads
        assert (each.N * vectors + threads) * vectors < 2**64
    else:
        assert plan.slab_columns % plan.slab_channels == 0
        assert plan.slab_columns <= 8 * plan.slab_vectors < plan.slab_columns + 8
        assert plan.rows * plan.row_length >= each.elements > (plan.rows - 1) * plan.row_length
        assert (plan.steps - 1) * plan.lanes < plan.rows <= plan.steps * plan.lanes


def assert_blocks_that_wait_run_at_once(each: Problem, plan: "LaunchPlan") -> None:
    device = DEVICES[each.device]
    if each.direction == "evaluation":
        assert plan.exchange == "none"
        return
    assert plan.grid <= device["multiprocessors"]  # one block fills one
    if plan.exchange == "none":
        assert plan.group == 1
    if plan.exchange == "cluster":
        assert plan.group in (2, 4, 8, 16)
        assert plan.group <= device["max_cluster"]
        assert device["architecture"] >= 90
    if plan.exchange == "barrier":
        assert device["cooperative"]
        assert plan.group > 1


def assert_streams_only_what_does_not_fit(each: Problem, plan: "LaunchPlan") -> None:
    assert extension is not None
    retains = plan.whole and plan.exchange != "two_kernels" and each.direction != "evaluation"
    kernel = (each.dtype, each.direction, plan.mapping, each.activation)
    most = extension.plan_register_steps(*kernel) if retains else 0
    assert plan.register_steps == most
    longest = -(-plan.steps // plan.group)
    if not retains:
        assert plan.shared_steps == 0
        assert plan.retained == 0
        return
    assert plan.shared_steps <= max(0, longest - most)
    if longest > most + plan.shared_steps:
        more = extension.plan_shared_bytes_with(plan, 1, each.dtype, each.direction)
        assert more > DEVICES[each.device]["shared_per_block"]
    else:
        assert plan.retained == each.elements * each.tensors * BYTES[each.dtype]


def assert_traffic_adds_up(each: Problem, plan: "LaunchPlan") -> None:
    tensor = each.elements * BYTES[each.dtype]
    masked = each.residual and each.activation in MASKED
    mask = plan.mask_bytes if masked and each.direction != "evaluation" else 0
    residual = tensor if each.residual else 0
    saved = 0 if masked or each.activation == "none" else residual
    again = each.tensors * tensor - plan.retained
    if each.direction == "backward":
        assert plan.read == 2 * tensor + again + 2 * (mask + saved)
        assert plan.written == tensor + residual
    else:
        assert plan.read == tensor + again + residual
        assert plan.written == tensor + mask
    assert 0 <= plan.l2_hits <= again
    assert 0 <= plan.retained_at_once <= plan.retained
    assert plan.floor_time < plan.predicted_time


def highest_partial(plan: "LaunchPlan") -> int:
    """The index of the workspace's last value, by the layout that params.h gives; -1 where there is none."""
    pair = 2 * plan.slab_channels
    if plan.exchange == "barrier":
        turn, team, rank = 1, plan.groups - 1, plan.group - 1
        return ((turn * plan.groups + team) * plan.group + rank) * pair + pair - 1
    if plan.exchange == "two_kernels":
        triple = 3 * plan.slab_channels
        return ((plan.slabs - 1) * plan.group + plan.group - 1) * triple + triple - 1
    return -1


def assert_workspace_fits(each: Problem, plan: "LaunchPlan") -> None:
    compute = 8 if each.dtype == "f64" else 4
    assert plan.workspace_bytes == compute * (highest_partial(plan) + 1)
    assert plan.words == (1 + plan.groups if plan.exchange == "barrier" else 1)


def assert_shared_memory_holds_its_parts(each: Problem, plan: "LaunchPlan") -> None:
    compute = 8 if each.dtype == "f64" else 4
    columns, threads = 8 * plan.slab_vectors, plan.threads
    held_by_thread = 1 if plan.mapping == "rows" else 8
    needed = {  # name: alignment, bytes
        "kept": (16, plan.shared_steps * each.tensors * threads * 8 * BYTES[each.dtype]),
        "matrix": (compute, compute * plan.lanes * plan.slab_vectors * held_by_thread),
        "parts": (compute, compute * max(columns, threads)),
        "totals": (8, 2 * 8 * plan.slab_channels),
        "partials": (compute, 2 * 2 * compute * plan.slab_channels),
        "numbers": (compute, 5 * compute * plan.slab_channels),
        "counts": (compute, compute * plan.group),
        "channels": (2, 2 * plan.slab_columns),
    }
    parts = plan.shared_parts
    for (name, begin), (_, end) in pairwise(parts):
        alignment, size = needed[name]
        assert begin % alignment == 0, name
        assert end - begin >= size, name


def test_invariants_of_many_random_shapes() -> None:
    """Limits of the device and of the kernels, co-residency, retention, traffic and workspace."""
    chosen: Counter[str] = Counter()
    plans = 0
    for each, plan in bulk():
        try:
            assert_within_limits(each, plan)
            assert_mask_fits(each, plan)
            assert_shared_memory_holds_its_parts(each, plan)
            assert_blocks_that_wait_run_at_once(each, plan)
            assert_streams_only_what_does_not_fit(each, plan)
            assert_traffic_adds_up(each, plan)
            assert_workspace_fits(each, plan)
        except AssertionError as error:
            raise AssertionError(f"{each}\n{plan}\n{error}") from error
        chosen.update((plan.exchange, plan.mapping))
        plans += 1
    assert plans >= 50_000
    assert all(chosen[name] > plans / 1000 for name in ("none", "cluster", "barrier", "rows", "columns")), (
        chosen
    )


def test_deterministic_and_never_slower_than_two_kernels() -> None:
    """The two-kernel plan is always possible, so that the best is never predicted slower."""
    for each, plan in bulk(seed=1):
        assert repr(each.plan()) == repr(plan)
        if each.direction != "evaluation":
            assert plan.predicted_time <= each.plan("two_kernels").predicted_time


@small
def test_exchanges_that_are_never_the_cheapest_keep_the_limits(each: Problem) -> None:
    for plan in exchanges_of(each):
        assert_within_limits(each, plan)
        assert_blocks_that_wait_run_at_once(each, plan)
        assert_streams_only_what_does_not_fit(each, plan)
        assert_traffic_adds_up(each, plan)
        assert_workspace_fits(each, plan)


log_sizes = st.integers(0, 29).flatmap(lambda e: st.integers(2**e, 2 ** (e + 1)))


@given(log_sizes, log_sizes, log_sizes, st.sampled_from(LAYOUTS))
def test_offsets_from_2_31_on(n: int, c: int, s: int, layout: str) -> None:
    """The last thread's last vector ends with the tensor: 32-bit arithmetic anywhere would not get there."""
    assert extension is not None
    assume(2**31 <= n * c * s < 2**50)
    assume(n * s < STEPPED)
    plan = Problem(n, c, s, layout).plan()
    offset, count = extension.plan_last_vector(plan)
    assert offset + count == n * c * s
    assert_within_limits(Problem(n, c, s, layout), plan)


@given(st.data())
def test_division_is_exact_at_its_edges(data: st.DataObject) -> None:
    """Around multiples of the divisor, up to where dividend * divisor reaches 2^64."""
    assert extension is not None
    divisor = data.draw(st.one_of(st.integers(1, 2**32), st.integers(0, 40).map(lambda e: 2**e)))
    last = (2**64 - 1) // divisor
    quotients = data.draw(st.lists(st.integers(0, last // divisor), min_size=1, max_size=20))
    dividends = [
        q * divisor + d for q in (*quotients, last // divisor, 0, 1) for d in (-1, 0, 1, divisor - 1)
    ]
    dividends = [d for d in (*dividends, last) if 0 <= d <= last]
    assert extension.plan_quotient(divisor, dividends) == [d // divisor for d in dividends]

"""The launch planner: properties of every plan, on every device, for any shape."""

import random
from collections import Counter
from collections.abc import Iterator
from contextlib import suppress
from dataclasses import dataclass, replace
from math import gcd
from typing import Any

import pytest
import torch
from hypothesis import example, given, settings
from hypothesis import strategies as st

from fused_bn._activations import ACTIVATIONS
from fused_bn.planner import LAYOUTS, device_names
from tests.planner import planner, tilings
from tests.planner.planner import Launch, LaunchPlan

pytestmark = pytest.mark.needs_extension

MODELS = device_names()
BYTES = {"f32": 4, "f64": 8, "bf16": 2, "f16": 2}
DIRECTIONS = ("forward", "backward")
PARTS = ("both", "both", "both", "reduce", "apply")
MASKED = ("relu", "leaky_relu", "relu6")
"""Activations with a residual for which forward saves one bit per element."""
BULK = 75_000
"""How many random shapes. Each takes a few microseconds."""
COUNTED = 60_000
"""The most elements of a tensor whose accesses are all examined."""
THREADS = 256
MOST_WORDS = 2**17
MOST_GROUPS = 4096


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
    device: Any = "h200"
    part: str = "both"
    activation: str = "relu"

    def plan(self, forced: str = "", **changes: Any) -> LaunchPlan:
        return planner.plan(**{**self.__dict__, **changes}, forced=forced)

    @property
    def elements(self) -> int:
        return self.N * self.C * self.S

    @property
    def kept(self) -> int:
        """Shapes whose vectors the resident kernel keeps."""
        return 2 if self.direction == "backward" or self.residual else 1


def size(draw: random.Random, most: int) -> int:
    """Dimensions of all magnitudes, with many next to powers of two."""
    power = 2 ** draw.uniform(0, most.bit_length() - 1)
    value = int(power) if draw.random() < 0.5 else 2 ** int(power).bit_length() + draw.choice((-1, 0, 0, 1))
    return min(max(value, 1), most)


def problem(draw: random.Random, device: str) -> Problem:
    most = 2 ** draw.choice((6, 10, 14, 18))
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
        draw.choice(PARTS),
        draw.choice(tuple(ACTIVATIONS)),
    )


def bulk(seed: int = 0) -> Iterator[tuple[Problem, LaunchPlan]]:
    draw = random.Random(seed)
    for i in range(BULK):
        each = problem(draw, MODELS[i % len(MODELS)])
        # Beyond, there can be two rows of 2^32 vectors each, which the planner refuses.
        if each.elements < 6 * 10**9:
            yield each, each.plan()


@st.composite
def small_problems(draw: st.DrawFn) -> Problem:
    """Small enough to examine each element. Channels and rows are near the edges of vectors and tiles."""
    edges = st.sampled_from(
        (1, 2, 3, 4, 6, 7, 8, 9, 16, 17, 24, 25, 40, 49, 64, 65, 100, 196, 255, 256, 257, 784)
    )
    n = draw(st.one_of(st.integers(1, 70), edges))
    c = min(draw(st.one_of(edges, st.integers(1, 1200), st.sampled_from((2044, 4095, 4104)))), COUNTED // n)
    s = min(
        draw(st.one_of(edges, st.sampled_from((1024, 3136, 4096, 4104, 5001)))), max(1, COUNTED // n // c)
    )
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
        draw(st.sampled_from(MODELS)),
        "both",
        draw(st.sampled_from(tuple(ACTIVATIONS))),
    )


small = given(small_problems())
edge_cases = (
    Problem(1, 1, 1),
    Problem(1, 5, 1, "channels_first"),
    Problem(64, 6, 784, "channels_first", "f32"),
    Problem(64, 6, 100, "channels_last", "f32"),  # two rows make whole vectors
    Problem(6, 24, 49, "channels_first"),  # eight channels make whole vectors
    Problem(8, 3, 49, "channels_first"),  # eight images make whole vectors
    Problem(7, 3, 11),  # nothing makes whole vectors
    Problem(9, 4097, 1),
    Problem(40, 272, 1),  # tiles of 12, 12 and 10 vectors, not of 8 with one of 2
    Problem(2, 3, 5001, "channels_first"),
)


def with_edges(test: Any) -> Any:
    for each in edge_cases:
        test = example(each)(test)
    return small(test)


FORCED = (
    "",
    "streamed",
    "streamed group=2",
    "streamed group=7",
    *(f"resident exchange={exchange}" for exchange in ("none", "cluster", "words")),
    *(f"resident exchange=cluster group={group}" for group in (3, 16)),
    *(f"resident exchange=words group={group}" for group in (2, 5)),
)


def plans_of(each: Problem) -> list[LaunchPlan]:
    """The best plan and the best of each possible kind, to test plans that are never chosen too."""
    plans = [each.plan(), each.plan("streamed")]
    for forced in FORCED[2:]:
        with suppress(ValueError):
            plans.append(each.plan(forced))
    return plans


def launches_of(each: Problem) -> list[Launch]:
    """The launches of these plans, each tiling once."""
    launches = (
        launch for plan in plans_of(each) for launch in (plan.first, plan.apply) if launch is not None
    )
    return list({tuple(tilings.fields_of(launch)): launch for launch in launches}.values())


# ---- who touches what


def channels_of(each: Problem, offsets: torch.Tensor) -> torch.Tensor:
    """The channel of the element at each offset, by the tensor's layout."""
    return offsets % each.C if each.layout == "channels_last" else offsets // each.S % each.C


@settings(max_examples=150)
@with_edges
def test_every_element_is_visited_once_and_by_its_channel(each: Problem) -> None:
    """Every element is visited once, and no sum mixes two channels."""
    for launch in launches_of(each):
        _, offsets, channels = tilings.visits(launch).unbind(1)
        assert torch.equal(offsets.sort().values, torch.arange(each.elements))
        assert torch.equal(channels, channels_of(each, offsets))


@with_edges
def test_each_block_counts_the_values_it_reads(each: Problem) -> None:
    """The merge of the blocks' means weighs each by its count. No count may be 0."""
    for launch in launches_of(each):
        blocks, _, channels = tilings.visits(launch).unbind(1)
        counted = torch.zeros(launch.group, each.C, dtype=torch.int64)
        counted.view(-1).index_add_(0, blocks * each.C + channels, torch.ones_like(blocks))
        promised = torch.tensor(tilings.block_values(launch))
        assert torch.equal(counted, promised[:, None].expand_as(counted))
        assert promised.min() > 0


def whole_vectors_fit(each: Problem, most_channels: int) -> bool:
    """Whether a kernel with so many channels per tile can have vectors of 16 bytes."""
    if each.dtype == "f64" or each.alignment < 16:
        return False
    vector = 16 // BYTES[each.dtype]
    last = each.layout == "channels_last" or each.S == 1 or each.C == 1
    length = 1 if last else each.S
    row, rows = each.C * length, each.elements // (each.C * length)
    together = vector // gcd(length, vector)
    if each.C % together == 0:
        return (together == 1 and length >= 2 * vector) or together * length <= THREADS * vector
    fold = vector // gcd(row, vector)
    return rows % fold == 0 and fold * row <= THREADS * vector and most_channels >= each.C


@settings(max_examples=200)
@with_edges
def test_whole_vectors_wherever_there_are_some(each: Problem) -> None:
    """Smaller vectors would be slow. Whole vectors on other shapes would misalign 16-byte accesses."""
    for plan in plans_of(each):
        for launch, most in ((plan.first, THREADS), (plan.apply, each.C)):
            if launch is not None:
                whole = launch.vector == 16 // BYTES[each.dtype] > 1
                assert whole == whole_vectors_fit(each, most)
                assert whole or launch.vector == 1


# ---- limits, for large shapes too


def assert_launch_within_limits(each: Problem, launch: Launch, most_shared: int) -> None:
    assert (launch.N, launch.C, launch.S, launch.elements) == (each.N, each.C, each.S, each.elements)
    assert launch.threads == THREADS
    assert 0 < launch.shared_bytes <= most_shared
    assert 1 <= launch.grid == launch.group * launch.groups < 2**31
    assert launch.groups <= launch.tiles
    assert launch.tiles * launch.tile_channels >= each.C > (launch.tiles - 1) * launch.tile_channels
    assert launch.elements == launch.rows * launch.row_vectors * launch.vector
    assert launch.group <= launch.units, "a block without work"
    if launch.interleaved:
        assert launch.group <= -(-launch.units // launch.pass_units), "a block without work"
    if launch.walk == "along_rows":
        assert not launch.mixed
        assert launch.tile_channels == launch.fold == 1
        assert launch.tile_vectors * launch.vector == each.S
    else:
        assert 1 <= launch.tile_vectors <= THREADS
        assert launch.fold == 1 or launch.tiles == 1
    assert launch.mixed or launch.tile_vectors > 1 or launch.row_vectors == 1, "row_of() cannot divide by 1"


def assert_blocks_that_wait_run_at_once(each: Problem, plan: LaunchPlan) -> None:
    device, first = planner.device(each.device), plan.first
    at_once = plan.blocks_per_multiprocessor * device["multiprocessors"]
    assert first is not None
    if plan.exchange == "words":
        assert device["cooperative"]
        assert device["architecture"] >= 80
        assert first.group > 1
        assert first.grid <= at_once
        assert 2 * first.groups * (first.group + 1) * first.tile_channels <= MOST_WORDS
    else:
        assert first.groups == first.tiles, "a group of its own for every tile"
    if plan.exchange == "cluster":
        assert device["architecture"] >= 90
        assert 2 <= first.group <= device["max_cluster"]
        assert device["active_clusters"][(first.group - 1).bit_length()] >= 1
    if plan.exchange == "none" and plan.resident:
        assert first.group == 1


def assert_fits_the_multiprocessor(each: Problem, plan: LaunchPlan, launch: Launch) -> None:
    device, blocks = planner.device(each.device), plan.blocks_per_multiprocessor
    assert blocks == 1 or blocks * (launch.shared_bytes + 1024) <= device["shared_per_multiprocessor"]
    assert blocks * THREADS <= device["threads_per_multiprocessor"]


def assert_resident_keeps_all(each: Problem, plan: LaunchPlan) -> None:
    first = plan.first
    assert first is not None
    assert plan.apply is None
    assert each.dtype != "f64"
    assert each.part == "both"
    assert first.vector > 1
    assert first.tile_channels <= THREADS
    assert plan.slots >= first.passes
    assert first.shared_bytes > plan.slots * each.kept * THREADS * 16
    assert not first.interleaved
    assert first.iterations * first.groups >= first.tiles


def assert_streamed_can_reduce(each: Problem, plan: LaunchPlan) -> None:
    assert plan.slots == 0
    assert plan.exchange == "none"
    assert (plan.first is None) == (each.part == "apply")
    assert (plan.apply is None) == (each.part == "reduce")
    if plan.first is not None:
        compute = 8 if each.dtype == "f64" else 4
        group = plan.first.group
        assert plan.first.tile_channels <= THREADS
        assert group == 1 or plan.first.tiles <= MOST_GROUPS
        assert plan.partials_bytes == (each.C * group * 4 * compute if group > 1 else 0)
    if plan.apply is not None:
        assert plan.apply.groups == plan.apply.tiles


def run_bytes(each: Problem, launch: Launch) -> int:
    """The bytes that lie side by side in a row of the narrowest tile."""
    if launch.tiles == 1:
        return each.elements * BYTES[each.dtype]
    last = launch.row_vectors - (launch.tiles - 1) * launch.tile_vectors
    return min(launch.tile_vectors, last) * launch.vector * BYTES[each.dtype]


def longest_run(each: Problem, launch: Launch) -> int:
    """The most bytes that this row can have, over all ways to divide the launch's matrix into tiles."""
    length = 1 if launch.channels_last else each.S
    channels = each.C if launch.fold > 1 else launch.vector // gcd(length, launch.vector)
    unit = channels * length * launch.fold // launch.vector
    units = launch.row_vectors // unit
    best = each.S if unit > 1 and not launch.mixed and not launch.channels_last else 0  # along rows
    for width in range(1, min(units, THREADS // unit, max(1, THREADS // channels)) + 1):
        tiles = -(-units // width)
        last = units - (tiles - 1) * width
        run = each.elements if tiles == 1 else min(width, last) * unit * launch.vector
        best = max(best, run)
    return best * BYTES[each.dtype]


def assert_runs_are_long(each: Problem, launch: Launch) -> None:
    """No tile has less than 128 bytes per row if a tile with more is possible."""
    run = run_bytes(each, launch)
    assert run >= 128 or run >= longest_run(each, launch), (each, tilings.fields_of(launch)[:])


def assert_traffic_adds_up(each: Problem, plan: LaunchPlan) -> None:
    tensor = each.elements * BYTES[each.dtype]
    masked = each.residual and each.activation in MASKED
    mask = -(-each.elements // 8) if masked else 0
    added = tensor if each.residual else 0
    saved = mask if masked else 0 if each.activation == "none" else added
    twice = each.part == "both" and not plan.resident
    if each.direction == "backward":
        once = 2 * tensor + saved
        read, written = once, tensor + added
    else:
        once, read = tensor, tensor + added
        written = tensor + (mask if each.part == "both" else 0)
    if each.part == "reduce":
        read, written = once, 0
    assert (plan.read, plan.written) == (read + (once if twice else 0), written)
    assert plan.l2_hits == (min(once, planner.device(each.device)["l2_bytes"] // 2) if twice else 0)
    assert 0 < plan.floor_time < plan.predicted_time


def assert_sound(each: Problem, plan: LaunchPlan) -> None:
    try:
        for launch in (plan.first, plan.apply):
            if launch is not None:
                assert_launch_within_limits(each, launch, planner.device(each.device)["shared_per_block"])
        if plan.first is not None:
            assert_blocks_that_wait_run_at_once(each, plan)
            assert_fits_the_multiprocessor(each, plan, plan.first)
        assert_resident_keeps_all(each, plan) if plan.resident else assert_streamed_can_reduce(each, plan)
        assert_traffic_adds_up(each, plan)
    except AssertionError as error:
        raise AssertionError(f"{each}\n{plan}\n{error}") from error


def test_invariants_of_many_random_shapes() -> None:
    """Limits of the device and of the kernels, co-residency, lengths of runs and traffic."""
    chosen: Counter[str] = Counter()
    plans = 0
    for each, plan in bulk():
        assert_sound(each, plan)
        for launch in (plan.first, plan.apply):
            if launch is not None:
                assert_runs_are_long(each, launch)
                chosen.update((launch.walk, "mixed" if launch.mixed else "pure"))
        chosen.update((plan.exchange if plan.resident else "streamed",))
        plans += 1
    assert plans >= 50_000
    wanted = ("none", "cluster", "words", "streamed", "along_rows", "down_columns", "mixed", "pure")
    assert all(chosen[name] > plans / 1000 for name in wanted), chosen


def test_deterministic_and_no_slower_than_what_could_be_forced() -> None:
    """The streamed plan is always possible, so none may be much slower. A plan's text reproduces the plan."""
    for i, (each, plan) in enumerate(bulk(seed=1)):
        assert repr(each.plan()) == repr(plan)
        again = each.plan(repr(plan))
        assert (repr(again), again.predicted_time) == (repr(plan), plan.predicted_time)
        if each.part == "both" and i % 4 == 0:
            assert plan.predicted_time <= (1.1 if plan.resident else 1) * each.plan("streamed").predicted_time


@small
def test_forced_plans_keep_the_limits(each: Problem) -> None:
    for plan in plans_of(each):
        assert_sound(each, plan)


@st.composite
def large_sizes(draw: st.DrawFn) -> tuple[int, int, int]:
    """Shapes of 2^31 to 2^40 elements."""
    total = draw(st.floats(31.01, 39.99))
    first, second = sorted((draw(st.floats(0, total)), draw(st.floats(0, total))))
    n, c = (max(1, int(2**power)) for power in (first, second - first))
    return n, min(c, 2**29), -(-int(2**total) // (n * min(c, 2**29)))


@given(large_sizes(), st.sampled_from(LAYOUTS), st.sampled_from(("bf16", "f64")))
def test_offsets_from_2_31_on(sizes: tuple[int, int, int], layout: str, dtype: str) -> None:
    """The last thread's last vector ends with the tensor. 32-bit arithmetic anywhere would end elsewhere."""
    n, c, s = sizes
    each = Problem(n, c, s, layout, dtype)
    try:
        plan = each.plan()
    except ValueError as error:
        # A channel's row of 2^30 values that make no whole vectors, or two rows of all channels with 2^32.
        assert "vectors" in str(error)  # noqa: PT017
        assert s > 2**30 or n * c * s > 2**32
        return
    assert_sound(each, plan)
    for launch in (plan.first, plan.apply):
        if launch is not None and launch.passes < 2**24:
            assert tilings.last_end(launch) == each.elements


@given(st.data())
def test_division_is_exact_at_its_edges(data: st.DataObject) -> None:
    """Near multiples of the divisor, up to dividend * divisor = 2^64."""
    divisor = data.draw(st.one_of(st.integers(1, 2**32), st.integers(0, 40).map(lambda e: 2**e)))
    last = (2**64 - 1) // divisor
    quotients = data.draw(st.lists(st.integers(0, last // divisor), min_size=1, max_size=20))
    dividends = [
        q * divisor + d for q in (*quotients, last // divisor, 0, 1) for d in (-1, 0, 1, divisor - 1)
    ]
    for dividend in (d for d in (*dividends, last) if 0 <= d <= last):
        assert tilings.quotient(divisor, dividend) == dividend // divisor


@given(st.one_of(st.integers(2, 2**30), st.integers(1, 30).map(lambda e: 2**e)), st.data())
def test_rows_of_places_are_exact_at_their_edges(tile_vectors: int, data: st.DataObject) -> None:
    """Near multiples of a row, for positions below 2^31."""
    rows = data.draw(st.lists(st.integers(0, (2**31 - 1) // tile_vectors), min_size=1, max_size=20))
    places = [row * tile_vectors + d for row in rows for d in (-1, 0, 1, tile_vectors - 1)]
    for place in (p for p in (*places, 2**31 - 1) if 0 <= p < 2**31):
        assert tilings.row_of(tile_vectors, place) == place // tile_vectors


@pytest.mark.parametrize("name", MODELS)
def test_every_device_has_plans_of_its_own_kind(name: str) -> None:
    """sm_75 to sm_120. Clusters need sm_90, words need sm_80."""
    architecture = planner.device(name)["architecture"]
    rows = Problem(32, 256, 56 * 56, "channels_first", "f32", device=name)
    columns = Problem(64, 512, 14 * 14, device=name)
    kinds = {each.plan().exchange for each in (rows, columns) if each.plan().resident}
    assert kinds <= {"none"} | ({"words"} if architecture >= 80 else set()) | (
        {"cluster"} if architecture >= 90 else set()
    )
    assert bool(kinds) == (architecture >= 80)
    for direction in DIRECTIONS:
        for each in (rows, columns):
            assert_sound(replace(each, direction=direction), each.plan(direction=direction))

"""The planner's predictions, compared with prototypes on an H200: microseconds, cold caches, graph replays.

The prototypes were timed on 2026-11-29, in 2,400 variants. The nearest to our plans are listed here.
"""

import pytest

from tests.planner.test_plan import Problem

pytestmark = pytest.mark.needs_extension

DEMANDED = 0.20
"""The largest allowed difference between prediction and reading, relative to the reading."""

ROWS = "channels_first"
NHWC = "channels_last"

# Prototypes that work as our kernels do: the nearest plan with 256 threads (most prototypes have 224), the
# reading, and the variant's name.
READINGS = (
    # resident: rows of f32
    (
        Problem(32, 256, 3136, ROWS, "f32"),
        "resident exchange=cluster group=16",
        56.6,
        "row_x2_k16_V7_t224_b4",
    ),
    (
        Problem(32, 256, 3136, ROWS, "f32"),
        "resident exchange=cluster group=8",
        57.6,
        "rows_x2_k8_V13_t256_b4",
    ),
    (
        Problem(32, 256, 3136, ROWS, "f32", "backward"),
        "resident exchange=cluster group=16",
        76.3,
        "rows_x2_k16_V7_t224_b4",
    ),
    (
        Problem(32, 64, 12544, ROWS, "f32"),
        "resident exchange=words group=32",
        62.8,
        "rows_x3_k32_V13_t256_b4",
    ),
    (
        Problem(32, 64, 12544, ROWS, "f32", "backward"),
        "resident exchange=words group=64",
        86.7,
        "rows_x3_k64_V7_t224_b4",
    ),
    (Problem(32, 512, 784, ROWS, "f32"), "resident exchange=cluster group=4", 29.7, "row_x2_k4_V7_t224_b4"),
    (Problem(32, 512, 784, ROWS, "f32"), "resident exchange=cluster group=2", 30.0, "row_x2_k2_V13_t256_b3"),
    (
        Problem(32, 512, 784, ROWS, "f32", "backward"),
        "resident exchange=cluster group=4",
        41.0,
        "rows_x2_k4_V7_t224_b4",
    ),
    (Problem(2, 32, 2**18, ROWS, "f32"), "resident exchange=words group=40", 44.1, "rows_x3_k40_V13_t256_b4"),
    (Problem(16, 64, 1024, ROWS, "f32"), "resident exchange=cluster group=8", 5.1, "row_x2_k8_V2_t256_b2"),
    (
        Problem(16, 64, 1024, ROWS, "f32", "backward"),
        "resident exchange=cluster group=8",
        5.7,
        "row_x2_k8_V2_t256_b2",
    ),
    (Problem(8, 3, 50176, ROWS, "f32"), "resident exchange=words group=64", 6.4, "row_x3_k64_V7_t224_b4"),
    # with a residual
    (
        Problem(32, 256, 3136, ROWS, "f32", residual=True),
        "resident exchange=words group=16",
        81.5,
        "rows_x3_k16_V7_t224_b4",
    ),
    (
        Problem(32, 256, 3136, ROWS, "f32", "backward", True),
        "resident exchange=words group=16",
        110.3,
        "rows_x3_k16_V7_t224_b4",
    ),
    # rows of bf16
    (Problem(256, 256, 3136, ROWS), "resident exchange=words group=32", 241.3, "rows_x3_k32_V13_t256_b4"),
    (
        Problem(256, 256, 3136, ROWS, direction="backward"),
        "resident exchange=words group=64",
        358.7,
        "rows_x3_k64_V7_t224_b4",
    ),
    (Problem(128, 512, 784, ROWS), "resident exchange=cluster group=4", 63.1, "rows_x2_k4_V13_t256_b4"),
    (
        Problem(128, 512, 784, ROWS, direction="backward"),
        "resident exchange=cluster group=8",
        81.0,
        "rows_x2_k8_V7_t224_b4",
    ),
    # LeNet's
    (Problem(64, 6, 784, ROWS, "f32"), "resident exchange=cluster group=8", 3.29, "row_x0_k8_V7_t224_b2"),
    (
        Problem(64, 6, 784, ROWS, "f32", "backward"),
        "resident exchange=cluster group=8",
        3.43,
        "row_x0_k8_V7_t224_b2",
    ),
    (
        Problem(64, 16, 100, ROWS, "f32"),
        "resident exchange=cluster group=4 tile=1",
        2.58,
        "row_x0_k4_V2_t224_b2",
    ),
    (
        Problem(64, 16, 100, ROWS, "f32", "backward"),
        "resident exchange=cluster group=4 tile=1",
        2.40,
        "row_x0_k4_V2_t224_b2",
    ),
    # columns: short rows, and small tensors with channels last
    (Problem(32, 2048, 49, ROWS, "f32"), "resident exchange=none", 9.67, "col_x1_cb4_k1_V8_t224_b4"),
    (
        Problem(32, 2048, 49, ROWS, "f32", "backward"),
        "resident exchange=cluster group=2",
        13.6,
        "cols_x2_cb4_k2_V4_t224_b5",
    ),
    (
        Problem(256, 1024, 196, ROWS, "f16"),
        "resident exchange=cluster group=4 tile=2",
        72.4,
        "cols_x2_cb2_k4_V16_t224_b4",
    ),
    (
        Problem(256, 1024, 196, ROWS, "f16", "backward"),
        "resident exchange=cluster group=8 tile=2",
        98.2,
        "cols_x2_cb2_k8_V8_t224_b3",
    ),
    (
        Problem(256, 2048, 49, ROWS, "f16"),
        "resident exchange=cluster group=8 tile=8",
        43.3,
        "col_x2_cb8_k8_V8_t224_b4",
    ),
    (
        Problem(256, 2048, 49, ROWS, "f16", "backward"),
        "resident exchange=cluster group=8 tile=8",
        57.0,
        "cols_x2_cb8_k8_V8_t224_b3",
    ),
    (Problem(64, 512, 49, ROWS), "resident exchange=words group=4 tile=8", 6.91, "col_x3_cb8_k4_V4_t224_b4"),
    (Problem(64, 6, 784, NHWC, "f32"), "resident exchange=words group=98", 4.53, "col_x3_cb6_k98_V4_t192_b1"),
    (
        Problem(64, 6, 784, NHWC, "f32", "backward"),
        "resident exchange=words group=98",
        4.83,
        "col_x3_cb6_k98_V4_t192_b1",
    ),
    (
        Problem(64, 16, 100, NHWC, "f32"),
        "resident exchange=cluster group=16",
        3.74,
        "col_x2_cb8_k16_V2_t416_b1",
    ),
    # streamed, two passes with a programmatic edge
    (Problem(256, 256, 3136), "streamed group=396 tile=256", 332.6, "V6 BT256 U8 CVB32 grid396"),
    (
        Problem(256, 256, 3136, direction="backward"),
        "streamed group=396 tile=256",
        532.1,
        "V1 BT256 U2 CVB32",
    ),
    (Problem(256, 64, 12544), "streamed group=396", 314.1, "V6 BT256 U8 CVB8 grid396"),
    (Problem(256, 64, 12544, direction="backward"), "streamed group=396", 515.6, "V1 BT256 U2 CVB8 grid396"),
    (Problem(256, 512, 784), "streamed group=198 tile=256", 163.0, "V6 BT256 U8 CVB32 grid396"),
    (Problem(256, 512, 784, direction="backward"), "streamed group=198 tile=256", 277.1, "V1 BT256 U2 CVB32"),
    (Problem(256, 1024, 196), "streamed group=99 tile=256", 86.1, "V6 BT256 U8 CVB32 grid396"),
    (Problem(256, 1024, 196, direction="backward"), "streamed group=66 tile=256", 140.9, "V6 BT256 U4 CVB32"),
    (Problem(256, 2048, 49), "streamed group=49 tile=256", 45.6, "V6 BT256 U8 CVB32 grid392"),
    (Problem(256, 2048, 49, direction="backward"), "streamed group=33 tile=256", 72.8, "V6 BT256 U4 CVB32"),
    (Problem(128, 128, 784, dtype="f32"), "streamed group=528 tile=128", 47.9, "V6 BT256 U8 CVB32 grid528"),
    (
        Problem(128, 128, 784, NHWC, "f32", "backward"),
        "streamed group=396 tile=128",
        72.5,
        "V6 BT256 U4 CVB32 grid396",
    ),
    (Problem(4096, 1024, 1), "streamed group=64 tile=256", 15.8, "V6 BT256 U8 CVB32 grid256"),
    (Problem(4096, 1024, 1, direction="backward"), "streamed group=66 tile=256", 19.7, "V6 BT256 U4 CVB32"),
    (Problem(2, 32, 2**18, ROWS, "f32"), "streamed", 52.1, "W3twopdl_V8_t256"),
    (Problem(8, 3, 50176, ROWS, "f32"), "streamed", 8.4, "W3twopdl_V8_t256"),
    # evaluation
    (Problem(32, 256, 3136, ROWS, "f32", part="apply"), "", 50.9, "ev_U4_t256_h1"),
    (Problem(256, 256, 3136, ROWS, part="apply"), "", 198.5, "ev_U4_t256_h1"),
    (Problem(256, 256, 3136, NHWC, part="apply"), "", 199.0, "ev_U4_t256_h1"),
)
# Missing: two passes over rows of 3 and of 5 vectors. 802816x24 bf16 took 43.8 and 68.0, predicted are 33 and
# 54. 200704x40 bf16 took 24.6 and 41.5, predicted are 20 and 26. The cause is unknown.

# Cases and the times of their best prototypes, forward and backward. Most channels_last prototypes load
# through rings of 2-D TMA boxes. None of our kernels does.
BEST = (
    (Problem(256, 256, 3136), 316, 514),
    (Problem(256, 64, 12544), 306, 499),
    (Problem(256, 512, 784), 155, 261),
    (Problem(256, 1024, 196), 77, 124),
    (Problem(256, 2048, 49), 39.5, 58),
    (Problem(64, 40, 3136), 18.5, 24),
    (Problem(4096, 1024, 1), 10.4, 12.7),
    (Problem(128, 128, 784, dtype="f32"), 40, 61),
    (Problem(32, 256, 3136, ROWS, "f32"), 56.6, 76.3),
    (Problem(32, 64, 12544, ROWS, "f32"), 60, 87),
    (Problem(32, 512, 784, ROWS, "f32"), 29.5, 41),
    (Problem(32, 2048, 49, ROWS, "f32"), 9.7, 13.6),
    (Problem(32, 256, 3136, ROWS, "f32", residual=True), 81.5, 110),
    (Problem(2, 32, 2**18, ROWS, "f32"), 44, 66),
    (Problem(256, 256, 3136, ROWS), 240, 359),
    (Problem(128, 512, 784, ROWS), 60, 81),
    (Problem(256, 1024, 196, ROWS, "f16"), 70, 96),
    (Problem(64, 6, 784, ROWS, "f32"), 3.3, 3.4),
    (Problem(64, 16, 100, ROWS, "f32"), 2.6, 2.4),
    (Problem(64, 6, 784, NHWC, "f32"), 4.5, 4.7),
)
# Left out: 64x16x100 with channels last, 3.7 and 3.5, predicted 4.2 and 4.3: our blocks exchange in two hops,
# that prototype in one. 32x65x1023, 8.0 and 11.3, predicted 10.4 and 13.2: that prototype kept single
# elements, ours streams elements that make no whole vectors.


def name_of(each: Problem) -> str:
    return f"{each.N}x{each.C}x{each.S}-{each.layout}-{each.dtype}{'-residual' if each.residual else ''}"


@pytest.mark.parametrize(
    ("each", "forced", "reading", "variant"),
    READINGS,
    ids=[f"{name_of(each)}-{each.direction}-{variant}" for each, _, _, variant in READINGS],
)
def test_predictions_come_near_prototypes_of_the_same_plan(
    each: Problem, forced: str, reading: float, variant: str
) -> None:
    """A model that does not predict the measured times would choose plans by chance."""
    plan = each.plan(forced)
    assert plan.predicted_time == pytest.approx(reading, rel=DEMANDED), (variant, plan)


@pytest.mark.parametrize("direction", ["forward", "backward"])
@pytest.mark.parametrize(("each", "forward", "backward"), BEST, ids=[name_of(each) for each, *_ in BEST])
def test_predictions_come_near_the_best_prototypes(
    each: Problem, forward: float, backward: float, direction: str
) -> None:
    """Of the chosen plans none is predicted much better or worse than the measured times."""
    plan = each.plan(direction=direction)
    best = forward if direction == "forward" else backward
    assert plan.predicted_time == pytest.approx(best, rel=DEMANDED), plan


@pytest.mark.parametrize(("each", "floor"), [
    (Problem(256, 256, 3136), 195),
    (Problem(256, 512, 784), 98),
    (Problem(256, 1024, 196), 50),
    (Problem(256, 2048, 49), 26),
    (Problem(64, 40, 3136), 9.3),
    (Problem(4096, 1024, 1), 5.6),
    (Problem(32, 2048, 49, ROWS, "f32"), 7.7),
    (Problem(64, 6, 784, ROWS, "f32"), 2.0),
    (Problem(64, 16, 100, ROWS, "f32"), 1.6),
])  # fmt: skip
def test_the_floor_is_a_measured_copy(each: Problem, floor: float) -> None:
    """Forward's floor is a cudaMemcpy of one tensor to another."""
    assert each.plan().floor_time == pytest.approx(floor, rel=0.05)

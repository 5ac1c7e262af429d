"""The table of predictions in docs/cuda.md is what the planner says today."""

import pytest

from fused_bn import planner
from tests.cases import HAS_EXTENSION
from tests.docs.pages import text, unwrapped
from tests.planner.test_plan_prices import DEMANDED

CASES: tuple[tuple[tuple[int, ...], str, str], ...] = (
    *(
        ((256, c, s, s), "channels_last", "bf16")
        for c, s in ((64, 112), (256, 56), (512, 28), (1024, 14), (2048, 7))
    ),
    *(((32, c, s, s), "channels_first", "f32") for c, s in ((64, 112), (256, 56), (512, 28), (2048, 7))),
    *(((64, c, s, s), "channels_first", "f32") for c, s in ((6, 28), (16, 10))),
)


def row(shape: tuple[int, ...], layout: str, dtype: str) -> str:
    """A case's plans on an H200: microseconds and megabytes, forward and backward."""
    cells = ["x".join(map(str, shape)), layout, dtype]
    for direction in ("forward", "backward"):
        plan = planner.plan(shape, dtype, layout, "h200", direction)
        traffic = (plan.read - plan.l2_hits + plan.written) / 1e6
        cells += [f"{plan.predicted_time:.1f}", f"{plan.floor_time:.1f}", f"{traffic:.1f}"]
    return f"| {' | '.join(cells)} |"


@pytest.mark.skipif(not HAS_EXTENSION, reason="the planner is part of the extension")
@pytest.mark.parametrize("case", CASES, ids=lambda case: f"{'x'.join(map(str, case[0]))}-{case[1]}")
def test_the_page_shows_what_the_planner_predicts(case: tuple[tuple[int, ...], str, str]) -> None:
    """A changed constant or plan would leave outdated figures on the page."""
    assert row(*case) in text("docs/cuda.md")


def test_the_page_says_how_well_prices_predict() -> None:
    assert f"it predicts the reading to within {100 * DEMANDED:g} %" in unwrapped("docs/cuda.md")

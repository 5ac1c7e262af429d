"""The HTML page, and the filters that format numbers in its template."""

import base64
from collections.abc import Sequence
from pathlib import Path

from jinja2 import Environment, FileSystemLoader, StrictUndefined

from benchmarks.report.drawing import Chart
from benchmarks.report.figures import GRAPHS, ROW_NAMES, other_rows, slower
from benchmarks.report.section import Section

NOTHING = "\u2013"
"""Shown for a missing number."""


def html(sections: Sequence[Section]) -> str:
    """One document with all pictures inside. Every text is escaped."""
    environment = Environment(
        loader=FileSystemLoader(Path(__file__).parent),
        autoescape=True,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    environment.filters |= {
        "times": times,
        "share": share,
        "microseconds": microseconds,
        "megabytes": megabytes,
        "key": key,
        "uri": uri,
    }
    environment.tests["slower"] = slower
    template = environment.get_template("page.html.jinja")
    return template.render(sections=sections, other_rows=other_rows, row_names=ROW_NAMES, graphs=GRAPHS)


def times(value: float | None) -> str:
    """A ratio."""
    if value is None:
        return NOTHING
    return f"{value:.2f}" if value < 100 else f"{value:,.0f}"


def share(value: float | None) -> str:
    """A share."""
    return NOTHING if value is None else f"{value:.0%}" if value >= 0.1 else f"{value:.1%}"


def microseconds(seconds: float | None) -> str:
    """A time with at least three digits."""
    if seconds is None:
        return NOTHING
    value = seconds * 1e6
    return f"{value:,.0f}" if value >= 100 else f"{value:.3g}"


def megabytes(count: int | None) -> str:
    """Memory with at least three digits."""
    if count is None:
        return NOTHING
    value = count / 1e6
    return f"{value:,.0f}" if value >= 100 else f"{value:.3g}"


def key(value: float | None) -> str:
    """The sort key of a column. Missing values come last."""
    return "Infinity" if value is None else repr(value)


def uri(chart: Chart) -> str:
    """The picture as a data address."""
    return f"data:image/png;base64,{base64.b64encode(chart.png).decode()}"

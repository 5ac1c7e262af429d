"""The errors as a table for the terminal and as Markdown, one line per data set and quantity."""

from collections.abc import Iterable, Iterator, Sequence

from rich import box
from rich.table import Table

from benchmarks.history import Accuracy

ROWS = ("eager", "compile", "ours")
CAPTION = """\
largest error against float64 in ulps, mean over draws of parameters and gradients; correctly rounded: 0.5
an ulp is the spacing of the result's dtype at the element or, where larger, at its channel's usual size"""


def headings(records: Iterable[Accuracy]) -> list[str]:
    """The columns' names. "compile" has a column if any record has it."""
    measured = {row for record in records for row in record.ulps}
    return ["data", "dtype", "quantity", *(row for row in ROWS if row in measured), "eager / ours"]


def lines(records: Sequence[Accuracy]) -> Iterator[list[str]]:
    """One line per record, with one text per heading."""
    rows = headings(records)[3:-1]
    for record in records:
        errors = [figure(record.ulps[row]) if row in record.ulps else "-" for row in rows]
        yield [record.data, record.dtype, record.quantity, *errors, gain(record)]


def figure(ulps: float) -> str:
    """Two digits; an exponent only if it saves zeros."""
    return f"{ulps:.2f}" if ulps < 100 else f"{ulps:,.0f}" if ulps < 1e6 else f"{ulps:.1e}"


def gain(record: Accuracy) -> str:
    """How many times larger eager's error is than ours. Empty if ours is zero."""
    eager, ours = record.ulps["eager"], record.ulps["ours"]
    return figure(eager / ours) if ours > 0 else "-" if eager == 0 else "inf"


def terminal(records: Sequence[Accuracy]) -> Table:
    """The table that `pytest benchmarks` prints at its end. Only the first line of a data set names it."""
    table = Table(title="accuracy", caption=CAPTION, caption_justify="left", box=box.SIMPLE_HEAD)
    for number, heading in enumerate(headings(records)):
        table.add_column(heading, justify="left" if number < 3 else "right", no_wrap=True)
    before: list[str] = []
    for line in lines(records):
        first = line[:2] != before
        if first and before:
            table.add_section()
        before = line[:2]
        table.add_row(*(line if first else ["", "", *line[2:]]))
    return table


def markdown(records: Sequence[Accuracy]) -> str:
    """The same table as Markdown, with the name in every line."""
    columns = headings(records)
    rules = ["---"] * 3 + ["---:"] * (len(columns) - 3)
    return "\n".join(f"| {' | '.join(line)} |" for line in [columns, rules, *lines(records)]) + "\n"

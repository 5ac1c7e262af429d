"""The figures of a run as a table for the terminal and as Markdown for docs/benchmarks.md."""

from collections.abc import Iterator

from rich import box
from rich.table import Table

from benchmarks.comparison import DIRECTIONS
from benchmarks.speed.results import CaseResult, Results, copies, speedup

CAPTION = """\
eager, compile, ours: time in copies of the input; speedup: eager / ours, median of the rounds' ratios
eager: nn.BatchNorm2d and nn.ReLU; compile: the same by torch.compile; training mode, float32 parameters"""


def headings(results: Results) -> list[str]:
    """The columns' names. They begin with the direction."""
    rows = [*timed_rows(results), "speedup"]
    return ["shape", "layout", "dtype", *(f"{direction}: {row}" for direction in DIRECTIONS for row in rows)]


def timed_rows(results: Results) -> list[str]:
    """All rows but the copy: eager, ours, and compile if measured."""
    return ["eager", "compile", "ours"] if results.arguments["compile"] else ["eager", "ours"]


def lines(results: Results) -> Iterator[list[str]]:
    """One line per case, with as many texts as headings."""
    rows = timed_rows(results)
    for result in results.results:
        case = result.case
        line = ["x".join(map(str, case.shape)), case.layout, case.dtype]
        for direction in DIRECTIONS:
            line += _figures(result, direction, rows)
        yield line


def _figures(result: CaseResult, direction: str, rows: list[str]) -> list[str]:
    if result.wrong is not None:
        return ["WRONG"] * (len(rows) + 1)
    if direction not in result.timings:
        return ["-"] * (len(rows) + 1)
    seconds = result.timings[direction]
    return [*(f"{copies(seconds, row):.1f}" for row in rows), f"{speedup(seconds):.2f}"]


def terminal(results: Results) -> Table:
    """The table that the job prints."""
    table = Table(title=results.conditions, caption=CAPTION, caption_justify="left", box=box.SIMPLE_HEAD)
    for heading in headings(results):
        direction, _, row = heading.rpartition(": ")
        text = f"{direction}\n{row}" if row == "speedup" else f"\n{row}"
        table.add_column(text, justify="right" if direction else "left", no_wrap=True)
    for line in lines(results):
        table.add_row(*line)
    return table


def markdown(results: Results) -> str:
    """The table, the conditions and the required figures."""
    columns = headings(results)
    rules = ["---:" if ": " in heading else "---" for heading in columns]
    body = [columns, rules, *lines(results)]
    table = "\n".join(f"| {' | '.join(line)} |" for line in body)
    figures = "\n".join(f"- {figure}" for figure in results.requirements())
    caption = CAPTION.replace("\n", ".\n")
    return f"{table}\n\n{results.conditions}.\n{caption}.\n\n{figures}\n"

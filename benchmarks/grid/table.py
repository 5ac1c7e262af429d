"""The groups as one table with columns that pytest-benchmark lacks."""

from collections.abc import Sequence

from rich import box
from rich.table import Table

from benchmarks.grid.group import Measured

COLUMNS = ("row", "median", "x eager", "GB/s", "of the floor", "peak extra")
CAPTION = """\
x eager: how many times as fast, median of the rounds' ratios; GB/s: of the traffic nobody can avoid;
of the floor: the time a copy takes for that traffic, over the row's; peak extra: memory that a call adds"""


def lines(measured: Measured) -> list[tuple[str, ...]]:
    """One line per row, with as many texts as columns."""
    found: list[tuple[str, ...]] = []
    for row in measured.readings:
        numbers = measured.row(row)
        moved = measured.cell.bytes
        if row == "copy":
            moved = 2 * measured.cell.case.tensor_bytes
        rate = f"{moved / numbers.seconds / 1e9:.1f}" if moved else ""
        share = f"{100 * numbers.share_of_floor:.0f} %" if moved and row != "copy" else ""
        peak = "" if numbers.peak_bytes is None else size(numbers.peak_bytes)
        ratio = "" if row == "copy" else f"{numbers.ratio:.2f}"
        found.append((row, duration(numbers.seconds), ratio, rate, share, peak))
    found += [(row, "FAILED", "", "", "", "") for row in measured.errors]
    return found


def terminal(groups: Sequence[Measured]) -> Table:
    """All groups, one below the other."""
    table = Table(caption=CAPTION, caption_justify="left", box=box.SIMPLE_HEAD)
    for column in COLUMNS:
        table.add_column(column, justify="left" if column == "row" else "right", no_wrap=True)
    for measured in groups:
        table.add_row(f"[bold]{measured.group}[/bold]")
        for line in lines(measured):
            slow = line[2] and line[0] == "ours" and float(line[2]) < 1
            table.add_row(f"  {line[0]}", *line[1:], style="red" if slow or line[1] == "FAILED" else None)
    return table


def worst(groups: Sequence[Measured], count: int = 5) -> list[str]:
    """The groups in which ours gains least over eager, the worst first, one line each."""
    ranked = sorted(
        (group.row("ours").ratio, group.group)
        for group in groups
        if {"eager", "ours"} <= group.readings.keys()
    )
    return [f"{ratio:.2f}x eager: {group}" for ratio, group in ranked[:count]]


def duration(seconds: float) -> str:
    """Seconds, in a unit in which they are between 1 and 1000."""
    for unit, factor in (("s", 1.0), ("ms", 1e3), ("us", 1e6)):
        if seconds * factor >= 1:
            return f"{seconds * factor:.3g} {unit}"
    return f"{seconds * 1e9:.3g} ns"


def size(count: int) -> str:
    """In bytes, kB or MB."""
    for unit, factor in (("MB", 1e6), ("kB", 1e3)):
        if count >= factor:
            return f"{count / factor:.1f} {unit}"
    return f"{count} B"

"""The results of a run of `compare` as a table for the terminal."""

from rich import box
from rich.table import Table

from benchmarks.compare.results import CellResult, Results
from benchmarks.compare.verdicts import CONFIDENCE, LEAST, RULED_OUT, Verdict

CAPTION = f"""\
base, head: us a call, medians; ratio: head / base, with its {CONFIDENCE:.0%} interval
noise: how far base's times in two processes are apart
slower, faster: the interval is beyond the noise and {LEAST:.0%}
same: the interval rules out a difference of {RULED_OUT:.0%}
unstable: none of these
cells that were slower or unstable were measured again, in new processes"""

COLOURS = {
    Verdict.SLOWER: "red",
    Verdict.FASTER: "green",
    Verdict.UNSTABLE: "yellow",
    Verdict.NO_DATA: "magenta",
}


def terminal(results: Results) -> Table:
    """The table that the job prints, one line per cell."""
    title = f"{results.head} against {results.base}"
    table = Table(title=title, caption=CAPTION, caption_justify="left", box=box.SIMPLE_HEAD)
    table.add_column("cell", no_wrap=True)
    for heading in ("base", "head", "ratio", "interval", "noise"):
        table.add_column(heading, justify="right", no_wrap=True)
    table.add_column("verdict", no_wrap=True)
    for result in results.cells:
        colour = COLOURS.get(result.verdict)
        verdict = result.verdict.value
        table.add_row(*figures(result), f"[{colour}]{verdict}[/{colour}]" if colour else verdict)
    return table


def figures(result: CellResult) -> list[str]:
    """The texts of a line before its verdict."""
    judgement = result.judgement
    if judgement is None or result.failed is not None:
        return [result.cell.id, *["-"] * 5]
    found = judgement.head_to_base
    return [
        result.cell.id,
        f"{1e6 * judgement.base:.1f}",
        f"{1e6 * judgement.head:.1f}",
        f"{found.ratio:.3f}",
        f"{found.low:.3f} to {found.high:.3f}",
        f"{judgement.noise:.1%}",
    ]

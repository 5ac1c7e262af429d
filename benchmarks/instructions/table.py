"""The counts as a table: ours, eager's, and the stored ones."""

from collections.abc import Mapping, Sequence

from rich import box
from rich.table import Table

from benchmarks.history import Instructions
from benchmarks.instructions.calls import COUNTED, GATED
from benchmarks.instructions.stored import change

CAPTION = """\
instructions of the host for one call on a (2, 4, 2, 2) tensor, counted by valgrind
eager: nn.BatchNorm2d and nn.ReLU, the module also beside our function"""


def terminal(records: Sequence[Instructions], stored: Mapping[str, int]) -> Table:
    """One line per call of ours, beside eager's call of the same kind."""
    found = {record.call: record.count for record in records}
    table = Table(title="instruction counts", caption=CAPTION, caption_justify="left", box=box.SIMPLE_HEAD)
    for heading in ("call", "ours", "eager", "ours / eager", "stored", "change"):
        table.add_column(heading, justify="left" if heading == "call" else "right", no_wrap=True)
    for call in GATED:
        if call in found:
            table.add_row(call, *_figures(found[call], found.get(eager_of(call)), stored.get(call)))
    return table


def eager_of(call: str) -> str:
    """The eager call that does the same as `call`. Eager has no separate function call."""
    name = f"eager {call}"
    return name if name in COUNTED else "eager forward"


def _figures(ours: int, eager: int | None, stored: int | None) -> list[str]:
    of_eager = ["-", "-"] if eager is None else [f"{eager:,}", f"{ours / eager:.2f}"]
    of_stored = ["-", "-"] if stored is None else [f"{stored:,}", f"{change(ours, stored):+.2%}"]
    return [f"{ours:,}", *of_eager, *of_stored]

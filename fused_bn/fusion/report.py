"""What `fuse` says about each norm of a model."""

from dataclasses import dataclass


@dataclass(frozen=True)
class NormReport:
    """What `fuse` did with one norm.

    Attributes:
        name: the name of the module in the model.
        kind: the name of its class before it was replaced.
        fused: what is computed in its pass, one entry per call of the norm: "relu", "add", "add, silu", ...
        replaced: whether a module of this package computes the norm.
        reason: why the norm is not fused, or not always; empty otherwise.
    """

    name: str
    kind: str
    fused: tuple[str, ...]
    replaced: bool
    reason: str

    @property
    def outcome(self) -> str:
        if self.fused:
            return "; ".join(self.fused)
        return "plain drop-in" if self.replaced else "left alone"


@dataclass(frozen=True)
class FusionReport:
    """What `fuse` did with a model; `str` gives a table, and `report[name]` the entry of one norm.

    Attributes:
        norms: one `NormReport` for every norm, in the order of `named_modules`.
        note: why there is no norm, if there is none.
    """

    norms: tuple[NormReport, ...]
    note: str = ""

    @property
    def fused(self) -> tuple[NormReport, ...]:
        """The entries of norms that are fused with what follows them."""
        return tuple(norm for norm in self.norms if norm.fused)

    @property
    def share(self) -> float:
        """The share of norms that are fused with what follows them; 1 if there is no norm."""
        return len(self.fused) / len(self.norms) if self.norms else 1.0

    def __getitem__(self, name: str) -> NormReport:
        """The norm of that name; KeyError where there is none."""
        for norm in self.norms:
            if norm.name == name:
                return norm
        raise KeyError(name)

    def __str__(self) -> str:
        if self.note:
            return f"no norm found: {self.note}"
        head = ("norm", "class", "fused with", "why not")
        rows = [
            head,
            *((norm.name or "(model)", norm.kind, norm.outcome, norm.reason) for norm in self.norms),
        ]
        widths = [max(len(row[column]) for row in rows) for column in range(len(head))]
        lines = ["  ".join(map(str.ljust, row, widths)).rstrip() for row in rows]
        lines.insert(1, "  ".join("-" * width for width in widths))
        count = f"{len(self.fused)} of {len(self.norms)} norms fused with what follows them"
        return "\n".join([*lines, count])

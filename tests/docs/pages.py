"""The text, code and tables of README, docs and the other pages."""

import json
import re
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parent.parent.parent
PAGES = sorted(path for pattern in ("*.md", "docs/*.md", ".github/**/*.md") for path in ROOT.glob(pattern))


@dataclass(frozen=True)
class Block:
    """A fenced block of code: its page, its first line, its language, and its code."""

    page: str
    line: int
    language: str
    code: str

    @property
    def id(self) -> str:
        return f"{self.page}:{self.line}"


def text(name: str) -> str:
    return (ROOT / name).read_text()


def unwrapped(name: str) -> str:
    """The text on one line, so that a sentence is found across line breaks."""
    return " ".join(text(name).split())


def blocks() -> list[Block]:
    """The code blocks of all pages, in order."""
    found = []
    for page in PAGES:
        content = page.read_text()
        for match in re.finditer(r"^```(\w*)\n(.*?)^```$", content, re.DOTALL | re.MULTILINE):
            line = content.count("\n", 0, match.start()) + 1
            found.append(Block(str(page.relative_to(ROOT)), line, match[1], match[2]))
    return found


def table(headings: str, rows: Iterable[Iterable[str]], left: int = 1) -> str:
    """A Markdown table: headings, a rule with the first `left` columns aligned left, and rows of cells."""
    columns = headings.split(" | ")
    rule = ["---"] * left + ["---:"] * (len(columns) - left)
    lines = [columns, rule, *rows]
    return "\n".join(f"| {' | '.join(cells)} |".replace("|  |", "| |") for cells in lines)


def measured(name: str) -> dict[str, Any]:
    """A recorded file of benchmarks/results/cpu."""
    loaded: dict[str, Any] = json.loads(text(f"benchmarks/results/cpu/{name}"))
    return loaded

"""The counts that were stored, by what they depend on, and what to say of a count beside its stored one."""

import json
from collections.abc import Mapping
from pathlib import Path

from benchmarks import files
from benchmarks.history import ROOT

PATH = Path(__file__).with_name("counts.json")
TOLERANCE = 0.03
"""Five times as much as counts differ between hash seeds, environments and loads of the machine: 0.6 %."""
UPDATE = "python -m benchmarks.instructions --update"


class StoredCountsError(Exception):
    """The file of stored counts cannot be read; the text says why."""


def load() -> dict[str, dict[str, int]]:
    """Counts by call, by key; none where there is no file. Raises StoredCountsError."""
    try:
        entries = json.loads(PATH.read_text())
        return {key: {call: int(n) for call, n in counts.items()} for key, counts in entries.items()}
    except FileNotFoundError:
        return {}
    except (OSError, ValueError, TypeError, AttributeError) as error:
        raise StoredCountsError(f"{PATH} cannot be read: {error}") from error


def store(key: str, counts: Mapping[str, int]) -> None:
    """Puts `counts` in the place of what is there of that key; other entries stay."""
    entries = load() | {key: dict(counts)}
    files.write_whole(PATH, json.dumps(entries, indent=2, sort_keys=True) + "\n")


def change(found: int, stored: int) -> float:
    """By what share of the stored count there are more."""
    return (found - stored) / stored


def complaint(call: str, found: int, stored: int) -> str | None:
    """Where a call takes more instructions than TOLERANCE allows: what, where and what to do."""
    if change(found, stored) <= TOLERANCE:
        return None
    return (
        f"{call}: {found:,} instructions, {change(found, stored):.1%} more than the {stored:,} in "
        f"{_shown()} ({TOLERANCE:.0%} are allowed); where that is meant, update the file by `{UPDATE}`"
    )


def praise(call: str, found: int, stored: int) -> str | None:
    """Where a call takes so many fewer that the stored count guards it no longer."""
    if change(found, stored) >= -TOLERANCE:
        return None
    return (
        f"{call}: {found:,} instructions, {-change(found, stored):.1%} fewer than the {stored:,} in "
        f"{_shown()}: lower it by `{UPDATE}`"
    )


def no_entry(key: str) -> str:
    return f"{_shown()} has no counts for {key}; `{UPDATE}` adds them"


def _shown() -> str:
    return str(PATH.relative_to(ROOT) if PATH.is_relative_to(ROOT) else PATH)

"""The stored counts, by what they depend on, and their comparison with new counts."""

import json
from collections.abc import Mapping
from pathlib import Path

from benchmarks import files
from benchmarks.history import ROOT

PATH = Path(__file__).with_name("counts.json")
TOLERANCE = 0.03
"""Hash seeds, environments and load change counts by up to 0.6 %; this is five times as much."""
UPDATE = "python -m benchmarks.instructions --update"


class StoredCountsError(Exception):
    """The file of stored counts cannot be read. The text says why."""


def load() -> dict[str, dict[str, int]]:
    """Counts by call, by key. Empty if there is no file. Raises StoredCountsError."""
    try:
        entries = json.loads(PATH.read_text())
        return {key: {call: int(n) for call, n in counts.items()} for key, counts in entries.items()}
    except FileNotFoundError:
        return {}
    except (OSError, ValueError, TypeError, AttributeError) as error:
        raise StoredCountsError(f"{PATH} cannot be read: {error}") from error


def store(key: str, counts: Mapping[str, int]) -> None:
    """Replaces the counts of one key. Other entries stay."""
    entries = load() | {key: dict(counts)}
    files.write_whole(PATH, json.dumps(entries, indent=2, sort_keys=True) + "\n")


def change(found: int, stored: int) -> float:
    """The increase relative to the stored count."""
    return (found - stored) / stored


def complaint(call: str, found: int, stored: int) -> str | None:
    """A message for each call that exceeds TOLERANCE: the call, the counts and what to do."""
    if change(found, stored) <= TOLERANCE:
        return None
    return (
        f"{call}: {found:,} instructions, {change(found, stored):.1%} more than the {stored:,} in "
        f"{_shown()} ({TOLERANCE:.0%} are allowed); where that is meant, update the file by `{UPDATE}`"
    )


def praise(call: str, found: int, stored: int) -> str | None:
    """A message for each call with so few instructions that its stored count no longer guards it."""
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

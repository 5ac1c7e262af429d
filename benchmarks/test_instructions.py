"""The host's instructions for a tiny call, under valgrind, against the stored counts.

    python -m pytest benchmarks -m instructions         # a minute
    python -m benchmarks.instructions --update          # after an intended change

Unlike times, counts repeat to 0.6 %, whatever else the machine does.
"""

import warnings

import pytest

from benchmarks.history import Instructions, Record
from benchmarks.instructions import stored
from benchmarks.instructions.calls import GATED
from benchmarks.instructions.count import count, key, missing

pytestmark = pytest.mark.instructions


@pytest.fixture(scope="module")
def counts(records: list[Record]) -> dict[str, int]:
    """All calls, including eager's, counted once."""
    if reason := missing():
        pytest.skip(reason)
    found = count()
    records += [Instructions(call, number) for call, number in found.items()]
    return found


@pytest.mark.parametrize("call", GATED)
def test_instructions(call: str, counts: dict[str, int]) -> None:
    entry = stored.load().get(key(), {})
    if call not in entry:
        pytest.skip(stored.no_entry(key()))
    if remark := stored.praise(call, counts[call], entry[call]):
        warnings.warn(remark, stacklevel=1)
    complaint = stored.complaint(call, counts[call], entry[call])
    assert complaint is None, complaint

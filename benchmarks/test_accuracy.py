"""Errors against float64 of ours, eager and compile, on hard data and on LeNet's own.

    python -m pytest benchmarks -m accuracy        # two minutes

Ours must be no worse in any row, and far better where the mean is large beside the deviation.
"""

import logging

import pytest
import torch

from benchmarks import mnist
from benchmarks.accuracy.data import DATA, LENET, Data
from benchmarks.accuracy.measure import measure
from benchmarks.history import Accuracy, Record
from fused_bn._extension import devices_with_kernels

pytestmark = [
    pytest.mark.accuracy,
    pytest.mark.skipif("cpu" not in devices_with_kernels, reason="the compiled extension is not loaded"),
]

LUCK = 1.5
"""ulps, by which two results may differ that are both rounded as well as their type allows, to neighbours on
either side of the exact one. Where eager is ahead by less, up to 1.0, the cause is the length of float sums:
a chunk of ours adds 64 values in a row, where eager, with contiguous tensors, adds fewer or takes doubles."""

ORDERS_OF_MAGNITUDE = 100
"""How many times smaller than theirs our errors must be where the mean is a million standard deviations."""
LOSES_DIGITS = ("output", "grad_input", "grad_weight", "grad_bias", "variance")
"""What cancels there; the mean itself does not, and eager rounds it right with contiguous tensors."""


CASES = [pytest.param(data, id=data.id.replace(",", "").replace(" ", "-")) for data in (*DATA, *LENET)]


@pytest.fixture(autouse=True)
def quiet_compiler(caplog: pytest.LogCaptureFixture) -> None:
    """torch.compile traces itself for tools of its own, hundreds of lines that pytest would show."""
    caplog.set_level(logging.WARNING, "torch.__trace")


@pytest.mark.parametrize("data", CASES)
def test_accuracy(data: Data, records: list[Record]) -> None:
    found = measured(data)
    records += found
    complaints = [text for record in found for text in worse(record)]
    if data.far_mean:
        complaints += [text for record in found for text in not_far_better(record)]
    assert not complaints, "\n".join(complaints)


def measured(data: Data) -> list[Accuracy]:
    """On two threads, so that a machine's number of cores cuts no sum of torch.compile's otherwise."""
    threads = torch.get_num_threads()
    torch.set_num_threads(2)
    try:
        return measure(data)
    except mnist.MnistError as error:
        pytest.skip(str(error))
    finally:
        torch.set_num_threads(threads)


def worse(record: Accuracy) -> list[str]:
    """The rows that are more accurate than ours by more than LUCK."""
    ours = record.ulps["ours"]
    return [
        f"{record.data}, {record.quantity}: ours is wrong by {ours:.2f} ulps, {row} by {theirs:.2f}"
        for row, theirs in record.ulps.items()
        if not ours <= theirs + LUCK
    ]


def not_far_better(record: Accuracy) -> list[str]:
    """The rows that are not worse than ours by orders of magnitude in what cancels."""
    if record.quantity not in LOSES_DIGITS:
        return []
    ours = record.ulps["ours"]
    return [
        f"{record.data}, {record.quantity}: {row} is wrong by {theirs:.3g} ulps, ours by {ours:.3g}, "
        f"which is not {ORDERS_OF_MAGNITUDE} times less"
        for row, theirs in record.ulps.items()
        if row != "ours" and not theirs >= ORDERS_OF_MAGNITUDE * ours
    ]

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

ROUNDED = {"mean": 0.5, "variance": 0.5, "grad_bias": 0.5, "grad_weight": 1.5}
"""ulps, within which a sum is as good as its type allows, whoever is nearer: the rounding of the result, and
of grad_weight that of invstd too, saved as float32, which may be 1 ulp of the product."""
HAIR = 1e-3
"""ulps, for the sums themselves, in double: of n = 1e5 terms some 150 additions follow each other, each off
by 2^-53 of what may be n terms, sqrt(n) times the scale: in ulps of 2^-24 it is 150 * 316 * 2^-29 = 1e-4."""
LAST_ROUNDING = 0.5
"""ulps, by which the largest errors of elements may differ without a cause: of two values equally wrong one
may be rounded, at the end, away from the truth and one towards it. Else eager's output and ours differ
little: they share the error of scale = weight * invstd, which is most of it."""

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
    """The rows that are more accurate than ours, by more than rounding explains."""
    ours = record.ulps["ours"]
    return [
        f"{record.data}, {record.quantity}: ours is wrong by {ours:.2f} ulps, {row} by {theirs:.2f}"
        for row, theirs in record.ulps.items()
        if not ours <= allowed(record.quantity, theirs)
    ]


def allowed(quantity: str, theirs: float) -> float:
    """The largest error that is no worse than another's."""
    if quantity in ROUNDED:
        return max(theirs, ROUNDED[quantity]) + HAIR
    return theirs + LAST_ROUNDING


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

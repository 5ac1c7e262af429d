"""Errors against float64 of ours, eager and compile, on hard data and on LeNet's own.

    python -m pytest benchmarks -m accuracy        # two minutes

Ours must be no worse in any row, and much better if the mean is large compared with the deviation.
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
"""ulps. Errors below this are as good as the dtype allows: the rounding of the result, and for grad_weight
also that of invstd, which is saved as float32 and may add 1 ulp to the product."""
HAIR = 1e-3
"""ulps, for sums in double. Of n = 1e5 terms about 150 additions follow each other. Each is off by 2^-53 of
at most n terms, sqrt(n) times the scale: in ulps of 2^-24 that is 150 * 316 * 2^-29 = 1e-4."""
LAST_ROUNDING = 0.5
"""ulps by which the largest errors of elements may differ by chance: of two values that are equally wrong,
the last rounding may move one away from the truth and the other towards it. Otherwise eager's output and ours
differ little, because most of their error is that of scale = weight * invstd."""

ORDERS_OF_MAGNITUDE = 100
"""How many times smaller our errors must be if the mean is a million standard deviations."""
LOSES_DIGITS = ("output", "grad_input", "grad_weight", "grad_bias", "variance")
"""The quantities with cancellation. The mean has none, and eager rounds it correctly for contiguous tensors.
"""


CASES = [pytest.param(data, id=data.id.replace(",", "").replace(" ", "-")) for data in (*DATA, *LENET)]


@pytest.fixture(autouse=True)
def quiet_compiler(caplog: pytest.LogCaptureFixture) -> None:
    """torch.compile logs hundreds of lines for other tools, which pytest would show."""
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
    """Two threads, so that torch.compile's sums are split in the same way on every machine."""
    threads = torch.get_num_threads()
    torch.set_num_threads(2)
    try:
        return measure(data)
    except mnist.MnistError as error:
        pytest.skip(str(error))
    finally:
        torch.set_num_threads(threads)


def worse(record: Accuracy) -> list[str]:
    """The rows that are more accurate than ours by more than rounding."""
    ours = record.ulps["ours"]
    return [
        f"{record.data}, {record.quantity}: ours is wrong by {ours:.2f} ulps, {row} by {theirs:.2f}"
        for row, theirs in record.ulps.items()
        if not ours <= allowed(record.quantity, theirs)
    ]


def allowed(quantity: str, theirs: float) -> float:
    """The largest error that is no worse than another row's."""
    if quantity in ROUNDED:
        return max(theirs, ROUNDED[quantity]) + HAIR
    return theirs + LAST_ROUNDING


def not_far_better(record: Accuracy) -> list[str]:
    """The rows that are not much worse than ours in the quantities with cancellation."""
    if record.quantity not in LOSES_DIGITS:
        return []
    ours = record.ulps["ours"]
    return [
        f"{record.data}, {record.quantity}: {row} is wrong by {theirs:.3g} ulps, ours by {ours:.3g}, "
        f"which is not {ORDERS_OF_MAGNITUDE} times less"
        for row, theirs in record.ulps.items()
        if row != "ours" and not theirs >= ORDERS_OF_MAGNITUDE * ours
    ]

"""64-bit indexing with tensors of more than 2^31 elements, and dimensions beyond a launch grid.

The large tests need 4.3 GB for the input and as much for the results, and run if the machine has that to
spare. Values repeat with a short period, so that results beyond 2^31 can be compared with those at the
beginning.
"""

from collections.abc import Iterator
from dataclasses import dataclass, replace
from pathlib import Path

import pytest
import torch
from torch import Tensor

from tests.cases import Case, call_fused, make_tensors
from tests.reference import DEMANDED_GRAD_INPUT, DEMANDED_OUTPUT, assert_meets_demands, error

TALL_SHAPES = [(131072, 1), (65536, 1, 1, 1), (70000, 1, 2), (1, 70000, 2), (2, 3, 70001, 2)]
"""Launch grids overflowed at 65,535 blocks in one dimension [16998, 19911, 29744]."""


@pytest.mark.parametrize("training", [True, False], ids=["training", "evaluation"])
@pytest.mark.parametrize("shape", TALL_SHAPES, ids=lambda shape: "x".join(map(str, shape)))
def test_dimensions_beyond_a_launch_grid(shape: tuple[int, ...], training: bool, device: str) -> None:
    case = Case(shape, training=training)
    assert_meets_demands(case, make_tensors(case, device))


def test_evaluation_of_147000_rows_of_100(device: str) -> None:
    """Bit-equal to ten slices of its rows. One slice is compared with the fp64 reference."""
    case = Case((147000, 100), training=False)
    tensors = make_tensors(case, device)
    rows = 14700
    results = [call_fused(case, tensors)]
    results += [call_fused(case, replace(tensors, input=part)) for part in tensors.input.split(rows)]
    whole, parts = results[0], torch.cat(results[1:])
    assert torch.equal(whole, parts)
    part = replace(tensors, input=tensors.input[-rows:], grad_output=tensors.grad_output[-rows:])
    assert_meets_demands(replace(case, shape=(rows, 100)), part)


@dataclass(frozen=True)
class Large:
    """A half-precision tensor whose values repeat every `period` samples (0) or elements of a row (2)."""

    shape: tuple[int, ...]
    repeating: int
    period: int

    @property
    def channels(self) -> int:
        return self.shape[1]

    def one_period(self) -> Tensor:
        """(period, C)"""
        generator = torch.Generator().manual_seed(12)
        return torch.randn(self.period, self.channels, generator=generator).to(torch.float16)

    def make(self) -> Tensor:
        x = torch.empty(self.shape, dtype=torch.float16)
        period = self.one_period()
        for block in self.blocks(x):
            block.copy_(period[: len(block)] if self.repeating == 0 else period.t())
        return x

    def blocks(self, tensor: Tensor) -> Iterator[Tensor]:
        """In memory order: (period, C), shorter at the end, or (C, period) if rows repeat."""
        if self.repeating == 0:
            yield from tensor.split(self.period)
            return
        for sample in tensor:
            yield from sample.split(self.period, dim=-1)

    def counts(self) -> Tensor:
        """How often each row of the period occurs."""
        repetitions, rest = divmod(self.shape[self.repeating], self.period)
        outer = self.shape[0] if self.repeating else 1
        counts = torch.full((self.period, 1), float(repetitions * outer), dtype=torch.float64)
        counts[:rest] += outer
        return counts


LARGE = {
    "tall": Large((4194305, 512), repeating=0, period=2**10),
    "long rows": Large((2, 2, 2**29 + 2**20), repeating=2, period=2**20),
}
"""Just above 2^31 elements, with the channels inside and outside."""


def available_gigabytes() -> float:
    """Free memory of this machine. Nothing if the system does not report it."""
    table = Path("/proc/meminfo")
    if not table.exists():
        return 0.0
    line = next(line for line in table.read_text().splitlines() if line.startswith("MemAvailable"))
    return int(line.split()[1]) * 1024 / 1e9


def assert_repeats(large: Large, tensor: Tensor, what: str) -> Tensor:
    """Checks that every block equals the first, bit for bit. Returns the first as (period, C) in fp64."""
    first = next(large.blocks(tensor)).clone()
    bits = first.view(torch.int64)  # compares four numbers at once, because float16 would take a minute
    for number, block in enumerate(large.blocks(tensor)):
        assert torch.equal(block.view(torch.int64), bits[: len(block)]), f"{what}, block {number}"
    return (first if large.repeating == 0 else first.t()).double()


@pytest.mark.slow
@pytest.mark.needs_extension
@pytest.mark.parametrize("name", LARGE)
def test_more_than_two_to_the_31_elements(name: str) -> None:
    """Forward in training, then backward with the input as gradient: right to the last element [29744].

    Tensors are held to the demands of all other cases.
    """
    if available_gigabytes() < 10:
        pytest.skip(f"needs 9 GB of free memory, {available_gigabytes():.1f} GB are free")
    large = LARGE[name]
    x = large.make()
    assert x.numel() > 2**31
    period, counts = large.one_period().double(), large.counts()
    n = counts.sum()
    mean = (period * counts).sum(0) / n
    var = ((period - mean).square() * counts).sum(0) / n
    invstd = (var + 1e-5).rsqrt()
    xhat = (period - mean) * invstd

    running_mean, running_var = torch.zeros(large.channels), torch.ones(large.channels)
    y, statistics, *_ = torch.ops.fused_bn.batch_norm_forward(
        x, None, None, None, running_mean, running_var, None, True, 1.0, 1e-5, "relu", 0.0, None, False
    )
    first = assert_repeats(large, y, "output")
    assert error(first.half(), xhat.clamp(min=0), xhat.abs() + 1, DEMANDED_OUTPUT) <= DEMANDED_OUTPUT
    torch.testing.assert_close(running_mean.double(), mean, rtol=0, atol=1e-6)
    torch.testing.assert_close(running_var.double(), var * n / (n - 1), rtol=2e-6, atol=0)
    del y

    grad_input, _, grad_weight, grad_bias, _ = torch.ops.fused_bn.batch_norm_backward(
        *(x, x, None, None, None, None, statistics, None, True, "relu", 0.0),
        [True, False, True, True, False],
    )
    dy = torch.where(xhat <= 0, 0, period)
    sum_dy, sum_dy_xhat = (dy * counts).sum(0), (dy * xhat * counts).sum(0)
    # n terms of one sign and unit size: relative to the sum 2e-6, as for a single output.
    torch.testing.assert_close(grad_bias.double(), sum_dy, rtol=2e-6, atol=0)
    torch.testing.assert_close(grad_weight.double(), sum_dy_xhat, rtol=2e-6, atol=0)
    first = assert_repeats(large, grad_input, "grad_input")
    expected = (dy - sum_dy / n - xhat * sum_dy_xhat / n) * invstd
    scale = invstd * (1 + dy.abs() + xhat.abs())
    assert error(first.half(), expected, scale, DEMANDED_GRAD_INPUT) <= DEMANDED_GRAD_INPUT

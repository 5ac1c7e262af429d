"""The kernels in pieces, for statistics over several processes: the same code, told what others found."""

from dataclasses import replace
from typing import Any

import pytest
import torch

from tests.cases import HAS_EXTENSION, Case, make_tensors, present, same_bits
from tests.reference import DEMANDED_MEAN, precision, reference
from tests.simt.grid import PLANS, Trial, possible_or_any, small
from tests.simt.harness import ELEMENTS, Run, kernels
from tests.simt.memory import Memory, is_written

pytestmark = pytest.mark.needs_extension


def trials() -> list[Trial]:
    """Each mapping with and without whole vectors, each exchange and dtype, every source of the mask."""
    if not HAS_EXTENSION:  # it holds the planner
        return []
    dtypes = (
        (torch.float32, torch.float32),
        (torch.bfloat16, torch.float32),
        (torch.float64, torch.float64),
        (torch.float16, torch.float16),
    )
    acts = (("relu", True), ("none", False), ("silu", True), ("leaky_relu", False))
    shapes = (
        ((4, 2, 6144), "contiguous"),
        ((3, 2, 1001), "contiguous"),
        ((37, 1030), "contiguous"),
        ((25, 5, 7, 3), "channels_last"),
        ((64, 24, 3, 3), "channels_last"),
    )
    found = []
    for i, (shape, layout) in enumerate(shapes):
        for j, plan in enumerate(PLANS):
            activation, residual = acts[(i + j) % len(acts)]
            case = Case(shape, layout, *dtypes[(i + 2 * j) % 4], activation=activation, residual=residual)
            found.append(Trial(case, possible_or_any(case, small(plan))))
    return found


TRIALS = trials()


@pytest.mark.parametrize("trial", TRIALS, ids=str)
def test_known_statistics_give_the_output_that_they_came_from(trial: Trial) -> None:
    """Bit for bit, and the mask with it; the statistics themselves are only read."""
    tensors = make_tensors(trial.case)
    first = Run(trial.case, tensors, trial.launch)
    first.forward()
    again = Run(trial.case, tensors, small(), parts=("apply", "both"))
    again.p.source = again.module.Source.given
    again.statistics.copy_(first.statistics)
    again.forward()
    assert torch.equal(again.output, first.output)
    assert torch.equal(again.statistics, first.statistics)
    assert same_bits(again.passed(), first.passed())


@pytest.mark.parametrize("trial", TRIALS, ids=str)
def test_moments(trial: Trial) -> None:
    """The moments of a process: mean and sum of squared deviations. Nothing else is written."""
    case = replace(trial.case, residual=False, activation="none", buffers=False)
    tensors = make_tensors(case)
    truth = reference(case, tensors)
    run = Run(case, tensors, trial.launch, parts=("reduce", "both"))
    run.p.moments, moments = run.memory.empty(2 * case.channels, torch.float64)
    run.p.output = run.p.statistics = 0
    run.launch_forward()
    mean, m2 = moments.split(case.channels)
    n = tensors.input.numel() // case.channels
    deviation = truth.var.sqrt()
    # Relative to a standard deviation, like the statistics' tolerance; the variance's error is twice invstd's
    assert ((mean - truth.mean).abs() <= DEMANDED_MEAN * precision(case.dtype) * deviation).all()
    torch.testing.assert_close(m2 / n, deviation.square(), rtol=4e-6 * precision(case.dtype), atol=0)


@pytest.mark.parametrize("trial", TRIALS, ids=str)
def test_backward_from_its_own_sums_is_the_whole_backward(trial: Trial) -> None:
    """Reduce and apply, each alone, give the same bits as both together."""
    case, tensors = trial.case, make_tensors(trial.case)
    launch = replace(trial.launch, forced="streamed")
    whole = Run(case, tensors, launch)
    whole.forward()
    whole.backward()

    def run(part: str, **how: Any) -> Run:
        found = Run(case, tensors, launch, parts=("both", part), **how)
        found.statistics.copy_(whole.statistics)
        if found.mask is not None:
            found.mask.copy_(present(whole.mask))
        return found

    first = run("reduce", without=("grad_input", "grad_residual"))
    first.launch_backward()
    assert is_written(first.sums)
    assert same_bits(first.grad_weight, whole.grad_weight)
    assert same_bits(first.grad_bias, whole.grad_bias)
    assert not is_written(present(first.grad_input))
    second = run("apply", without=("grad_weight", "grad_bias"))
    second.sums.copy_(first.sums)
    n = tensors.input.numel() // case.channels
    second.b.total_count, _ = second.memory.copy(torch.tensor([n], dtype=torch.float64))
    second.launch_backward()
    assert torch.equal(present(second.grad_input), present(whole.grad_input))
    assert same_bits(second.grad_residual, whole.grad_residual)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64], ids=str)
@pytest.mark.parametrize("momentum", [0.1, None])
@pytest.mark.parametrize("channels", [5, 1500], ids=["a few channels", "more channels than threads"])
def test_merge(dtype: torch.dtype, momentum: float | None, channels: int) -> None:
    """Merges four processes, one of them empty, into statistics, running statistics, count and counter."""
    parts = [torch.randn(n, channels, dtype=torch.float64) * 3 + 50 for n in (4, 0, 1, 7)]
    rows = []
    for part in parts:
        mean = part.mean(0) if len(part) else part.new_zeros(channels)
        count = part.new_full((1,), len(part))
        rows.append(torch.cat([mean, (part - mean).square().sum(0), count]))
    everything = torch.cat(parts)
    module = kernels()
    memory = Memory(module, 16)
    p = module.MergeParams()
    p.C, p.processes, p.eps = channels, len(rows), 1e-5
    p.cumulative, p.momentum = int(momentum is None), momentum or 0.0
    p.dtype = getattr(module.DType, ELEMENTS[dtype])
    p.moments, _ = memory.copy(torch.stack(rows))
    p.statistics, statistics = memory.empty(3 * channels, dtype)
    p.count, count = memory.empty(1, torch.float64)
    p.num_batches_tracked, tracked = memory.copy(torch.tensor(2))
    buffers = []
    for name in ("running_mean", "running_var"):
        vector = module.ChannelVector()
        vector.data, buffer = memory.copy(torch.full((channels,), 2.0, dtype=dtype))
        vector.stride, vector.dtype = 1, p.dtype
        setattr(p, name, vector)
        buffers.append(present(buffer))
    module.run_merge(p, seed=3)
    memory.check()
    assert count.item() == len(everything)
    assert present(tracked).item() == 3
    factor = 1 / 3 if momentum is None else momentum
    rtol = 1e-12 if dtype is torch.float64 else 1e-6
    high, low, invstd = statistics.view(3, -1).double()
    torch.testing.assert_close(high + low, everything.mean(0), rtol=1e-12, atol=0)
    torch.testing.assert_close(invstd, (everything.var(0, unbiased=False) + 1e-5).rsqrt(), rtol=rtol, atol=0)
    for buffer, new in zip(buffers, (everything.mean(0), everything.var(0)), strict=True):
        expected = (1 - factor) * 2 + factor * new
        torch.testing.assert_close(buffer.double(), expected, rtol=rtol, atol=0)


def test_merge_of_nothing_leaves_the_running_statistics_alone() -> None:
    """If all batches are empty, the counter is incremented, as in nn.BatchNorm."""
    module = kernels()
    memory = Memory(module, 16)
    p = module.MergeParams()
    p.C, p.processes, p.eps, p.momentum = 3, 2, 1e-5, 0.1
    p.dtype = module.DType.f32
    p.moments, _ = memory.copy(torch.zeros(2, 7, dtype=torch.float64))
    p.statistics, statistics = memory.empty(9, torch.float32)
    p.count, count = memory.empty(1, torch.float64)
    p.num_batches_tracked, tracked = memory.copy(torch.tensor(2))
    p.running_mean = module.ChannelVector()
    p.running_mean.data, buffer = memory.copy(torch.full((3,), 2.0))
    vector = module.ChannelVector()
    vector.data, vector.stride, vector.dtype = p.running_mean.data, 1, p.dtype
    p.running_mean = vector
    module.run_merge(p)
    memory.check()
    assert (present(buffer) == 2).all()
    assert count.item() == 0
    assert present(tracked).item() == 3
    assert statistics.isfinite().all()

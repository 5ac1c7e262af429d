"""Behaviour that only a CUDA device shows: launches, streams, several devices, addresses beyond 2^31."""

from dataclasses import replace

import pytest
import torch
from torch import Tensor

from fused_bn.functional import batch_norm
from tests.cases import Case, call_fused, make_tensors, run_fused, same_bits
from tests.cuda.launches import forced, kernels_of, last_plan, launches, no_synchronisation
from tests.reference import assert_meets_demands
from tests.sync import test_pieces

pytestmark = pytest.mark.cuda

CASES = (
    Case((64, 6, 28, 28)),
    Case((64, 16, 10, 10), "channels_last"),
    Case((32, 64, 28, 28), "channels_last", torch.bfloat16),
    Case((16, 512, 7, 7), dtype=torch.bfloat16),
    Case((3, 5, 33, 31)),
    Case((4099, 50)),
    Case((256, 2048, 7, 7), "channels_last", torch.bfloat16),
    Case((256, 512, 28, 28), "channels_last", torch.bfloat16),  # more than the chip can hold
)


@pytest.mark.parametrize("case", CASES, ids=str)
@pytest.mark.parametrize("momentum", [0.1, None])
def test_one_plan_a_direction_and_no_synchronisation(case: Case, momentum: float | None) -> None:
    """One kernel, or two if it is streamed. They include running statistics and counter."""
    case = replace(case, momentum=momentum)
    own = make_tensors(case, "cuda").require_grad()
    before = launches()
    with no_synchronisation():
        output = call_fused(case, own)
        assert launches() == before + kernels_of(last_plan())
        before = launches()
        output.backward(own.grad_output)
        assert launches() == before + kernels_of(last_plan())


@pytest.mark.parametrize("case", CASES, ids=str)
def test_the_pieces_are_one_launch_each_and_wait_for_nothing(case: Case) -> None:
    """The kernels between the two collective calls of synchronised norms."""
    merged, given = test_pieces.merge_arguments(case, "cuda"), test_pieces.elementwise_arguments(case, "cuda")
    sums = torch.ops.fused_bn.batch_norm_backward_sums
    with no_synchronisation():
        for work in (
            lambda: torch.ops.fused_bn.batch_norm_moments(merged["input"]),
            lambda: test_pieces.merge(merged),
            lambda: sums(*(given[name] for name in test_pieces.SUMS[:-1]), [True] * 3),
            lambda: test_pieces.elementwise(given),
        ):
            before = launches()
            work()
            assert launches() == before + 1


@pytest.mark.parametrize("case", CASES, ids=str)
def test_a_stream_of_its_own(case: Case) -> None:
    """The work is queued on the caller's stream, after earlier work there."""
    tensors = make_tensors(case, "cuda")
    expected = run_fused(case, tensors)
    stream = torch.cuda.Stream()
    late = tensors.clone()
    late.input.zero_()
    stream.wait_stream(torch.cuda.current_stream())
    with torch.cuda.stream(stream):
        torch.cuda._sleep(10_000_000)
        late.input.copy_(tensors.input)
        result = run_fused(case, late)
    stream.synchronize()
    for name, value in vars(expected).items():
        assert same_bits(getattr(result, name), value), name


@pytest.mark.skipif(torch.cuda.device_count() < 2, reason="one device only")
def test_a_device_that_is_not_the_current_one() -> None:
    case = CASES[0]
    with torch.cuda.device(0):
        assert_meets_demands(case, make_tensors(case, "cuda:1"))


@pytest.mark.skipif(torch.cuda.device_count() < 2, reason="one device only")
def test_devices_have_plans_of_their_own() -> None:
    """Clusters or more shared memory, once enabled on one device, must be enabled on another too."""
    for case in (Case((64, 6, 28, 28)), Case((4, 8, 112, 112))):
        for device in ("cuda:0", "cuda:1", "cuda:0"):
            assert_meets_demands(case, make_tensors(case, device))


@pytest.mark.parametrize("plan", ["streamed group=12", "resident exchange=words group=12", ""])
def test_scratch_of_queued_launches_is_nobody_elses(plan: str) -> None:
    """Memory that a call frees goes to the next call on its stream only."""
    case = Case((16, 64, 14, 14), "channels_last", torch.bfloat16, residual=True)
    tensors = make_tensors(case, "cuda")
    expected = run_fused(case, tensors)
    try:
        with forced(plan):
            result = run_fused(case, tensors)
    except ValueError as error:
        pytest.skip(str(error))
    for _ in range(40):  # more streams than torch has, so that some use their memory twice
        with torch.cuda.stream(torch.cuda.Stream()):
            for size in (1, 10_000, 30_000, 100_000):
                torch.full((size,), float("nan"), device="cuda")
    torch.testing.assert_close(result.output, expected.output)  # two plans may sum in different orders
    torch.testing.assert_close(result.grad_input, expected.grad_input)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("layout", ["contiguous", "channels_last"])
def test_views_at_any_address(layout: str, dtype: torch.dtype) -> None:
    """Without alignment, accesses of 16 bytes would be misaligned and fail."""
    case = Case((8, 24, 14, 14), layout, dtype)
    tensors = make_tensors(case, "cuda").require_grad()

    def moved(tensor: Tensor) -> Tensor:
        storage = torch.empty(tensor.numel() + 1, dtype=dtype, device="cuda")
        return storage.as_strided(tensor.shape, tensor.stride(), 1).copy_(tensor.detach())

    expected = call_fused(case, tensors)
    gradient = torch.autograd.grad(expected, tensors.input, tensors.grad_output)[0]
    grad_output = moved(tensors.grad_output)
    tensors.input = moved(tensors.input).requires_grad_()
    assert tensors.input.data_ptr() % 16 != 0
    output = call_fused(case, tensors)
    found = torch.autograd.grad(output, tensors.input, grad_output)[0]
    roundings = 2.0**-7 if dtype is torch.bfloat16 else 1e-5  # two plans may sum in different orders
    torch.testing.assert_close(output, expected, rtol=roundings, atol=roundings)
    torch.testing.assert_close(found, gradient, rtol=roundings, atol=roundings)


@pytest.mark.skipif(
    not torch.cuda.is_available() or torch.cuda.get_device_properties(0).total_memory < 24e9,
    reason="needs 20 GB of device memory",
)
def test_more_than_2_to_the_31_elements() -> None:
    """Offsets need 64 bits: elsewhere (4194305, 512) in half precision was an illegal address."""
    x = torch.empty(4_194_305, 512, dtype=torch.float16, device="cuda").normal_().requires_grad_()
    output = batch_norm(x, None, None, training=True)
    with torch.no_grad():
        total = sum(
            (chunk.double().sum(0) for chunk in x.split(1 << 18)), torch.zeros(512, device="cuda").double()
        )
        mean = total / len(x)
        squares = sum(((chunk.double() - mean).square().sum(0) for chunk in x.split(1 << 18)), 0 * mean)
        deviation = (squares / len(x)).sqrt()
        for rows in (slice(0, 64), slice(-64, None)):
            expected = (x[rows].double() - mean) / deviation
            assert (
                output[rows].double() - expected
            ).abs().max() < 2**-8  # half an ulp of values up to 8: 2^-9
    output.backward(torch.ones_like(output))
    assert x.grad is not None
    for rows in (slice(0, 64), slice(-64, None)):  # a constant gradient lies in the mean's direction
        assert x.grad[rows].abs().max() < 1e-3


def test_devices_that_do_not_match() -> None:
    """A clear error before any launch."""
    x, cpu = torch.randn(4, 3, 8, 8, device="cuda"), torch.ones(3)
    before = launches()
    for arguments in (
        {"weight": cpu},
        {"bias": cpu},
        {"running_mean": cpu, "running_var": cpu},
    ):
        buffers = {"running_mean": None, "running_var": None, **arguments}
        with pytest.raises(RuntimeError, match=r"cpu|same device"):
            batch_norm(x, training=True, **buffers)  # type: ignore[arg-type]
    with pytest.raises(RuntimeError, match=r"Int|dtype|not implemented"):
        batch_norm(torch.ones(4, 3, 8, 8, dtype=torch.int32, device="cuda"), None, None, training=True)
    assert launches() == before

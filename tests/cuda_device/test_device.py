"""The emulated device delays work and refuses calls as CUDA may."""

import ctypes
import signal
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager, nullcontext

import pytest
import torch

from tests.cuda.launches import runtime, succeed
from tests.cuda_device.environment import in_python

HOST_ADDRESS = (1 << 60) - 1
PRELUDE = "import ctypes, torch\n"
ILLEGAL_ADDRESS, STREAM_CAPTURE_UNSUPPORTED, STREAM_CAPTURE_INVALIDATED = 700, 900, 901
MERGE, UNJOINED, ISOLATION, CAPTURED_EVENT, WRONG_THREAD = 902, 904, 905, 907, 908
INVALID_VALUE, NOT_READY = 1, 600
GLOBAL, THREAD_LOCAL, RELAXED = 0, 1, 2


@contextmanager
def streams(count: int) -> Iterator[list[ctypes.c_void_p]]:
    handles = [ctypes.c_void_p() for _ in range(count)]
    for handle in handles:
        succeed(runtime().cudaStreamCreateWithFlags(ctypes.byref(handle), 1))
    try:
        yield handles
    finally:
        runtime().cudaGetLastError()
        for handle in handles:
            succeed(runtime().cudaStreamDestroy(handle))


@contextmanager
def events(count: int) -> Iterator[list[ctypes.c_void_p]]:
    handles = [ctypes.c_void_p() for _ in range(count)]
    for handle in handles:
        succeed(runtime().cudaEventCreateWithFlags(ctypes.byref(handle), 2))
    try:
        yield handles
    finally:
        for handle in handles:
            succeed(runtime().cudaEventDestroy(handle))


@contextmanager
def allocated(size: int) -> Iterator[ctypes.c_void_p]:
    memory = ctypes.c_void_p()
    succeed(runtime().cudaMalloc(ctypes.byref(memory), ctypes.c_size_t(size)))
    try:
        yield memory
    finally:
        succeed(runtime().cudaFree(memory))


def fill(memory: ctypes.c_void_p, value: int, size: int, stream: ctypes.c_void_p) -> int:
    error: int = runtime().cudaMemsetAsync(memory, value, ctypes.c_size_t(size), stream)
    return error


def bytes_at(memory: ctypes.c_void_p, size: int) -> bytes:
    """What lies there, without waiting for anything."""
    assert memory.value is not None
    return ctypes.string_at(memory.value & HOST_ADDRESS, size)


# ---- memory


def test_host_code_that_follows_a_device_pointer_crashes() -> None:
    done = in_python("-c", PRELUDE + "ctypes.string_at(torch.ones(4, device='cuda').data_ptr(), 1)")
    assert done.returncode == -signal.SIGSEGV


def test_memory_begins_as_nan_and_ends_at_a_page_that_nobody_may_touch() -> None:
    with allocated(256) as memory:
        assert bytes_at(memory, 256) == b"\xff" * 256
    allocate = "m = ctypes.c_void_p(); torch.cuda.init(); ctypes.CDLL(None).cudaMalloc(ctypes.byref(m), 256)"
    end = f"(m.value & {HOST_ADDRESS}) + 256"
    assert in_python("-c", PRELUDE + f"{allocate}; ctypes.string_at({end} - 1, 1)").returncode == 0
    assert in_python("-c", PRELUDE + f"{allocate}; ctypes.string_at({end}, 1)").returncode == -signal.SIGSEGV


def test_calls_beyond_an_allocation_are_refused() -> None:
    with streams(1) as (stream,), allocated(100) as memory:
        assert fill(memory, 0, 100, stream) == 0
        assert fill(memory, 0, 101, stream) == INVALID_VALUE
        runtime().cudaGetLastError()


# ---- streams


def test_work_that_nobody_waited_for_has_not_happened() -> None:
    with streams(2) as (stream, other), allocated(8) as memory:
        succeed(fill(memory, 1, 8, stream))
        succeed(runtime().cudaStreamSynchronize(other))
        assert bytes_at(memory, 8) == b"\xff" * 8
        succeed(runtime().cudaStreamSynchronize(stream))
        assert bytes_at(memory, 8) == b"\x01" * 8


@pytest.mark.parametrize("waits", [True, False])
def test_two_streams_at_the_same_memory(waits: bool, capfd: pytest.CaptureFixture[str]) -> None:
    """Without an event between them their order is chance, and the next call that waits raises."""
    with streams(2) as (first, second), events(1) as (event,), allocated(64) as memory:
        succeed(fill(memory, 1, 64, first))
        succeed(runtime().cudaEventRecord(event, first))
        if waits:
            succeed(runtime().cudaStreamWaitEvent(second, event, 0))
        succeed(fill(ctypes.c_void_p((memory.value or 0) + 60), 2, 4, second))
        assert runtime().cudaDeviceSynchronize() == (0 if waits else ILLEGAL_ADDRESS)
        runtime().cudaGetLastError()
    assert ("race: memset" in capfd.readouterr().err) != waits


def test_a_wait_keeps_the_record_that_it_found() -> None:
    """Later records of the event do not change what was waited for."""
    with streams(3) as (first, second, third), events(1) as (event,), allocated(8) as memory:
        succeed(fill(memory, 1, 8, first))
        succeed(runtime().cudaEventRecord(event, first))
        succeed(runtime().cudaStreamWaitEvent(second, event, 0))
        succeed(runtime().cudaEventRecord(event, third))
        succeed(runtime().cudaStreamSynchronize(second))
        assert bytes_at(memory, 8) == b"\x01" * 8


def test_whoever_asks_again_and_again_sees_an_end() -> None:
    with streams(1) as (stream,), events(1) as (event,), allocated(8) as memory:
        succeed(fill(memory, 1, 8, stream))
        succeed(runtime().cudaEventRecord(event, stream))
        answers = [runtime().cudaEventQuery(event) for _ in range(4)]
        assert answers[0] == NOT_READY
        assert answers[-1] == 0


@pytest.mark.parametrize("waits", [True, False])
def test_results_of_atens_operators_race_too(waits: bool, capfd: pytest.CaptureFixture[str]) -> None:
    x, stream = torch.ones(1000, device="cuda"), torch.cuda.Stream()
    torch.cuda.synchronize()
    y = x + 1
    if waits:
        stream.wait_stream(torch.cuda.current_stream())
    with torch.cuda.stream(stream):
        z = y * 2
    with nullcontext() if waits else pytest.raises(RuntimeError):
        stream.synchronize()
    assert ("race: aten::mul" in capfd.readouterr().err) != waits
    del z


# ---- captures


def in_thread(call: Callable[[], int], another: bool) -> int:
    if not another:
        return call()
    found: list[int] = []
    thread = threading.Thread(target=lambda: found.append(call()))
    thread.start()
    thread.join()
    return found[0]


def synchronised(mode: int) -> int:
    """The error of a call that waits, made in this capture mode of the thread."""
    own = ctypes.c_int(mode)
    succeed(runtime().cudaThreadExchangeStreamCaptureMode(ctypes.byref(own)))
    error: int = runtime().cudaDeviceSynchronize()
    succeed(runtime().cudaThreadExchangeStreamCaptureMode(ctypes.byref(own)))
    return error


@pytest.mark.parametrize("elsewhere", [False, True], ids=["this thread", "another thread"])
@pytest.mark.parametrize("thread_mode", [GLOBAL, THREAD_LOCAL, RELAXED])
@pytest.mark.parametrize("mode", [GLOBAL, THREAD_LOCAL, RELAXED])
def test_who_may_wait_while_a_stream_is_captured(mode: int, thread_mode: int, elsewhere: bool) -> None:
    """By CUDA's description of cudaStreamCaptureMode; what is refused ends the capture."""
    if RELAXED in (mode, thread_mode):
        refused = False
    elif elsewhere:
        refused = mode == thread_mode == GLOBAL
    else:
        refused = True
    graph = ctypes.c_void_p()
    with streams(1) as (stream,):
        succeed(runtime().cudaStreamBeginCapture(stream, mode))
        error = in_thread(lambda: synchronised(thread_mode), another=elsewhere)
        assert error == (STREAM_CAPTURE_UNSUPPORTED if refused else 0)
        ended = runtime().cudaStreamEndCapture(stream, ctypes.byref(graph))
        assert ended == (STREAM_CAPTURE_INVALIDATED if refused else 0)
        if not refused:
            succeed(runtime().cudaGraphDestroy(graph))


def begin(stream: ctypes.c_void_p, mode: int = THREAD_LOCAL) -> None:
    succeed(runtime().cudaStreamBeginCapture(stream, mode))


def end(stream: ctypes.c_void_p) -> int:
    graph = ctypes.c_void_p()
    error: int = runtime().cudaStreamEndCapture(stream, ctypes.byref(graph))
    if error == 0:
        succeed(runtime().cudaGraphDestroy(graph))
    runtime().cudaGetLastError()
    return error


def test_what_ends_a_capture() -> None:
    """Each error by CUDA's description of it."""
    with streams(3) as (origin, side, other), events(2) as (fork, back), allocated(8) as memory:

        def fork_to(stream: ctypes.c_void_p, event: ctypes.c_void_p) -> int:
            succeed(runtime().cudaEventRecord(event, origin))
            error: int = runtime().cudaStreamWaitEvent(stream, event, 0)
            return error

        begin(origin)
        succeed(fork_to(side, fork))
        succeed(fill(memory, 1, 8, side))
        assert runtime().cudaEventSynchronize(fork) == CAPTURED_EVENT
        succeed(runtime().cudaEventRecord(back, side))
        succeed(runtime().cudaStreamWaitEvent(origin, back, 0))
        assert end(origin) == 0

        begin(origin)
        succeed(fork_to(side, fork))
        succeed(fill(memory, 1, 8, side))
        assert end(origin) == UNJOINED

        succeed(runtime().cudaEventRecord(back, other))
        begin(origin)
        assert runtime().cudaStreamWaitEvent(origin, back, 0) == ISOLATION
        assert fill(memory, 1, 8, origin) == STREAM_CAPTURE_INVALIDATED
        assert end(origin) == STREAM_CAPTURE_INVALIDATED

        begin(origin)
        begin(other)
        assert fork_to(other, fork) == MERGE
        assert end(origin) == end(other) == STREAM_CAPTURE_INVALIDATED

        begin(origin)
        assert in_thread(lambda: end(origin), another=True) == WRONG_THREAD
        assert end(origin) == STREAM_CAPTURE_INVALIDATED


def test_the_order_within_a_capture_is_none_outside(capfd: pytest.CaptureFixture[str]) -> None:
    """A stream that joined a capture has not waited for what the other had queued before."""
    with streams(2) as (origin, side), events(2) as (fork, back), allocated(8) as memory:
        succeed(fill(memory, 1, 8, origin))
        begin(origin)
        succeed(runtime().cudaEventRecord(fork, origin))
        succeed(runtime().cudaStreamWaitEvent(side, fork, 0))
        succeed(runtime().cudaEventRecord(back, side))
        succeed(runtime().cudaStreamWaitEvent(origin, back, 0))
        assert end(origin) == 0
        succeed(fill(memory, 2, 8, side))
        assert runtime().cudaDeviceSynchronize() == ILLEGAL_ADDRESS
        runtime().cudaGetLastError()
    assert "race: memset" in capfd.readouterr().err


def test_what_a_graph_keeps_lives_until_its_replay_is_over() -> None:
    """Also where the graph is destroyed meanwhile."""
    freed: list[int] = []
    callback = ctypes.CFUNCTYPE(None, ctypes.c_void_p)(lambda _: freed.append(1))
    graph, executable, kept = ctypes.c_void_p(), ctypes.c_void_p(), ctypes.c_void_p()
    with streams(1) as (stream,), allocated(8) as memory:
        begin(stream)
        succeed(fill(memory, 1, 8, stream))
        succeed(runtime().cudaStreamEndCapture(stream, ctypes.byref(graph)))
        succeed(runtime().cudaUserObjectCreate(ctypes.byref(kept), None, callback, 1, 1))
        succeed(runtime().cudaGraphRetainUserObject(graph, kept, 1, 1))
        succeed(runtime().cudaGraphInstantiate(ctypes.byref(executable), graph, ctypes.c_ulonglong(0)))
        succeed(runtime().cudaGraphLaunch(executable, stream))
        succeed(runtime().cudaGraphDestroy(graph))
        succeed(runtime().cudaGraphExecDestroy(executable))
        assert not freed
        succeed(runtime().cudaStreamSynchronize(stream))
        assert freed == [1]
        assert bytes_at(memory, 8) == b"\x01" * 8


def test_memory_that_a_graph_reads_must_be_live() -> None:
    """A graph keeps no tensor alive: a replay after their end is reported, not run."""
    code = """
import torch
from tests.cases import *
case = Case((4, 8, 6, 6))
tensors = make_tensors(case, "cuda")
call_fused(case, tensors)
graph = torch.cuda.CUDAGraph()
with torch.cuda.graph(graph):
    output = call_fused(case, tensors)
graph.replay()
torch.cuda.synchronize()
del tensors
torch.cuda.empty_cache()
graph.replay()
torch.cuda.synchronize()
"""
    done = in_python("-c", code)
    assert done.returncode == 1
    assert "input is freed, or never allocated" in done.stderr


# ---- torch's own kernels, where those of a GPU differ from the CPU's


def test_a_norm_with_a_bias_and_no_weight_has_no_backward() -> None:
    bias = torch.ones(3, device="cuda", requires_grad=True)
    output = torch.nn.functional.batch_norm(torch.randn(4, 3, 2, device="cuda"), None, None, None, bias, True)
    with pytest.raises(RuntimeError, match="tensor does not have a device"):
        output.sum().backward()


def test_hardswish_rounds_a_sixth_to_float32() -> None:
    x = torch.full((1,), 2.0, dtype=torch.float64)
    found, exact = (torch.nn.functional.hardswish(t).item() for t in (x.cuda(), x))
    assert 1e-9 < abs(found - exact) < 2**-24 * exact


@pytest.mark.parametrize("layout", [torch.contiguous_format, torch.channels_last], ids=str)
def test_the_running_mean_of_an_infinite_channel(layout: torch.memory_format) -> None:
    x = torch.ones(2, 3, 4, 4, device="cuda").contiguous(memory_format=layout)
    x[0, 1] = torch.inf
    norm = torch.nn.BatchNorm2d(3).cuda()
    norm(x)
    assert norm.running_mean is not None
    found = norm.running_mean[1]
    assert found.isnan() if layout is torch.channels_last else found.isposinf()

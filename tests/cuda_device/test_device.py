"""The emulated device does late what a GPU may do late, and refuses what CUDA refuses."""

import ctypes
import os
import signal
import subprocess
import sys
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager

import pytest
import torch

from tests.cases import Case, call_fused, make_tensors
from tests.launches import forced, last_plan, runtime, succeed
from tests.simt.build import ROOT

HOST_ADDRESS = (1 << 60) - 1
ILLEGAL_ADDRESS, STREAM_CAPTURE_UNSUPPORTED, STREAM_CAPTURE_INVALIDATED = 700, 900, 901
INVALID_VALUE = 1
GLOBAL, THREAD_LOCAL, RELAXED = 0, 1, 2


def in_python(code: str) -> subprocess.CompletedProcess[str]:
    """What another process did, which may crash."""
    command = [sys.executable, "-c", f"import ctypes, torch\n{code}"]
    path = os.pathsep.join([os.environ["PYTHONPATH"], str(ROOT)])
    environment = {**os.environ, "PYTHONPATH": path}
    return subprocess.run(command, env=environment, capture_output=True, text=True, check=False)


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
    done = in_python("ctypes.string_at(torch.ones(4, device='cuda').data_ptr(), 1)")
    assert done.returncode == -signal.SIGSEGV


def test_memory_begins_as_nan_and_ends_at_a_page_that_nobody_may_touch() -> None:
    with allocated(256) as memory:
        assert bytes_at(memory, 256) == b"\xff" * 256
    allocate = "m = ctypes.c_void_p(); torch.cuda.init(); ctypes.CDLL(None).cudaMalloc(ctypes.byref(m), 256)"
    end = f"(m.value & {HOST_ADDRESS}) + 256"
    assert in_python(f"{allocate}; ctypes.string_at({end} - 1, 1)").returncode == 0
    assert in_python(f"{allocate}; ctypes.string_at({end}, 1)").returncode == -signal.SIGSEGV


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
    event = ctypes.c_void_p()
    succeed(runtime().cudaEventCreateWithFlags(ctypes.byref(event), 2))
    with streams(2) as (first, second), allocated(64) as memory:
        succeed(fill(memory, 1, 64, first))
        succeed(runtime().cudaEventRecord(event, first))
        if waits:
            succeed(runtime().cudaStreamWaitEvent(second, event, 0))
        succeed(fill(ctypes.c_void_p((memory.value or 0) + 60), 2, 4, second))
        assert runtime().cudaDeviceSynchronize() == (0 if waits else ILLEGAL_ADDRESS)
        runtime().cudaGetLastError()
    succeed(runtime().cudaEventDestroy(event))
    assert ("race: memset" in capfd.readouterr().err) != waits


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


def test_memory_that_a_graph_reads_must_be_live() -> None:
    """A graph keeps no tensor alive: a replay after their end is reported, not run."""
    code = """
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
    done = in_python(code)
    assert done.returncode == 1
    assert "input is freed, or never allocated" in done.stderr


# ---- limits of the device


@pytest.mark.parametrize("plan", ["resident exchange=cluster", "resident exchange=words"])
def test_a_plan_that_runs_here_is_no_plan_of_an_older_device(plan: str) -> None:
    """Its limits are the model's: this is sm_90, and sm_75 has neither clusters nor cooperative launches."""
    case = Case((64, 32, 28, 28))
    with forced(plan):
        call_fused(case, make_tensors(case, "cuda"))
        assert plan in last_plan()


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

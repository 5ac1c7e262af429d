"""What tests ask of a CUDA device: launches, plans, the nodes of a graph, streams that are not torch's."""

import ctypes
from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch

from fused_bn._extension import extension

NODE_TYPES = {0: "kernel", 1: "memcpy", 2: "memset"}


def compiled() -> Any:
    """fused_bn._C. It exists if a CUDA device is tested."""
    assert extension is not None
    return extension


def launches() -> int:
    """How many launches of our kernels this process has made."""
    count: int = compiled().cuda_launches()
    return count


def last_plan() -> str:
    text: str = compiled().cuda_last_plan()
    return text


def kernels_of(plan: str) -> int:
    return 2 if plan.startswith("streamed") else 1


@contextmanager
def forced(plan: str) -> Iterator[None]:
    """Forces this plan on every launch."""
    compiled().cuda_force_plan(plan)
    try:
        yield
    finally:
        compiled().cuda_force_plan("")


@contextmanager
def no_synchronisation() -> Iterator[None]:
    """Makes any wait of the host for the device an error."""
    torch.cuda.synchronize()
    torch.cuda.set_sync_debug_mode("error")
    try:
        yield
    finally:
        torch.cuda.set_sync_debug_mode("default")


def runtime() -> ctypes.CDLL:
    """The CUDA runtime that torch has loaded."""
    return ctypes.CDLL(None)


def succeed(error: int) -> None:
    assert error == 0, f"cudaError {error}"


def nodes(graph: torch.cuda.CUDAGraph) -> Counter[str]:
    """The number of nodes of each type in a graph captured with keep_graph."""
    raw, count = ctypes.c_void_p(graph.raw_cuda_graph()), ctypes.c_size_t()
    succeed(runtime().cudaGraphGetNodes(raw, None, ctypes.byref(count)))
    found = (ctypes.c_void_p * count.value)()
    succeed(runtime().cudaGraphGetNodes(raw, found, ctypes.byref(count)))
    types: Counter[str] = Counter()
    for node in found:
        kind = ctypes.c_int()
        succeed(runtime().cudaGraphNodeGetType(ctypes.c_void_p(node), ctypes.byref(kind)))
        types[NODE_TYPES.get(kind.value, str(kind.value))] += 1
    return types


@contextmanager
def foreign_stream() -> Iterator[torch.cuda.Stream]:
    """A stream that is not torch's. It is destroyed while its work is still queued."""
    handle, non_blocking = ctypes.c_void_p(), 1
    succeed(runtime().cudaStreamCreateWithFlags(ctypes.byref(handle), non_blocking))
    assert handle.value is not None
    try:
        yield torch.cuda.ExternalStream(handle.value)
    finally:
        succeed(runtime().cudaStreamDestroy(handle))

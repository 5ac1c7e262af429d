"""Captures calls in CUDA graphs. On the CPU, for smoke runs, a replay is the call itself."""

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Generic, TypeVar

import torch

from benchmarks.timing import without_garbage_collection

T = TypeVar("T")

WARM_UP = 3
"""Calls before a capture, as torch's notes on graphs advise: the first calls load and tune kernels."""


@contextmanager
def own_stream(device: torch.device) -> Iterator[None]:
    """A stream for captures. Forward must use it too, because autograd runs backward on its stream."""
    stream = another_stream(device)
    if stream is not None:
        torch.cuda.synchronize(device)
    with beside(stream):
        yield
    if stream is not None:
        torch.cuda.synchronize(device)


@contextmanager
def beside(stream: torch.cuda.Stream | None) -> Iterator[None]:
    """Runs the calls in the `with` block on `stream`, if there is one."""
    if stream is None:
        yield
    else:
        with torch.cuda.stream(stream):
            yield


def another_stream(device: torch.device) -> torch.cuda.Stream | None:
    return torch.cuda.Stream(device) if device.type == "cuda" else None


class Captured(Generic[T]):
    """`call` as a graph, captured on the current stream. `result` has the results of its last replay."""

    def __init__(self, call: Callable[[], T], device: torch.device, warm_up: int = WARM_UP) -> None:
        self._graph: torch.cuda.CUDAGraph | None = None
        self._call = call
        for _ in range(warm_up):
            call()
        if device.type != "cuda":
            self.result = call()
            return
        torch.cuda.synchronize(device)
        self._graph = torch.cuda.CUDAGraph()
        stream = torch.cuda.current_stream(device)
        # The garbage collector must not free a graph during a capture: that would invalidate the capture.
        with without_garbage_collection(), torch.cuda.graph(self._graph, stream=stream):
            self.result = call()

    def replay(self) -> None:
        if self._graph is None:
            self.result = self._call()
        else:
            self._graph.replay()

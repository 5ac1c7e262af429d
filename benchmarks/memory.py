"""Memory of tensors: the peak of live bytes, and what autograd keeps from forward to backward."""

import gc
import json
import os
import tempfile
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from itertools import accumulate
from pathlib import Path

import torch
from torch import Tensor, nn
from torch.profiler import ProfilerActivity, profile


def peak_bytes(work: Callable[[], object], device: torch.device) -> int:
    """The peak of live bytes of tensors that `work` allocates.

    On the CPU, memory that libraries allocate without torch's allocator is not seen. `work` must not free
    older tensors, for example gradients: the result would be too small.
    """
    gc.collect()
    if device.type == "cuda":
        torch.cuda.reset_peak_memory_stats(device)
        before = torch.cuda.memory_allocated(device)
        work()
        return torch.cuda.max_memory_allocated(device) - before
    with tempfile.TemporaryDirectory() as directory:
        trace = Path(directory) / "trace.json"
        with _quiet_stderr(), profile(activities=[ProfilerActivity.CPU], profile_memory=True) as profiler:
            work()
        profiler.export_chrome_trace(str(trace))
        events = json.loads(trace.read_text())["traceEvents"]
    changes = sorted((e["args"]["Ev Idx"], e["args"]["Bytes"]) for e in events if e["name"] == "[memory]")
    return max(accumulate(change for _, change in changes), default=0)


def kept_bytes(module: nn.Module, input: Tensor) -> int:
    """Bytes that autograd keeps from `module`'s forward for backward.

    Tensors that share a storage count once. The module's parameters and buffers do not count, because they
    live anyway. The input counts, because only backward needs it.
    """
    lives_anyway = {_address(tensor) for tensor in (*module.parameters(), *module.buffers())}
    kept: dict[int, int] = {}

    def pack(tensor: Tensor) -> Tensor:
        kept[_address(tensor)] = tensor.untyped_storage().nbytes()
        return tensor

    with torch.autograd.graph.saved_tensors_hooks(pack, lambda tensor: tensor):
        output = module(input)  # kept alive, because a new tensor could get a freed tensor's address
    del output
    return sum(size for address, size in kept.items() if address not in lives_anyway)


def _address(tensor: Tensor) -> int:
    return tensor.untyped_storage().data_ptr()


@contextmanager
def _quiet_stderr() -> Iterator[None]:
    """Silences file descriptor 2, because torch's profiler logs to it past sys.stderr."""
    saved = os.dup(2)
    try:
        with open(os.devnull, "w") as nowhere:
            os.dup2(nowhere.fileno(), 2)
        yield
    finally:
        os.dup2(saved, 2)
        os.close(saved)

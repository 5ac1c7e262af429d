"""Memory that tensors take: the most alive at once, and what autograd keeps from forward to backward."""

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
    """The most bytes of tensors, allocated by `work` itself, that are alive at once.

    What libraries allocate for themselves on the CPU, past torch's allocator, is not seen. `work` must free
    nothing that lived before, gradients for example: on CUDA that would be deducted from what it allocates,
    on the CPU where the profiler saw it allocated.
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
    """Bytes that `module`'s forward makes autograd keep for backward.

    Tensors that share a storage count once. The module's parameters and buffers live anyway and do not
    count; the input does: without backward nothing would need it.
    """
    lives_anyway = {_address(tensor) for tensor in (*module.parameters(), *module.buffers())}
    kept: dict[int, int] = {}

    def pack(tensor: Tensor) -> Tensor:
        kept[_address(tensor)] = tensor.untyped_storage().nbytes()
        return tensor

    with torch.autograd.graph.saved_tensors_hooks(pack, lambda tensor: tensor):
        output = module(input)  # held, or a freed tensor's address could be met again
    del output
    return sum(size for address, size in kept.items() if address not in lives_anyway)


def _address(tensor: Tensor) -> int:
    return tensor.untyped_storage().data_ptr()


@contextmanager
def _quiet_stderr() -> Iterator[None]:
    """Silences file descriptor 2: torch's profiler logs its start and stop there, past sys.stderr."""
    saved = os.dup(2)
    try:
        with open(os.devnull, "w") as nowhere:
            os.dup2(nowhere.fileno(), 2)
        yield
    finally:
        os.dup2(saved, 2)
        os.close(saved)

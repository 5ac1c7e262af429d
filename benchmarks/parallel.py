"""DistributedDataParallel with the benchmarks' options, for every version of torch."""

import inspect

from torch import nn
from torch.nn.parallel import DistributedDataParallel

_SYNC_BUFFERS = "forward_sync_buffers"  # its new name after torch 2.12, if there is one
_OPTION = (
    _SYNC_BUFFERS
    if _SYNC_BUFFERS in inspect.signature(DistributedDataParallel).parameters
    else "broadcast_buffers"
)


def data_parallel(model: nn.Module) -> DistributedDataParallel:
    """Averages gradients over the processes, but does not broadcast buffers.

    Synchronised norms have equal buffers in all processes. Other norms keep their own.
    """
    return DistributedDataParallel(model, **{_OPTION: False})  # type: ignore[arg-type]

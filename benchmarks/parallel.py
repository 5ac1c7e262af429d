"""DistributedDataParallel as the benchmarks use it, with every torch."""

import inspect

from torch import nn
from torch.nn.parallel import DistributedDataParallel

_SYNC_BUFFERS = "forward_sync_buffers"  # by its newer name, later than torch 2.12, where there is one
_OPTION = (
    _SYNC_BUFFERS
    if _SYNC_BUFFERS in inspect.signature(DistributedDataParallel).parameters
    else "broadcast_buffers"
)


def data_parallel(model: nn.Module) -> DistributedDataParallel:
    """Averages gradients over the processes; sends no buffers around.

    Synchronised norms hold the same ones everywhere; of others each process keeps its own.
    """
    return DistributedDataParallel(model, **{_OPTION: False})  # type: ignore[arg-type]

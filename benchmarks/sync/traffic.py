"""Counts the collective calls of processes, and the bytes that a process sends."""

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode

_MESSAGE = {"allreduce_": 0, "_allgather_base_": 1, "allgather_into_tensor_coalesced_": 1}
"""Operators of torch.ops.c10d, and the argument that this process sends."""


@dataclass
class Traffic:
    """Calls and the bytes that this process passes to them, independent of the backend."""

    calls: int = 0
    bytes: int = 0


class _Counting(TorchDispatchMode):
    def __init__(self, traffic: Traffic) -> None:
        super().__init__()
        self.traffic = traffic

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        if func.namespace == "c10d":
            name = func._schema.name.split("::")[1]
            message = args[_MESSAGE[name]]  # KeyError names an unknown collective
            tensors: list[Tensor] = [message] if isinstance(message, Tensor) else list(message)
            self.traffic.calls += 1
            self.traffic.bytes += sum(tensor.nbytes for tensor in tensors)
        return func(*args, **(kwargs or {}))


@contextmanager
def counted() -> Iterator[Traffic]:
    """Counts the collectives of this process and thread in the `with` block.

    It does not see what DistributedDataParallel exchanges from C++.
    """
    traffic = Traffic()
    with _Counting(traffic):
        yield traffic


def of_step(model: torch.nn.Module, images: Tensor) -> dict[str, Traffic]:
    """The calls of the model's own layers, in forward and backward."""
    with counted() as forward:
        output = model(images)
    with counted() as backward:
        output.sum().backward()
    model.zero_grad(set_to_none=True)
    return {"forward": forward, "backward": backward}

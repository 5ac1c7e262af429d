"""Processes of torch.distributed for tests. They start once and run one piece of work after the other."""

import tempfile
from collections.abc import Callable
from datetime import timedelta
from multiprocessing.connection import Connection
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, distributed, multiprocessing
from torch.utils._pytree import tree_map_only

from benchmarks.lenet.processes import leave

NEEDS_GLOO = [
    pytest.mark.needs_extension,
    pytest.mark.skipif(
        not distributed.is_available() or not distributed.is_gloo_available(), reason="torch has no gloo"
    ),
]

PATIENCE = 20
"""Seconds until a process stops waiting for a dead one."""


def whole(tensor: Tensor) -> Tensor:
    """A copy of a tensor that may be spread over the processes."""
    everything: Tensor = tensor.full_tensor() if hasattr(tensor, "full_tensor") else tensor
    return everything.detach().clone()


_device = torch.device("cpu")


def device() -> torch.device:
    """This process's device: the CPU, or the GPU of its rank."""
    return _device


class Processes:
    """The requested number of processes with one thread each: gloo's on the CPU, NCCL's on "cuda".

    Work is a module's top-level function. Its arguments and results are pickled; result tensors come back on
    the CPU. On "cuda" each process has its own GPU.
    """

    def __init__(self, size: int, place: str = "cpu", patience: float = PATIENCE) -> None:
        if place == "cuda" and torch.cuda.device_count() < size:
            pytest.skip(f"{size} processes need as many GPUs, torch sees {torch.cuda.device_count()}")
        context = multiprocessing.get_context("spawn")
        self._folder = tempfile.TemporaryDirectory()
        store = str(Path(self._folder.name) / "store")
        self._pipes: list[Connection] = []
        self._processes = []
        for rank in range(size):
            mine, theirs = context.Pipe()
            process = context.Process(
                target=_serve, args=(theirs, rank, size, store, place, patience), daemon=True
            )
            process.start()
            self._pipes.append(mine)
            self._processes.append(process)

    def run(self, work: Callable[..., Any], *arguments: Any) -> list[Any]:
        """The results of work(rank, *arguments) in each process. Raises if one of them raised."""
        found = self.outcomes(work, *arguments)
        errors = [each for each in found if isinstance(each, BaseException)]
        if errors:
            raise RuntimeError("\n".join(map(str, errors)))
        return found

    def outcomes(self, work: Callable[..., Any], *arguments: Any) -> list[Any]:
        """The same, with errors among the results. A process that has died gives an EOFError."""
        for pipe in self._pipes:
            pipe.send((work, arguments))
        return [_receive(pipe) for pipe in self._pipes]

    def close(self) -> None:
        for pipe in self._pipes:
            pipe.close()
        for process in self._processes:
            process.join(PATIENCE)
        self._folder.cleanup()


def _receive(pipe: Connection) -> Any:
    try:
        return pipe.recv()
    except (EOFError, ConnectionResetError) as error:
        return EOFError(str(error))


def _serve(pipe: Connection, rank: int, size: int, store: str, place: str, patience: float) -> None:
    global _device
    torch.set_num_threads(1)
    if place == "cuda":
        _device = torch.device("cuda", rank)
        torch.cuda.set_device(_device)
    distributed.init_process_group(
        "nccl" if place == "cuda" else "gloo",
        init_method=f"file://{store}",
        rank=rank,
        world_size=size,
        timeout=timedelta(seconds=patience),
    )
    while True:
        try:
            work, arguments = pipe.recv()
        except EOFError:
            break
        try:
            result = tree_map_only(Tensor, Tensor.cpu, work(rank, *arguments))
            if place == "cuda":
                torch.cuda.synchronize()
        except Exception as error:
            result = RuntimeError(f"rank {rank}: {type(error).__name__}: {error}")
        pipe.send(result)
    leave()

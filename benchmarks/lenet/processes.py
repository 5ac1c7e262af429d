"""Runs the job in several processes that torchrun started."""

import io
import os
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager, redirect_stderr, redirect_stdout
from typing import TypeVar

import torch
from torch import distributed

Answer = TypeVar("Answer")

ENVIRONMENT = ("RANK", "WORLD_SIZE", "LOCAL_RANK", "LOCAL_WORLD_SIZE", "MASTER_ADDR", "MASTER_PORT")
"""The variables that torchrun sets for each process."""

START = "torchrun --nproc-per-node 2 -m benchmarks.lenet --sync"


def started() -> bool:
    """Whether torchrun, or something that sets the same variables, started this process."""
    return distributed.is_available() and all(name in os.environ for name in ENVIRONMENT)


def count() -> int:
    """The number of processes. 1 outside of `joined`."""
    return distributed.get_world_size() if _together() else 1


def rank() -> int:
    """This process's number, from 0."""
    return distributed.get_rank() if _together() else 0


def first() -> bool:
    """Whether this process prints, evaluates and writes."""
    return rank() == 0


@contextmanager
def joined() -> Iterator[None]:
    """Connects the processes that torchrun started, and divides the machine's cores between them.

    All processes leave together, because torchrun ends the others as soon as one has failed. Does nothing if
    torchrun did not start this process.
    """
    if not started():
        yield
        return
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    torch.set_num_threads(max(1, cores // int(os.environ["LOCAL_WORLD_SIZE"])))
    distributed.init_process_group("cpu:gloo,cuda:nccl" if torch.cuda.is_available() else "gloo")
    try:
        try:
            yield
        except SystemExit:  # of all processes: they have the same arguments
            distributed.barrier()
            raise
        distributed.barrier()
    finally:
        leave()


def leave() -> None:
    """Destroys the process group and waits for its threads.

    Gloo's threads free the last work's tensors when they get Python's lock. A process that ends before aborts
    with "terminate called without an active exception". This happened in every other run of some tests.
    """
    distributed.destroy_process_group()
    time.sleep(0.1)


@contextmanager
def only_first_prints(errors: bool = False) -> Iterator[None]:
    """Only the first process prints in the `with` block. `errors` silences the others' error texts too."""
    with ExitStack() as stack:
        if not first():
            stack.enter_context(redirect_stdout(io.StringIO()))
            if errors:
                stack.enter_context(redirect_stderr(io.StringIO()))
        yield


def broadcast(ask: Callable[[], Answer]) -> Answer:
    """Calls `ask` in the first process and returns its answer, which must be picklable, in all."""
    if not _together():
        return ask()
    answers: list[Answer | None] = [ask() if first() else None]
    distributed.broadcast_object_list(answers, device=torch.device("cpu"))
    return answers[0]  # type: ignore[return-value]


def complaint(sync: bool, device: torch.device) -> str | None:
    """Why the job cannot run with this --sync and --device in these processes. None if it can."""
    if sync and not started():
        return f"--sync needs processes that torchrun starts: {START}"
    if started() and not sync:
        return f"torchrun started {count()} processes, which would all do the same: {START}, or no torchrun"
    if sync and device.type == "cuda":
        if device.index is not None:
            return "--sync gives each process a GPU of its own: --device cuda, without a number"
        if (here := int(os.environ["LOCAL_WORLD_SIZE"])) > torch.cuda.device_count():
            return f"{here} processes need as many GPUs, but torch sees {torch.cuda.device_count()}"
    return None


def own(device: torch.device) -> torch.device:
    """This process's device, if all of them got `device` as argument."""
    if device.type != "cuda" or not _together():
        return device
    found = torch.device("cuda", int(os.environ["LOCAL_RANK"]))
    torch.cuda.set_device(found)
    return found


def _together() -> bool:
    return distributed.is_available() and distributed.is_initialized()

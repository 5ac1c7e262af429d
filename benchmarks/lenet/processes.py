"""The job in several processes: who is started by torchrun, joins the others, and speaks for all."""

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
"""What torchrun tells each process that it starts."""

START = "torchrun --nproc-per-node 2 -m benchmarks.lenet --sync"


def started() -> bool:
    """Whether torchrun, or something that tells as much, started this process."""
    return distributed.is_available() and all(name in os.environ for name in ENVIRONMENT)


def count() -> int:
    """How many processes work together; 1 outside of `joined`."""
    return distributed.get_world_size() if _together() else 1


def rank() -> int:
    """Which of them this is, from 0."""
    return distributed.get_rank() if _together() else 0


def first() -> bool:
    """Whether this is the one that prints, evaluates and writes."""
    return rank() == 0


@contextmanager
def joined() -> Iterator[None]:
    """Within, the processes that torchrun started can reach each other, and share the machine's cores.

    All leave together: torchrun ends the others as soon as one has failed, whatever they have yet to say.
    Does nothing where torchrun did not start this process.
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
    """Ends the process group, and lets its threads end.

    Gloo's drop the tensors of their last work when they get Python's lock. A process that ends before that
    aborts: "terminate called without an active exception", in every other run of some tests.
    """
    distributed.destroy_process_group()
    time.sleep(0.1)


@contextmanager
def one_voice(errors: bool = False) -> Iterator[None]:
    """Within, only the first process prints; with `errors`, that holds for error texts too."""
    with ExitStack() as stack:
        if not first():
            stack.enter_context(redirect_stdout(io.StringIO()))
            if errors:
                stack.enter_context(redirect_stderr(io.StringIO()))
        yield


def told(ask: Callable[[], Answer]) -> Answer:
    """What `ask` returns in the first process, which alone calls it; the answer must be picklable."""
    if not _together():
        return ask()
    answers: list[Answer | None] = [ask() if first() else None]
    distributed.broadcast_object_list(answers, device=torch.device("cpu"))
    return answers[0]  # type: ignore[return-value]


def complaint(sync: bool, device: torch.device) -> str | None:
    """Why the job cannot run with this --sync and --device in the processes there are; None where it can."""
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
    """This process's device where all of them were told `device`."""
    if device.type != "cuda" or not _together():
        return device
    found = torch.device("cuda", int(os.environ["LOCAL_RANK"]))
    torch.cuda.set_device(found)
    return found


def _together() -> bool:
    return distributed.is_available() and distributed.is_initialized()

"""The emulated NCCL: every collective that it has, on messages longer than what it sends at a time."""

from collections.abc import Iterator

import pytest
import torch
from torch import Tensor, distributed

from tests.sync.processes import Processes, device

COUNT = 400_000
"""Of float32: 1.6 MB, where a piece has 1 MiB."""


@pytest.fixture(scope="module")
def two() -> Iterator[Processes]:
    processes = Processes(2, "cuda")
    yield processes
    processes.close()


def values(rank: int) -> Tensor:
    return torch.arange(COUNT, dtype=torch.float32).remainder(1000) * (1 + rank)


def collectives(rank: int) -> dict[str, Tensor]:
    mine = values(rank).to(device())
    found = {}
    for name in ("SUM", "AVG", "MIN", "MAX"):
        found[name] = mine.clone()
        distributed.all_reduce(found[name], getattr(distributed.ReduceOp, name))
    found["broadcast"] = mine.clone()
    distributed.broadcast(found["broadcast"], 1)
    found["gathered"] = mine.new_empty(2 * COUNT)
    distributed.all_gather_into_tensor(found["gathered"], mine)
    found["scattered"] = mine.new_empty(COUNT // 2)
    distributed.reduce_scatter_tensor(found["scattered"], mine)
    return found


def test_collectives(two: Processes) -> None:
    first, second = values(0), values(1)
    expected = {
        "SUM": first + second,
        "AVG": (first + second) / 2,
        "MIN": first,
        "MAX": second,
        "broadcast": second,
        "gathered": torch.cat([first, second]),
    }
    for rank, found in enumerate(two.run(collectives)):
        scattered = (first + second).chunk(2)[rank]
        for name, value in {**expected, "scattered": scattered}.items():
            assert torch.equal(found[name], value), name


def on_two_streams(rank: int) -> list[Tensor]:
    """Each process waits for another stream first."""
    streams = [torch.cuda.Stream(), torch.cuda.Stream()]
    found = [torch.full((1000,), 10.0 * i + rank, device=device()) for i in range(2)]
    for stream, tensor in zip(streams, found, strict=True):
        stream.wait_stream(torch.cuda.current_stream())
        with torch.cuda.stream(stream):
            distributed.all_reduce(tensor)
    streams[rank].synchronize()
    streams[1 - rank].synchronize()
    return found


def test_collectives_run_in_the_order_of_their_calls(two: Processes) -> None:
    """Whatever their streams. A process with another order would add other tensors up."""
    for found in two.run(on_two_streams):
        assert [each.unique().tolist() for each in found] == [[1.0], [21.0]]


def unsupported(_: int) -> str:
    try:
        distributed.all_reduce(torch.ones(3, device=device()), distributed.ReduceOp.PRODUCT)
    except RuntimeError as error:
        return type(error).__name__
    return ""


def test_what_is_not_emulated_is_refused(two: Processes) -> None:
    assert two.run(unsupported) == ["DistBackendError"] * 2

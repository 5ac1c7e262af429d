"""Training models with synchronised norms by all methods, and processes that fail."""

import os
import time
from collections.abc import Iterator
from itertools import pairwise
from typing import Any

import pytest
import torch
from torch import Tensor, distributed, nn
from torch.utils.checkpoint import checkpoint

import fused_bn
from tests.cases import DEVICES
from tests.sync.processes import NEEDS_GLOO, Processes, device, whole

pytestmark = NEEDS_GLOO


@pytest.fixture(scope="module", params=DEVICES)
def two(request: pytest.FixtureRequest) -> Iterator[Processes]:
    processes = Processes(2, request.param)
    yield processes
    processes.close()


class Net(nn.Module):
    def __init__(self, norm: type[nn.Module], checkpointed: bool = False) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.conv1, self.norm1 = nn.Conv2d(3, 4, 3), norm(4)
        self.conv2, self.norm2 = nn.Conv2d(4, 4, 3, padding=1), norm(4)
        self.checkpointed = checkpointed

    def block(self, x: Tensor) -> Tensor:
        return torch.relu(self.norm2(self.conv2(x)) + x)

    def forward(self, x: Tensor) -> Tensor:
        x = torch.relu(self.norm1(self.conv1(x)))
        return checkpoint(self.block, x, use_reentrant=False) if self.checkpointed else self.block(x)


IMAGES = 6
OPTIONS: dict[str, dict[str, Any]] = {
    "no wrapper": {},
    "DDP": {"ddp": {}},
    "DDP, buffers not broadcast": {"ddp": {"broadcast_buffers": False}},
    "DDP, static graph": {"ddp": {"static_graph": True}},
    "DDP, two forwards": {"ddp": {"broadcast_buffers": False}, "forwards": 2},
    "DDP, two forwards, buffers broadcast": {"ddp": {}, "forwards": 2},
    "FSDP2": {"fsdp": True},
    "compiled": {"compiled": True},
    "compiled DDP": {"compiled": True, "ddp": {}},
    "checkpointed": {"checkpointed": True},
    "fused": {"fused": True},
    "fused DDP": {"fused": True, "ddp": {}},
}


def batch_of(number: int) -> Tensor:
    generator = torch.Generator().manual_seed(number)
    return torch.randn(IMAGES, 3, 6, 6, dtype=torch.float64, generator=generator).to(device())


def trained(rank: int, cuts: tuple[int, ...] | None, options: dict[str, Any]) -> dict[str, Tensor]:
    """Two steps of SGD. Each process takes its part of the batch, or without `cuts` all of it, alone."""
    model: Any = Net(nn.BatchNorm2d, options.get("checkpointed", False)).double().to(device())
    parts = list(pairwise((0, *(cuts or ()), IMAGES)))
    begin, end = (0, IMAGES) if cuts is None else parts[rank]
    if cuts is not None:
        if options.get("fused"):
            model = fused_bn.fuse(model)
        model = fused_bn.convert_sync_batchnorm(model)
        if options.get("fsdp"):
            from torch.distributed.device_mesh import init_device_mesh
            from torch.distributed.fsdp import fully_shard

            mesh = init_device_mesh(device().type, (distributed.get_world_size(),))
            for layer in (model.norm1, model.norm2):
                fully_shard(layer, mesh=mesh)
            fully_shard(model, mesh=mesh)
        if "ddp" in options:
            model = nn.parallel.DistributedDataParallel(model, **options["ddp"])
        if options.get("compiled"):
            torch._dynamo.reset()
            model = torch.compile(model, backend="aot_eager", fullgraph="ddp" not in options)
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    averages = "ddp" in options or "fsdp" in options
    scale = distributed.get_world_size() if cuts is not None and averages else 1
    for number in range(2):
        optimizer.zero_grad()
        outputs = [model(batch_of(10 * number + i)[begin:end]) for i in range(options.get("forwards", 1))]
        loss = sum(output.square().sum() for output in outputs)
        (loss * (scale / IMAGES)).backward()
        if cuts is not None and not averages:
            for parameter in model.parameters():
                distributed.all_reduce(parameter.grad)
        optimizer.step()
    found = {name: whole(each) for name, each in model.state_dict().items()}
    return {name.replace("_orig_mod.", "").removeprefix("module."): each for name, each in found.items()}


@pytest.mark.parametrize("name", OPTIONS)
def test_training_in_two_processes_is_training_in_one(name: str, two: Processes) -> None:
    """Parameters and running statistics after two steps, with half of the batch each, or 2 and 4 images."""
    options = OPTIONS[name]
    for cuts in ((3,), (2,)):
        expected = trained(0, None, options)
        for found in two.run(trained, cuts, options):
            assert found.keys() == expected.keys()
            for key, value in expected.items():
                torch.testing.assert_close(found[key], value, rtol=0, atol=1e-11, msg=key)


def leaves(rank: int, way: str) -> str:
    torch.manual_seed(0)
    model = fused_bn.convert_sync_batchnorm(Net(nn.BatchNorm2d))
    x = torch.randn(4, 3, 6, 6)
    y = model(x)
    if rank == 1:
        if way == "dies":
            os._exit(3)
        time.sleep(8)  # longer than the others wait
        return "slept"
    try:
        y.square().sum().backward()
    except RuntimeError as error:
        return str(error)
    return "nothing was raised"


@pytest.mark.parametrize("way", ["dies", "hangs"])
def test_a_process_that_is_gone_is_an_error_that_names_the_layer(way: str) -> None:
    """No process waits for ever: the group's timeout, 3 s here, ends it.

    Only on the CPU, because NCCL's watchdog ends the process instead of raising an error.
    """
    processes = Processes(2, patience=3)
    start = time.monotonic()
    first, _ = processes.outcomes(leaves, way)
    assert time.monotonic() - start < 30
    processes.close()
    assert "norm2: the 2 processes of its group could not exchange their batch statistics" in str(first)

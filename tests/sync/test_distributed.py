"""Two processes: DistributedDataParallel and FSDP work with our modules as with nn.BatchNorm2d."""

from collections.abc import Callable, Iterator
from typing import Any

import pytest
import torch
from torch import Tensor, nn

import fused_bn
from fused_bn.fusion import recompute
from tests.cases import DEVICES
from tests.modules.test_module import OUTPUT_TOLERANCE, PARAMETER_TOLERANCE
from tests.sync.processes import NEEDS_GLOO, Processes, device, whole
from tests.twins import Original

pytestmark = NEEDS_GLOO

PROCESSES = 2
WAYS = ("ddp", "fsdp")


class Block(nn.Module):
    """A small residual block, with one of our modules or the original in each place."""

    def __init__(self, make: Callable[[str], nn.Module]) -> None:
        super().__init__()
        self.stem = nn.Conv2d(3, 6, 3)
        self.first = make("relu")
        self.conv = nn.Conv2d(6, 6, 3, padding=1)
        self.second = make("silu")

    def forward(self, input: Tensor) -> Tensor:
        x = self.first(self.stem(input))
        output: Tensor = self.second(self.conv(x), x)
        return output


class Written(nn.Module):
    """The same block as a model for fuse()."""

    def __init__(self) -> None:
        super().__init__()
        self.stem = nn.Conv2d(3, 6, 3)
        self.first = nn.BatchNorm2d(6)
        self.conv = nn.Conv2d(6, 6, 3, padding=1)
        self.second = nn.BatchNorm2d(6)

    def forward(self, input: Tensor) -> Tensor:
        x = torch.relu(self.first(self.stem(input)))
        return torch.nn.functional.silu(self.second(self.conv(x)) + x)


def ours(activation: Any) -> nn.Module:
    return fused_bn.BatchNorm2d(6, activation=activation)


def theirs(activation: str) -> nn.Module:
    return Original(nn.BatchNorm2d(6), activation)


def in_parallel(model: nn.Module, way: str) -> nn.Module:
    if way == "ddp":
        return nn.parallel.DistributedDataParallel(model)
    if way == "fsdp1":
        from torch.distributed.fsdp import FullyShardedDataParallel as Sharded

        options: dict[str, Any] = {"device_id": device(), "use_orig_params": True}
        model[0] = Sharded(model[0], **options)  # type: ignore[operator, index]
        return Sharded(model, **options)
    from torch.distributed.device_mesh import init_device_mesh
    from torch.distributed.fsdp import fully_shard

    mesh = init_device_mesh(device().type, (PROCESSES,))
    for layer in (model[0],) if isinstance(model, nn.Sequential) else (model.first, model.second):
        fully_shard(layer, mesh=mesh)  # type: ignore[arg-type]
    fully_shard(model, mesh=mesh)
    return model


def block_of(make: Callable[[str], nn.Module]) -> Callable[[], nn.Module]:
    return lambda: Block(make)


def fused() -> nn.Module:
    """A model whose norm outputs are recomputed in backward."""
    recompute.WORTH_BYTES = 1
    return fused_bn.fuse(Written(), recompute=True)


MODELS = (block_of(ours), fused, block_of(theirs))
"""The last model is the original."""


def of_units() -> nn.Module:
    """The convolution keeps the output of another unit's norm. That norm's weight is freed by then."""
    return nn.Sequential(nn.Sequential(nn.Conv2d(3, 6, 3), nn.BatchNorm2d(6), nn.ReLU()), nn.Conv2d(6, 3, 3))


def fused_units() -> nn.Module:
    recompute.WORTH_BYTES = 1
    return fused_bn.fuse(of_units(), recompute=True)


def train(make: Callable[[], nn.Module], way: str, rank: int) -> list[Tensor]:
    """Two steps on this process' data. Returns output, parameters and statistics."""
    torch.manual_seed(0)
    model = in_parallel(make().to(device()), way)
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    generator = torch.Generator().manual_seed(rank)
    for _ in range(2):
        optimizer.zero_grad()
        output = model(torch.randn(4, 3, 8, 8, generator=generator).to(device()))
        output.square().mean().backward()
        optimizer.step()
    parameters = [whole(parameter) for parameter in model.parameters()]
    return [output.detach(), *parameters, *(buffer.clone() for buffer in model.buffers())]


def bump_and_train(shared: nn.Module) -> None:
    with torch.no_grad():
        for value in shared.state_dict().values():
            value.add_(1)
    shared(torch.randn(4, 6, 3, 3, generator=torch.Generator().manual_seed(3)))


def process(rank: int, shared: nn.Module) -> dict[str, list[list[Tensor]]]:
    """All work of these tests in the other processes."""
    found = {way: [train(make, way, rank) for make in MODELS] for way in WAYS}
    for way in ("fsdp", "fsdp1"):
        found[f"units, {way}"] = [train(make, way, rank) for make in (fused_units, of_units)]
    if rank == 0:
        bump_and_train(shared)
    return found


def new_norm() -> nn.Module:
    return fused_bn.BatchNorm2d(6, activation="relu", momentum=None)


@pytest.fixture(scope="module", params=DEVICES)
def ran(request: pytest.FixtureRequest) -> Iterator[tuple[list[Any], nn.Module]]:
    """Each process' results, and the module in shared memory that the first process changed."""
    processes, shared = Processes(PROCESSES, request.param), new_norm().share_memory()
    yield processes.run(process, shared), shared
    processes.close()


@pytest.mark.parametrize("way", WAYS)
def test_steps_in_two_processes_are_those_of_the_original(way: str, ran: tuple[list[Any], nn.Module]) -> None:
    """Parameters are averaged or sharded. Processes keep their statistics; DDP broadcasts the first's."""
    results = [found[way] for found in ran[0]]
    for *mine, other in results:
        for each in mine:
            for one, two in zip(each, other, strict=True):
                # The second output follows a step of rate 0.1, which adds a tenth of the gradients'
                # tolerance.
                tolerance = OUTPUT_TOLERANCE + 0.1 * PARAMETER_TOLERANCE
                torch.testing.assert_close(one, two, rtol=0, atol=tolerance)
    count = len(list(Block(ours).parameters()))
    (first, *_), (second, *_) = results
    assert all(map(torch.equal, first[1 : 1 + count], second[1 : 1 + count]))
    assert not torch.equal(first[0], second[0])
    assert first[-1] == second[-1] == 2


@pytest.mark.parametrize("way", ["fsdp", "fsdp1"])
def test_a_norm_may_feed_a_convolution_of_another_sharded_unit(
    way: str, ran: tuple[list[Any], nn.Module]
) -> None:
    """Recomputing the norm's output must not read its weight, which FSDP has freed. That crashed."""
    for mine, other in (found[f"units, {way}"] for found in ran[0]):
        for one, two in zip(mine, other, strict=True):
            tolerance = OUTPUT_TOLERANCE + 0.1 * PARAMETER_TOLERANCE
            torch.testing.assert_close(one, two, rtol=0, atol=tolerance)


def test_share_memory_shares_parameters_and_statistics(ran: tuple[list[Any], nn.Module]) -> None:
    """This process sees a training step's writes of another process, as Hogwild needs."""
    shared, expected = ran[1], new_norm()
    bump_and_train(expected)
    assert all(map(torch.equal, shared.state_dict().values(), expected.state_dict().values()))
    assert shared.get_buffer("num_batches_tracked") == 2

"""What synchronised norms should cost on many GPUs: a model on paper, not a measurement.

A layer makes two collective calls a step, and both stand in the step's way: nothing of the model can run
meanwhile. Forward gathers 2C + 1 float64 from all processes, backward adds up 2C float64. A call goes within
every node and between the nodes, where GPUs of the same place in their nodes talk, each by its own port. Left
out: who comes late, other traffic, and the merging of what was gathered.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import nn

from benchmarks.resnet.model import ResNet50

FLOAT64 = 8
GPUS = (8, 64, 1024, 16384)
STEP_SECONDS = 0.050
"""An assumption: a training step of ResNet-50 on one GPU."""
SHARE = 0.10
"""Of a step; more is no longer called scaling."""


@dataclass(frozen=True)
class Network:
    """Figures of a cluster: by default nodes of 8 GPUs behind NVSwitch, a 400 Gb/s InfiniBand port for each.

    Round figures of such hardware, not measured; the latencies are those of small collectives over NCCL.
    """

    node: int = 8  # GPUs
    node_latency: float = 10e-6  # seconds of a call within a node, with its launch
    node_bandwidth: float = 400e9  # bytes/s into a GPU from the others of its node
    hop_latency: float = 5e-6  # seconds from node to node
    port_bandwidth: float = 50e9  # bytes/s into a node, for each of its GPUs


@dataclass(frozen=True)
class Cost:
    """Of all norms, a training step: seconds, and bytes that a GPU receives."""

    gpus: int
    calls: int
    latency: float  # by recursive doubling between the nodes: log2(nodes) hops
    ring_latency: float  # by rings: one hop for each other node, and in an all-reduce another
    received: int
    transfer: float

    @property
    def seconds(self) -> float:
        """Latency by recursive doubling, and transfer."""
        return self.latency + self.transfer


def resnet50_channels() -> list[int]:
    """Of its 53 norms."""
    with torch.device("meta"):
        model = ResNet50()
    return [module.num_features for module in model.modules() if isinstance(module, nn.BatchNorm2d)]


def cost(channels: Sequence[int], gpus: int, network: Network = Network()) -> Cost:
    """Of norms with so many channels, synchronised over `gpus` GPUs in full nodes, or in one."""
    if gpus == 1:
        return Cost(1, 0, 0.0, 0.0, 0, 0.0)
    nodes = math.ceil(gpus / network.node)
    into_node = network.port_bandwidth * network.node
    layers = len(channels)
    moments = FLOAT64 * sum(2 * count + 1 for count in channels)
    sums = FLOAT64 * sum(2 * count for count in channels)
    between = moments * max(0, gpus - network.node) + 2 * sums * (nodes > 1)
    # By its own port a GPU already has the messages of one GPU of every node.
    within = moments * (gpus - nodes) + 2 * sums
    inside = 2 * layers * network.node_latency
    return Cost(
        gpus,
        2 * layers,
        inside + 2 * layers * network.hop_latency * math.ceil(math.log2(nodes)),
        inside + 3 * layers * network.hop_latency * (nodes - 1),
        moments * (gpus - 1) + 2 * sums,
        between / into_node + within / network.node_bandwidth,
    )


def largest_group(
    channels: Sequence[int],
    network: Network = Network(),
    step: float = STEP_SECONDS,
    share: float = SHARE,
) -> int:
    """How many GPUs, a power of two, can be synchronised within that share of a step; 1 where none can."""
    gpus = 1
    while gpus < 2**30 and cost(channels, 2 * gpus, network).seconds <= share * step:
        gpus *= 2
    return gpus


HEADINGS = ("GPUs", "latency, ms", "by rings, ms", "received, MB", "transfer, ms", "a step, ms", "of 50 ms")


def rows(network: Network = Network(), gpus: Sequence[int] = GPUS) -> list[tuple[str, ...]]:
    """The table for ResNet-50, a row a number of GPUs, columns as HEADINGS says."""
    channels = resnet50_channels()
    return [_row(cost(channels, count, network)) for count in gpus]


def _row(cost: Cost) -> tuple[str, ...]:
    return (
        f"{cost.gpus:,}",
        f"{1e3 * cost.latency:.2f}",
        f"{1e3 * cost.ring_latency:,.2f}",
        f"{cost.received / 1e6:,.1f}",
        f"{1e3 * cost.transfer:.2f}",
        f"{1e3 * cost.seconds:.2f}",
        f"{cost.seconds / STEP_SECONDS:.1%}",
    )


def markdown() -> str:
    """The same as docs/distributed.md has it."""
    lines = [HEADINGS, ("---:",) * len(HEADINGS), *rows()]
    return "\n".join(f"| {' | '.join(cells)} |" for cells in lines)

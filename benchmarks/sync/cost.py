"""What synchronised norms should cost on many GPUs: a model, not a measurement.

A layer makes two collective calls per step, and nothing else of the model can run meanwhile. Forward gathers
2C + 1 float64 from all processes, backward adds up 2C float64 (fused_bn/sync/exchange.py). A call works
within every node and between nodes. GPUs with the same place in their nodes exchange data, each through its
own port. The model leaves out late processes, other traffic, and the merging of gathered data.
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
"""The share of a step that still counts as scaling."""


@dataclass(frozen=True)
class Network:
    """A cluster: by default nodes of 8 GPUs behind NVSwitch, with a 400 Gb/s InfiniBand port for each GPU.

    The figures are rounded and not measured. Latencies are those of small collectives over NCCL.
    """

    node: int = 8  # GPUs
    node_latency: float = 10e-6  # seconds of a call within a node, with its launch
    node_bandwidth: float = 400e9  # bytes/s into a GPU from the others of its node
    hop_latency: float = 5e-6  # seconds from node to node
    port_bandwidth: float = 50e9  # bytes/s into a node, for each of its GPUs


@dataclass(frozen=True)
class Cost:
    """The cost of all norms in a training step: seconds, and bytes that a GPU receives."""

    gpus: int
    calls: int
    latency: float  # by recursive doubling between the nodes: log2(nodes) hops
    ring_latency: float  # by rings: one hop for each other node; an all-reduce has a second ring
    received: int
    transfer: float

    @property
    def seconds(self) -> float:
        """Seconds of latency, by recursive doubling, and of transfer."""
        return self.latency + self.transfer


def resnet50_channels() -> list[int]:
    """The channels of its 53 norms."""
    with torch.device("meta"):
        model = ResNet50()
    return [module.num_features for module in model.modules() if isinstance(module, nn.BatchNorm2d)]


def cost(channels: Sequence[int], gpus: int, network: Network = Network()) -> Cost:
    """The cost of norms with these channels over `gpus` GPUs, in full nodes or in one node."""
    if gpus == 1:
        return Cost(1, 0, 0.0, 0.0, 0, 0.0)
    nodes = math.ceil(gpus / network.node)
    into_node = network.port_bandwidth * network.node
    layers = len(channels)
    moments = FLOAT64 * sum(2 * count + 1 for count in channels)
    sums = FLOAT64 * sum(2 * count for count in channels)
    between = moments * max(0, gpus - network.node) + 2 * sums * (nodes > 1)
    # A GPU's own port has already brought the messages of one GPU of every node.
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
    """The largest power of two of GPUs that stay within that share of a step. 1 if none do."""
    gpus = 1
    while gpus < 2**30 and cost(channels, 2 * gpus, network).seconds <= share * step:
        gpus *= 2
    return gpus


HEADINGS = ("GPUs", "latency, ms", "by rings, ms", "received, MB", "transfer, ms", "a step, ms", "of 50 ms")


def rows(network: Network = Network(), gpus: Sequence[int] = GPUS) -> list[tuple[str, ...]]:
    """The table for ResNet-50, one row per number of GPUs, with the columns HEADINGS."""
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
    """The table as in docs/distributed.md."""
    lines = [HEADINGS, ("---:",) * len(HEADINGS), *rows()]
    return "\n".join(f"| {' | '.join(cells)} |" for cells in lines)

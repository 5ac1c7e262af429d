"""The modelled cost of synchronised norms: one layer by hand, and limits."""

import pytest
import torch

import fused_bn
from benchmarks.resnet.model import ResNet50
from benchmarks.sync import cost, job
from benchmarks.sync.cost import Network

NETWORK = Network(
    node=4, node_latency=1e-3, node_bandwidth=1e6, hop_latency=1e-4, port_bandwidth=1e5
)  # makes every term visible


def test_channels_are_those_of_resnet_50() -> None:
    """Checks the published number of its norms' parameters, 53,120."""
    channels = cost.resnet50_channels()
    assert len(channels) == 53
    assert 2 * sum(channels) == 53_120


def test_one_layer_by_hand() -> None:
    """10 channels on 16 GPUs in 4 nodes of 4: messages of 21 and of 20 float64."""
    found = cost.cost([10], 16, NETWORK)
    assert found.calls == 2
    assert found.latency == pytest.approx(2 * (1e-3 + 2 * 1e-4))
    assert found.ring_latency == pytest.approx(2 * 1e-3 + (1 + 2) * 3 * 1e-4)
    assert found.received == 15 * 168 + 2 * 160
    # Through its 4 ports a node gets 12 GPUs' messages. Within it a GPU gets what the other 3 of 4 ports
    # brought.
    between, within = 12 * 168 + 2 * 160, 12 * 168 + 2 * 160
    assert found.transfer == pytest.approx(between / 4e5 + within / 1e6)
    assert found.seconds == found.latency + found.transfer


def test_one_node_and_one_gpu() -> None:
    """Nothing leaves a node that has all GPUs. A single GPU sends nothing."""
    alone, node = cost.cost([10], 1, NETWORK), cost.cost([10], 4, NETWORK)
    assert (alone.calls, alone.seconds, alone.received) == (0, 0, 0)
    assert node.latency == node.ring_latency == 2e-3
    assert node.transfer == pytest.approx((3 * 168 + 2 * 160) / 1e6)


def test_largest_group_is_the_last_within_the_share() -> None:
    channels = cost.resnet50_channels()
    group = cost.largest_group(channels, step=0.05, share=0.1)
    assert cost.cost(channels, group).seconds <= 0.005 < cost.cost(channels, 2 * group).seconds
    assert cost.largest_group(channels, step=1e-6) == 1
    assert cost.largest_group(channels, Network(hop_latency=0), step=0.05) > group


def test_messages_are_those_that_are_sent(monkeypatch: pytest.MonkeyPatch) -> None:
    """The model counts what the layers send: 2C + 1 float64 forward, 2C backward."""
    from fused_bn.sync import exchange

    sent: list[int] = []

    def one(message: torch.Tensor, _: object) -> torch.Tensor:
        sent.append(message.nbytes)
        return message

    def gathered(message: torch.Tensor, _: object) -> torch.Tensor:
        return one(message, None).view(1, -1)

    monkeypatch.setattr(exchange, "group_of", lambda group: group)
    monkeypatch.setattr(exchange, "_gather", gathered)
    monkeypatch.setattr(exchange, "_add_up", one)
    norm = fused_bn.SyncBatchNorm(10, process_group="a stand-in")
    norm(torch.randn(2, 10, 3, 3, requires_grad=True)).sum().backward()
    assert sent == [168, 160]


def test_printed_table_says_what_it_is(capsys: pytest.CaptureFixture[str]) -> None:
    assert job.main(["--model"]) == 0
    printed = capsys.readouterr().out
    assert "A model, not a measurement" in printed
    for row in cost.rows():
        assert row[0] in printed
    assert "up to 256 GPUs in a group" in printed


def test_markdown_has_a_row_for_each_number_of_gpus() -> None:
    lines = cost.markdown().splitlines()
    assert len(lines) == 2 + len(cost.GPUS)
    assert len({line.count("|") for line in lines}) == 1
    assert sum(isinstance(module, torch.nn.BatchNorm2d) for module in ResNet50().modules()) == 53

"""The figures of docs/distributed.md: measured ones, and today's model of many GPUs."""

from collections.abc import Iterator

from benchmarks.sync import cost
from benchmarks.sync.job import REQUIRED
from tests.docs.pages import measured, table, text, unwrapped

PAGE = "docs/distributed.md"
LAYOUTS = {"contiguous": "sync.json", "channels_last": "sync_channels_last.json"}


def test_the_table_of_the_model() -> None:
    """A changed figure would leave an outdated table on the page."""
    assert cost.markdown() in text(PAGE)


def test_the_figures_behind_the_model() -> None:
    network, channels = cost.Network(), cost.resnet50_channels()
    node = cost.cost(channels, network.node)
    for figure in (
        f"nodes of {network.node} GPUs, {1e6 * network.node_latency:g} us a call and "
        f"{network.node_bandwidth / 1e9:g} GB/s within a node",
        f"{1e6 * network.hop_latency:g} us a hop and "
        f"{network.port_bandwidth / 1e9:g} GB/s a GPU between nodes",
        f"steps of {1e3 * cost.STEP_SECONDS:g} ms",
        f"{100 * cost.SHARE:g} % of a step in groups of up to {cost.largest_group(channels)} GPUs",
        f"for {100 * node.seconds / cost.STEP_SECONDS:.1f} % of a step",
    ):
        assert figure in unwrapped(PAGE), figure


def rows() -> Iterator[list[str]]:
    for layout, name in LAYOUTS.items():
        for row in measured(name)["rows"]:
            exchanged = row["forward"], row["backward"]
            yield [
                *(row["row"], layout, f"{row['step_ms']:,.0f}", f"{row['images_per_second']:.1f}"),
                *(f"{row['speedup']:.2f}", f"{row['of_local']:.2f}"),
                " + ".join(str(each["calls"] // row["norms"]) for each in exchanged),
                " + ".join(f"{each['bytes'] / row['norms']:,.0f}" for each in exchanged),
            ]


def test_the_table_of_what_was_measured() -> None:
    """Checks the table, and that synchronised norms are as fast as required."""
    headings = (
        "norms | layout | a step, ms | images/s | speedup | of own statistics' time | calls a norm | "
        "bytes a norm"
    )
    assert table(headings, rows(), left=2) in text(PAGE)
    beside_lean = []
    for layout, name in LAYOUTS.items():
        found = measured(name)
        assert found["arguments"]["layout"] == layout
        device, torch, day = (found["environment"][key] for key in ("device", "torch", "date"))
        conditions = f"{device} (Zen 5), 2 cores, torch {torch.split('+')[0]}, {day[:10]}"
        assert f"{conditions}, {found['arguments']['batch']} images a process" in unwrapped(PAGE)
        by_row = {row["row"]: row for row in found["rows"]}
        assert by_row["synchronised"]["speedup"] >= REQUIRED
        beside_lean.append(by_row["Python, lean"]["step_ms"] / by_row["synchronised"]["step_ms"])
    assert f"Required: at least {REQUIRED:.2f} times as fast as those" in unwrapped(PAGE)
    one, other = beside_lean
    assert f'Ours is {one:.2f} and {other:.2f} times as fast as "Python, lean"' in unwrapped(PAGE)

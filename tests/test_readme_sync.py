"""The README's table of what synchronised norms should cost is what the model says today."""

import pytest

from benchmarks.sync import cost
from tests.test_readme import measured, readme


def test_readme_shows_what_the_model_gives() -> None:
    """A changed figure would leave a table behind that nobody can repeat."""
    assert cost.markdown() in readme()


def test_readme_names_the_figures_behind_it() -> None:
    network, channels = cost.Network(), cost.resnet50_channels()
    node = cost.cost(channels, network.node)
    text = " ".join(readme().split())
    for figure in (
        f"nodes of {network.node} GPUs, {1e6 * network.node_latency:g} us a call and "
        f"{network.node_bandwidth / 1e9:g} GB/s within a node",
        f"{1e6 * network.hop_latency:g} us a hop and "
        f"{network.port_bandwidth / 1e9:g} GB/s a GPU between nodes",
        f"steps of {1e3 * cost.STEP_SECONDS:g} ms",
        f"{100 * cost.SHARE:g} % of a step in groups of up to {cost.largest_group(channels)} GPUs",
        f"for {100 * node.seconds / cost.STEP_SECONDS:.1f} % of a step",
    ):
        assert figure in text, figure


@pytest.mark.parametrize("layout", ["contiguous", "channels_last"])
def test_readme_shows_what_was_measured(layout: str) -> None:
    """And that synchronised norms are as fast as required."""
    found = measured("sync.json" if layout == "contiguous" else f"sync_{layout}.json")
    assert found["arguments"]["layout"] == layout
    for row in found["rows"]:
        exchanged = row["forward"], row["backward"]
        cells = (
            *(row["row"], layout, f"{row['step_ms']:,.0f}", f"{row['images_per_second']:.1f}"),
            *(f"{row['speedup']:.2f}", f"{row['of_local']:.2f}"),
            " + ".join(str(each["calls"] // row["norms"]) for each in exchanged),
            " + ".join(f"{each['bytes'] / row['norms']:,.0f}" for each in exchanged),
        )
        assert f"| {' | '.join(cells)} |" in readme(), cells
    speedups = {row["row"]: row["speedup"] for row in found["rows"]}
    assert speedups["synchronised"] >= 1.30

"""The README's table of what synchronised norms should cost is what the model says today."""

from benchmarks.sync import cost
from tests.test_readme import readme


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

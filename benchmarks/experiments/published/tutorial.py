"""A tutorial's two networks on MNIST, with norms after an LSTM and after convolutions.

The tutorial has no data and no figures. The claim here is its statement that norms speed up training.
"""

from benchmarks.experiments import data
from benchmarks.experiments.experiment import Claim, Experiment, Length, Variant, ahead, final, first_epoch
from benchmarks.experiments.layers import Adam, Conv, Dense, Flatten, Layer, Lstm, MaxPool, Norm

_CLAIMS = (
    Claim("norm is ahead of none after one epoch", ahead("norm", "none", first_epoch), needs_full=True),
    Claim("norm ends ahead of none", ahead("norm", "none", final("test")), needs_full=True),
)


def _pair(before: list[Layer], behind: list[Layer]) -> tuple[Variant, Variant]:
    """The network with and without a norm between its parts."""
    return (
        Variant("none", "no norm", [*before, *behind], Adam()),
        Variant("norm", "with norm", [*before, Norm(), *behind], Adam()),
    )


SEQUENCE = Experiment(
    name="sequence",
    title="MNIST, a row of pixels a step: LSTM of 32, norm, dense layer",
    load=data.digit_rows,
    variants=_pair([Lstm(32)], [Dense(10)]),
    batch_size=64,
    full=Length(seeds=3, epochs=4),
    quick=Length(seeds=1, epochs=1, examples=10_000),
    claims=_CLAIMS,
    panels={"": ("none", "norm")},
)

CONV = Experiment(
    name="conv",
    title="MNIST: two convolutions of 32, norm, pooling, dense layer",
    load=data.digits,
    variants=_pair([Conv(32), Conv(32)], [MaxPool(), Flatten(), Dense(10)]),
    batch_size=64,
    full=Length(seeds=3, epochs=3, examples=10_000),
    quick=Length(seeds=1, epochs=1, examples=3_000),
    claims=_CLAIMS,
    panels={"": ("none", "norm")},
)

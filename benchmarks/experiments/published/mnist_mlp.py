"""MNIST by a 300-100-10 network with norms between its layers. The first norm takes the pixels."""

from benchmarks.experiments import data
from benchmarks.experiments.experiment import Claim, Experiment, Length, Variant, ahead, final, first_epoch
from benchmarks.experiments.layers import Dense, Flatten, Norm, Sgd

_SGD = Sgd(1e-3)

EXPERIMENT = Experiment(
    name="mnist-mlp",
    title="MNIST: a net of 300-100-10",
    load=data.digits,
    variants=(
        Variant("none", "no norm", [Flatten(), Dense(300, "relu"), Dense(100, "relu"), Dense(10)], _SGD),
        Variant(
            "after",
            "norm after ReLU",
            [Flatten(), Norm(), Dense(300, "relu"), Norm(), Dense(100, "relu"), Norm(), Dense(10)],
            _SGD,
        ),
        Variant(
            "before",
            "norm before ReLU, layers without bias",
            [
                Flatten(),
                Norm(),
                Dense(300, use_bias=False),
                Norm("relu"),
                Dense(100, use_bias=False),
                Norm("relu"),
                Dense(10),
            ],
            _SGD,
        ),
    ),
    batch_size=32,
    full=Length(seeds=3, epochs=10),
    quick=Length(seeds=1, epochs=2, examples=10_000),
    claims=(
        Claim("after is ahead of none after one epoch", ahead("after", "none", first_epoch)),
        Claim("before is ahead of none after one epoch", ahead("before", "none", first_epoch)),
        Claim("after ends ahead of none", ahead("after", "none", final("test")), needs_full=True),
        Claim("before ends ahead of none", ahead("before", "none", final("test")), needs_full=True),
    ),
    panels={"": ("none", "after", "before")},
)

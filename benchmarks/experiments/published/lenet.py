"""The main job: LeNet-5 on MNIST, with a norm behind each convolution's activation or without.

The network is that of benchmarks.lenet.model, recipe "article", which feeds a softmax into a loss of logits.
"""

from dataclasses import replace

from benchmarks.experiments import data
from benchmarks.experiments.experiment import (
    Claim,
    Curves,
    Experiment,
    Length,
    Variant,
    Verdict,
    ahead,
    at_least,
    final,
    first_epoch,
    mean,
)
from benchmarks.experiments.layers import (
    Adam,
    AveragePool,
    Conv,
    Dense,
    Flatten,
    Layer,
    Norm,
    Softmax,
)

_BIAS = 0.01
_NORM = Norm(momentum=0.9, epsilon=1e-5)  # PyTorch's defaults
_ADAM = Adam(1e-3, epsilon=1e-8)  # PyTorch's defaults
_PUBLISHED, _WITHIN = 0.985, 0.005


def _convolution(filters: int, norm: bool, relu: bool) -> list[Layer]:
    if relu:
        return [Conv(filters, 5, bias=_BIAS), replace(_NORM, activation="relu")]
    convolution = Conv(filters, 5, "tanh", bias=_BIAS)
    return [convolution, _NORM] if norm else [convolution]


def network(norm: bool, relu: bool = False) -> list[Layer]:
    """For images of 32x32; with `relu` norm and ReLU stand where tanh and norm stood."""
    return [
        *_convolution(6, norm, relu),
        AveragePool(),
        *_convolution(16, norm, relu),
        AveragePool(),
        Flatten(),
        Dense(120, "tanh", bias=_BIAS),
        Dense(84, "tanh", bias=_BIAS),
        Dense(10, bias=_BIAS),
        Softmax(),
    ]


def _near(curves: Curves) -> Verdict:
    found = mean(curves["norm"], final("test"))
    return Verdict(abs(found - _PUBLISHED) <= _WITHIN, f"norm {found:.4f}")


EXPERIMENT = Experiment(
    name="lenet",
    title="LeNet-5 on MNIST",
    load=data.large_digits,
    variants=(
        Variant("none", "tanh, no norm", network(False), _ADAM, {"first epoch": 0.93, "test": 0.98}),
        Variant("norm", "tanh, norm", network(True), _ADAM, {"first epoch": 0.95, "test": 0.985}),
        Variant("norm-relu", "norm with ReLU", network(True, relu=True), _ADAM),
    ),
    batch_size=64,
    full=Length(seeds=2, epochs=10),
    quick=Length(seeds=1, epochs=1, examples=20_000),
    claims=(
        Claim("norm is ahead of none after one epoch", ahead("norm", "none", first_epoch)),
        Claim("norm: more than 95 % after one epoch", at_least("norm", 0.95, first_epoch), needs_full=True),
        Claim(
            "none: more than 98 % after ten epochs", at_least("none", 0.98, final("test")), needs_full=True
        ),
        Claim("norm: about 98.5 % (within 0.5) after ten epochs", _near, needs_full=True),
    ),
    panels={"": ("none", "norm", "norm-relu")},
)

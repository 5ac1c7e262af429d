"""LeNet-5 on MNIST, with or without a norm after each convolution's activation.

The network is benchmarks.lenet.model with recipe "article", which applies a softmax before the loss of
logits.
"""

from collections.abc import Callable
from dataclasses import replace
from typing import Literal

from benchmarks.experiments import data
from benchmarks.experiments.experiment import (
    Claim,
    Curve,
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


def network(norm: Literal["none", "tanh", "relu"]) -> list[Layer]:
    """The network for images of 32x32. A norm follows each tanh, or norm and ReLU replace it."""

    def convolution(filters: int) -> list[Layer]:
        match norm:
            case "none":
                return [Conv(filters, 5, "tanh", bias=_BIAS)]
            case "tanh":
                return [Conv(filters, 5, "tanh", bias=_BIAS), _NORM]
            case "relu":
                return [Conv(filters, 5, bias=_BIAS), replace(_NORM, activation="relu")]

    return [
        *convolution(6),
        AveragePool(),
        *convolution(16),
        AveragePool(),
        Flatten(),
        Dense(120, "tanh", bias=_BIAS),
        Dense(84, "tanh", bias=_BIAS),
        Dense(10, bias=_BIAS),
        Softmax(),
    ]


def _near(id: str, published: float, of: Callable[[Curve], float]) -> Callable[[Curves], Verdict]:
    """Tests whether the mean over the seeds is within half a percent of a published "about"."""

    def judge(curves: Curves) -> Verdict:
        found = mean(curves[id], of)
        return Verdict(abs(found - published) <= 0.005, f"{id} {found:.4f}")

    return judge


EXPERIMENT = Experiment(
    name="lenet",
    title="LeNet-5 on MNIST",
    load=data.large_digits,
    variants=(
        Variant("none", "tanh, no norm", network("none"), _ADAM, {"epoch 1": 0.93, "test": 0.98}),
        Variant("norm", "tanh, norm", network("tanh"), _ADAM, {"epoch 1": 0.95, "test": 0.985}),
        Variant("norm-relu", "norm with ReLU", network("relu"), _ADAM),
    ),
    batch_size=64,
    full=Length(seeds=2, epochs=10),
    quick=Length(seeds=1, epochs=1, examples=20_000),
    claims=(
        Claim("norm is ahead of none after one epoch", ahead("norm", "none", first_epoch)),
        Claim("norm: at least 95 % after one epoch", at_least("norm", 0.95, first_epoch), needs_full=True),
        Claim("none: about 93 % after one epoch", _near("none", 0.93, first_epoch), needs_full=True),
        Claim("none: at least 98 % after ten epochs", at_least("none", 0.98, final("test")), needs_full=True),
        Claim("norm: about 98.5 % after ten epochs", _near("norm", 0.985, final("test")), needs_full=True),
    ),
    panels={"": ("none", "norm", "norm-relu")},
)

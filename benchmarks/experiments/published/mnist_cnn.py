"""MNIST by three convolutions and two dense layers: sigmoid or ReLU, two learning rates."""

from benchmarks.experiments import data
from benchmarks.experiments.experiment import (
    Claim,
    Experiment,
    Length,
    Variant,
    ahead,
    at_least,
    at_most,
    final,
)
from benchmarks.experiments.layers import Activation, Conv, Dense, Flatten, Layer, MaxPool, Norm, Sgd

_RATES = {"1x": 0.01, "10x": 0.1}
_NAMES: dict[Activation, str] = {"sigmoid": "sigmoid", "relu": "ReLU"}
_FILTERS, _UNITS = 32, 64
_LEARNS = 0.9
_CHANCE = 0.2  # the accuracy of guessing: the most frequent digit is 0.1135 of the test images


def _network(activation: Activation, norm: bool) -> list[Layer]:
    """With norms, one replaces the bias before each activation and before the softmax."""

    def conv() -> list[Layer]:
        if norm:
            return [Conv(_FILTERS, use_bias=False), Norm(activation)]
        return [Conv(_FILTERS, activation=activation)]

    def dense(units: int, activation: Activation) -> list[Layer]:
        return [Dense(units, use_bias=False), Norm(activation)] if norm else [Dense(units, activation)]

    return [
        *conv(),
        MaxPool(),
        *conv(),
        MaxPool(),
        *conv(),
        Flatten(),
        *dense(_UNITS, activation),
        *dense(10, "linear"),
    ]


def _id(activation: str, rate: str, norm: bool) -> str:
    return f"{activation}-{rate}-{'norm' if norm else 'none'}"


EXPERIMENT = Experiment(
    name="mnist-cnn",
    title="MNIST: three convolutions and two dense layers, SGD with momentum 0.9",
    load=data.digits,
    variants=[
        Variant(
            _id(activation, rate, norm),
            f"{_NAMES[activation]}, learning rate {value:g}, {'norm' if norm else 'no norm'}",
            _network(activation, norm),
            Sgd(value, momentum=0.9),
        )
        for activation in _NAMES
        for rate, value in _RATES.items()
        for norm in (False, True)
    ],
    batch_size=64,
    full=Length(seeds=3, epochs=3, examples=15_000),
    quick=Length(seeds=1, epochs=3, examples=5_000),
    claims=(
        Claim(
            "10x rate, sigmoid, no norm: does not learn at all",
            at_most("sigmoid-10x-none", _CHANCE, final("test")),
            needs_full=True,
        ),
        Claim(
            "10x rate, sigmoid, norm: learns",
            at_least("sigmoid-10x-norm", _LEARNS, final("test")),
            needs_full=True,
        ),
        Claim("10x rate, ReLU, no norm: learns", at_least("relu-10x-none", _LEARNS, final("test"))),
        Claim("10x rate, ReLU, norm: learns", at_least("relu-10x-norm", _LEARNS, final("test"))),
        Claim(
            "10x rate, ReLU: norm is ahead",
            ahead("relu-10x-norm", "relu-10x-none", final("test")),
            needs_full=True,
        ),
    ),
    panels={
        f"{_NAMES[activation]}, learning rate {value:g}": (
            _id(activation, rate, False),
            _id(activation, rate, True),
        )
        for activation in _NAMES
        for rate, value in _RATES.items()
    },
)

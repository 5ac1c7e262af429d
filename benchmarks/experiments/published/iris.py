"""A deep network on Fisher's irises with a norm after each hidden layer. One norm has other options."""

from benchmarks.experiments import data
from benchmarks.experiments.experiment import Experiment, Length, Variant, repeats
from benchmarks.experiments.layers import Adam, Dense, Layer, Norm

_OPTIONS = Norm(momentum=0.95, epsilon=0.005, bias_std=0.05, weight=0.9)

_UNITS = (64, 128, 128, 64, 64)


def _network(*norms: Norm) -> list[Layer]:
    """64-128-128-64-64-3 with ReLU, with or without a norm after each hidden layer."""
    network: list[Layer] = []
    for units, norm in zip(_UNITS, norms or [None] * len(_UNITS), strict=True):
        network += [Dense(units, "relu"), *([norm] if norm else [])]
    return [*network, Dense(3)]


_NONE = Variant("none", "no norm", _network(), Adam())
_NORM = Variant(
    "norm",
    "norms between",
    _network(Norm(), Norm(), _OPTIONS, Norm(), Norm()),
    Adam(),
    {"train": 0.978, "validation": 0.933, "test": 0.967},
)

EXPERIMENT = Experiment(
    name="iris",
    title="Irises: a net of 64-128-128-64-64-3",
    load=data.iris,
    variants=(_NONE, _NORM),
    batch_size=40,
    full=Length(seeds=20, epochs=200),
    quick=Length(seeds=3, epochs=200),
    claims=(repeats(_NORM),),
    panels={"": ("none", "norm")},
)

"""Two circles of points: does a norm speed up the training of a small network, and where should it stand?

"Passes 80 %" was published as curves. Here it is the first epoch after which the accuracy on the test part is
at least 80 %, as the median over the seeds.
"""

import statistics

from benchmarks.experiments import data
from benchmarks.experiments.experiment import (
    Claim,
    Curves,
    Experiment,
    Length,
    Variant,
    Verdict,
    ahead,
    epochs_to,
    final,
    repeats,
)
from benchmarks.experiments.layers import Dense, Layer, Norm, Sgd

_SGD = Sgd(0.01, momentum=0.9)
_GOAL = 0.8  # the accuracy that "passes 80 %" means
_SOON = 20  # published epochs for the norm after the activation
_LATE = (30, 40)  # published epochs without a norm


def _after(norm: Norm) -> list[Layer]:
    return [Dense(50, "relu", kernel_initializer="he_uniform"), norm, Dense(1)]


_NONE = Variant(
    "none",
    "no norm",
    [Dense(50, "relu", kernel_initializer="he_uniform"), Dense(1)],
    _SGD,
    {"train": 0.838, "test": 0.846},
)
_AFTER = Variant("after", "norm after ReLU", _after(Norm()), _SGD, {"train": 0.846, "test": 0.848})
_BEFORE = Variant(
    "before",
    "norm before ReLU",
    [Dense(50, kernel_initializer="he_uniform"), Norm("relu"), Dense(1)],
    _SGD,
    {"train": 0.826, "test": 0.830},
)
_EXTENSIONS = (
    Variant("no-affine", "norm after ReLU, without beta and gamma", _after(Norm(affine=False)), _SGD),
    Variant("no-momentum", "norm after ReLU, momentum 0.0", _after(Norm(momentum=0.0)), _SGD),
    Variant(
        "input",
        "norm of the input",
        [Norm(), Dense(50, "relu", kernel_initializer="he_uniform"), Dense(1)],
        _SGD,
    ),
)


def _median_epochs(curves: Curves, id: str) -> float:
    return statistics.median(epochs_to(_GOAL)(curve) for curve in curves[id])


def _sooner(curves: Curves) -> Verdict:
    plain, norm = _median_epochs(curves, "none"), _median_epochs(curves, "after")
    return Verdict(norm < plain, f"median epochs: after {norm:g}, none {plain:g}")


def _soon(curves: Curves) -> Verdict:
    norm = _median_epochs(curves, "after")
    return Verdict(norm <= _SOON, f"median epochs: after {norm:g}")


def _late(curves: Curves) -> Verdict:
    plain = _median_epochs(curves, "none")
    return Verdict(_LATE[0] <= plain <= _LATE[1], f"median epochs: none {plain:g}")


EXPERIMENT = Experiment(
    name="circles",
    title="Circles: 50 units",
    load=data.circles,
    variants=(_NONE, _AFTER, _BEFORE, *_EXTENSIONS),
    batch_size=32,
    full=Length(seeds=20, epochs=100),
    quick=Length(seeds=5, epochs=100),
    claims=(
        Claim("after: a test accuracy of 80 % comes sooner than without norm", _sooner),
        Claim("after: a test accuracy of 80 % comes within 20 epochs", _soon),
        Claim("none: a test accuracy of 80 % takes 30 to 40 epochs", _late),
        Claim("after ends ahead of none", ahead("after", "none", final("test")), needs_full=True),
        Claim("before ends behind none", ahead("none", "before", final("test")), needs_full=True),
        repeats(_NONE),
        repeats(_AFTER),
        repeats(_BEFORE),
    ),
    panels={
        "no norm": ("none",),
        "norm after ReLU": ("after",),
        "norm before ReLU": ("before",),
        "without beta and gamma": ("no-affine",),
        "momentum 0.0": ("no-momentum",),
        "norm of the input": ("input",),
    },
)

"""What an experiment has: data, variants of a network, their training, and the published claims."""

import statistics
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

from benchmarks.experiments.data import Split
from benchmarks.experiments.layers import Network, Optimizer


@dataclass
class Curve:
    """One variant trained from one seed. Accuracies are in [0, 1].

    The lists have one entry per epoch: loss and accuracy in training, as means over the epoch's batches, and
    the accuracy on `Split.watched` after the epoch. `final` has the accuracy on each part of the split, by
    its name.
    """

    seed: int
    train_loss: list[float] = field(default_factory=list)
    train_accuracy: list[float] = field(default_factory=list)
    watched_accuracy: list[float] = field(default_factory=list)
    final: dict[str, float] = field(default_factory=dict)
    seconds: float = 0.0
    """Seconds of training, including the evaluation after each epoch."""


@dataclass(frozen=True)
class Variant:
    """One network with its optimiser.

    published: the published accuracies in [0, 1], by "train", "validation" and "test" at the end, or "epoch
    1".
    """

    id: str
    description: str
    network: Network
    optimizer: Optimizer
    published: Mapping[str, float] = field(default_factory=dict)


ROUNDED = 0.0005
"""A published accuracy is rounded; this is the largest rounding error."""


@dataclass(frozen=True)
class Training:
    """What a curve is made from. norm is "fused" for ours, "framework" for PyTorch's or Keras' own."""

    variant: Variant
    split: Split
    seed: int
    epochs: int
    batch_size: int
    norm: str


Curves = Mapping[str, Sequence[Curve]]
"""The curves of all seeds, by the variant's id."""


@dataclass(frozen=True)
class Verdict:
    """Whether the curves support a claim, and the numbers that decide it."""

    holds: bool
    measured: str


@dataclass(frozen=True)
class Claim:
    """A published or expected result in words, and its test.

    needs_full: the claim means nothing after a training shortened by --quick. needs_seeds: the number of
    seeds that the claim needs.
    """

    text: str
    judge: Callable[[Curves], Verdict]
    needs_full: bool = False
    needs_seeds: int = 1


@dataclass(frozen=True)
class Length:
    """How much is trained: the number of seeds, epochs, and training examples (None for all)."""

    seeds: int
    epochs: int
    examples: int | None = None


@dataclass(frozen=True)
class Experiment:
    """Everything about one experiment that does not depend on the API.

    load: returns the data for a seed, a number of training examples (None for all) and MNIST's directory.
    Raises
        benchmarks.mnist.MnistError if MNIST is needed and not found.
    panels: titles and ids of the variants that share one set of axes in the picture.
    """

    name: str
    title: str
    load: Callable[[int, int | None, Path | None], Split]
    variants: Sequence[Variant]
    batch_size: int
    full: Length
    quick: Length
    claims: Sequence[Claim]
    panels: Mapping[str, tuple[str, ...]]


def first_epoch(curve: Curve) -> float:
    """The accuracy on the watched part after one epoch."""
    return curve.watched_accuracy[0]


def final(part: str) -> Callable[[Curve], float]:
    """The accuracy on that part at the end."""
    return lambda curve: curve.final[part]


def mean(curves: Sequence[Curve], of: Callable[[Curve], float]) -> float:
    """The mean over the seeds."""
    return statistics.fmean(of(curve) for curve in curves)


def epochs_to(accuracy: float) -> Callable[[Curve], float]:
    """The epochs until the watched part reaches that accuracy. Infinity if it never does."""

    def count(curve: Curve) -> float:
        reached = (n for n, found in enumerate(curve.watched_accuracy, start=1) if found >= accuracy)
        return next(reached, float("inf"))

    return count


def ahead(better: str, worse: str, of: Callable[[Curve], float]) -> Callable[[Curves], Verdict]:
    """Tests whether one variant's mean accuracy over the seeds is higher than another's."""

    def judge(curves: Curves) -> Verdict:
        ours, theirs = mean(curves[better], of), mean(curves[worse], of)
        pairs = [(of(one), of(other)) for one, other in zip(curves[better], curves[worse], strict=True)]
        wins = sum(one > other for one, other in pairs)
        return Verdict(
            ours > theirs, f"{better} {ours:.4f}, {worse} {theirs:.4f}, ahead in {wins} of {len(pairs)} seeds"
        )

    return judge


def at_least(id: str, accuracy: float, of: Callable[[Curve], float]) -> Callable[[Curves], Verdict]:
    """Tests whether every seed of a variant reaches an accuracy."""

    def judge(curves: Curves) -> Verdict:
        lowest = min(of(curve) for curve in curves[id])
        return Verdict(lowest >= accuracy, f"{id}: lowest of {len(curves[id])} seeds {lowest:.4f}")

    return judge


def at_most(id: str, accuracy: float, of: Callable[[Curve], float]) -> Callable[[Curves], Verdict]:
    """Tests whether no seed of a variant exceeds an accuracy."""

    def judge(curves: Curves) -> Verdict:
        highest = max(of(curve) for curve in curves[id])
        return Verdict(highest <= accuracy, f"{id}: highest of {len(curves[id])} seeds {highest:.4f}")

    return judge


def repeats(variant: Variant) -> Claim:
    """Claims that the published final accuracies could come from one more seed.

    Each must be within two standard deviations of the seeds' mean. This holds for 95 % of normal values.
    """
    figures = ", ".join(f"{part} {accuracy:.3f}" for part, accuracy in variant.published.items())

    def judge(curves: Curves) -> Verdict:
        near, measured = True, []
        for part, published in variant.published.items():
            found = [curve.final[part] for curve in curves[variant.id]]
            middle, spread = statistics.fmean(found), 2 * statistics.stdev(found)
            near = near and abs(published - middle) <= spread + ROUNDED
            measured.append(f"{part} {middle:.3f} ± {spread:.3f}")
        return Verdict(near, f"{', '.join(measured)}, two deviations of {len(curves[variant.id])} seeds")

    return Claim(f"{variant.id}: as published, {figures}", judge, needs_full=True, needs_seeds=5)

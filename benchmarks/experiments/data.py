"""The experiments' data: iris, circles and MNIST, split as published."""

from collections.abc import Mapping
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray
from sklearn.datasets import load_iris, make_circles
from sklearn.model_selection import train_test_split

from benchmarks import mnist
from benchmarks.lenet.training import Data


@dataclass(frozen=True)
class Part:
    """Inputs: float32 of shape (N, *), images (N, height, width, channels). Labels: int64 of shape (N,)."""

    inputs: NDArray[np.float32]
    labels: NDArray[np.int64]

    @classmethod
    def of(cls, inputs: NDArray[np.generic], labels: NDArray[np.generic]) -> "Part":
        return cls(np.ascontiguousarray(inputs, np.float32), labels.astype(np.int64))


@dataclass(frozen=True)
class Split:
    """Parts by name: "train", the only one that is learned from, "test", and sometimes "validation"."""

    parts: Mapping[str, Part]

    @property
    def train(self) -> Part:
        return self.parts["train"]

    @property
    def watched(self) -> str:
        """The name of the part that is evaluated after each epoch."""
        return "validation" if "validation" in self.parts else "test"


def iris(seed: int, _examples: int | None, _directory: Path | None) -> Split:
    """Fisher 1936: 150 flowers of 3 species, 4 lengths each. 90 to train, 30 to validate, 30 to test.

    The seed chooses the parts. The published choice is not known.
    """
    inputs, labels = load_iris(return_X_y=True)
    rest, test, rest_labels, test_labels = train_test_split(
        inputs, labels, test_size=0.2, random_state=seed, stratify=labels
    )
    train, validation, train_labels, validation_labels = train_test_split(
        rest, rest_labels, test_size=0.25, random_state=seed, stratify=rest_labels
    )
    return Split(
        {
            "train": Part.of(train, train_labels),
            "validation": Part.of(validation, validation_labels),
            "test": Part.of(test, test_labels),
        }
    )


def circles(_seed: int, _examples: int | None, _directory: Path | None) -> Split:
    """The published 1000 points on two circles with noise. The first 500 are for training."""
    points, labels = make_circles(n_samples=1000, noise=0.1, random_state=1)
    return Split({"train": Part.of(points[:500], labels[:500]), "test": Part.of(points[500:], labels[500:])})


def digits(_seed: int, examples: int | None, directory: Path | None) -> Split:
    """MNIST's images of shape (28, 28, 1), from 0 to 1, with all or the first `count` for training."""
    loaded = _mnist(directory)
    return Split(
        {
            "train": Part.of(
                loaded.train_images[:examples, :, :, None] / np.float32(255), loaded.train_labels[:examples]
            ),
            "test": Part.of(loaded.test_images[..., None] / np.float32(255), loaded.test_labels),
        }
    )


def digit_rows(seed: int, examples: int | None, directory: Path | None) -> Split:
    """MNIST's images as sequences of shape (28 steps, 28)."""
    images = digits(seed, examples, directory).parts
    return Split({name: Part(part.inputs[..., 0], part.labels) for name, part in images.items()})


def large_digits(_seed: int, examples: int | None, directory: Path | None) -> Split:
    """MNIST's images of shape (32, 32, 1), enlarged as in benchmarks.lenet."""
    data = _enlarged(directory)
    train, test = (images.numpy().reshape(-1, 32, 32, 1) for images in (data.train_images, data.test_images))
    return Split(
        {
            "train": Part.of(train[:examples], data.train_labels.numpy()[:examples]),
            "test": Part.of(test, data.test_labels.numpy()),
        }
    )


@lru_cache(maxsize=1)
def _mnist(directory: Path | None) -> mnist.Mnist:
    return mnist.load(directory)


@lru_cache(maxsize=1)
def _enlarged(directory: Path | None) -> Data:
    return Data.of(_mnist(directory), torch.device("cpu"))

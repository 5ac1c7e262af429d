"""The compared models: the same network with Keras' layers and with ours, trained by `model.fit`."""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import keras
import numpy as np

from benchmarks.comparison import WrongResultError
from fused_bn.keras import BatchNormalization

SHAPE = (28, 28, 1)
CLASSES = 10

ROWS: dict[str, Callable[[int], list[Any]]] = {
    "keras": lambda axis: [keras.layers.BatchNormalization(axis), keras.layers.Activation("relu")],
    "ours": lambda axis: [BatchNormalization(axis), keras.layers.Activation("relu")],
    "ours with ReLU": lambda axis: [BatchNormalization(axis, activation="relu")],
}
"""Norm and ReLU: as in Keras, with our layer in the same place, and as one layer of ours."""


@dataclass(frozen=True)
class Case:
    """A network, "conv" or "mlp", and the place of the channels in its images."""

    network: str
    data_format: str
    batch: int

    @property
    def id(self) -> str:
        return f"{self.network} {self.batch} {self.data_format}"


class Comparison:
    """One model for each of ROWS, with the same weights, on the same random images and labels.

    The images have MNIST's shape. Their values do not affect the time.
    """

    def __init__(self, case: Case, steps: int) -> None:
        generator = np.random.default_rng(0)
        self.case, self.steps = case, steps
        shape = SHAPE if case.data_format == "channels_last" else (SHAPE[2], *SHAPE[:2])
        self.images = generator.standard_normal((steps * case.batch, *shape), np.float32)
        self.labels = generator.integers(0, CLASSES, steps * case.batch)
        self.models = {row: self._model(norm) for row, norm in ROWS.items()}

    def _model(self, norm: Callable[[int], list[Any]]) -> Any:
        keras.utils.set_random_seed(0)
        network = conv if self.case.network == "conv" else mlp
        model = keras.Sequential([keras.Input(self.images.shape[1:]), *network(norm, self.case.data_format)])
        model.compile(
            # The labels are random, so the rate is small enough that the loss of many epochs stays finite.
            optimizer=keras.optimizers.SGD(1e-4, momentum=0.9),
            loss=keras.losses.SparseCategoricalCrossentropy(from_logits=True),
        )
        model.optimizer.build(model.trainable_variables)
        return model

    def epoch(self, row: str, steps: int | None = None, images: Any = None) -> None:
        """Runs `model.fit` over `steps` batches, by default all."""
        count = (steps or self.steps) * self.case.batch
        images = self.images if images is None else images
        self.models[row].fit(
            *(images[:count], self.labels[:count]),
            batch_size=self.case.batch,
            shuffle=False,
            verbose=0,
        )

    def check(self, steps: int = 2) -> None:
        """Trains every row for a few steps and compares the weights with Keras'. Raises WrongResultError.

        Keras with every pixel moved by its last bit is the A/A control. A row may differ from Keras three
        times as much.
        """
        expected = self._trained("keras", steps, self.images)
        moved = self._trained("keras", steps, np.nextafter(self.images, np.float32(np.inf)))
        allowed = 3 * distance(moved, expected)
        for row in self.models:
            if not (off := distance(self._trained(row, steps, self.images), expected)) <= allowed:
                raise WrongResultError(f"{row}: weights off by {off:.1e}, allowed {allowed:.1e}")

    def _trained(self, row: str, steps: int, images: Any) -> list[Any]:
        """The weights after training. Restores model and optimizer."""
        model = self.models[row]
        variables = [*model.variables, *model.optimizer.variables]
        before = [keras.ops.copy(variable) for variable in variables]
        self.epoch(row, steps, images)
        after: list[Any] = model.get_weights()
        for variable, value in zip(variables, before, strict=True):
            variable.assign(value)
        return after


def conv(norm: Callable[[int], list[Any]], data_format: str) -> list[Any]:
    """Two convolutions, each with a norm and pooling."""
    axis = -1 if data_format == "channels_last" else 1
    layers: list[Any] = []
    for filters in (32, 64):
        layers += [
            keras.layers.Conv2D(filters, 3, use_bias=False, data_format=data_format),
            *norm(axis),
            keras.layers.MaxPooling2D(data_format=data_format),
        ]
    return [*layers, keras.layers.Flatten(data_format=data_format), keras.layers.Dense(CLASSES)]


def mlp(norm: Callable[[int], list[Any]], _: str) -> list[Any]:
    """Three hidden layers, each with a norm."""
    layers: list[Any] = [keras.layers.Flatten()]
    for units in (256, 128, 64):
        layers += [keras.layers.Dense(units, use_bias=False), *norm(-1)]
    return [*layers, keras.layers.Dense(CLASSES)]


def distance(found: list[Any], expected: list[Any]) -> float:
    """The largest distance of a variable, relative to its size."""
    pairs = zip(found, expected, strict=True)
    return max(float(np.linalg.norm(mine - theirs) / np.linalg.norm(theirs)) for mine, theirs in pairs)

"""The experiments' networks as Keras models on the torch backend, trained by `model.fit`."""

import time
from collections.abc import Callable
from typing import Any

import keras
import torch

from benchmarks.environment import environment
from benchmarks.experiments import layers
from benchmarks.experiments.experiment import Curve, Training
from fused_bn.keras import BatchNormalization

EVALUATION_BATCH = 1000


def train(training: Training, report: Callable[[], object]) -> Curve:
    """As `torch_api.train`, except that a norm changes the initial weights of later layers.

    Keras draws a new seed for each initialiser, and a norm has initialisers.
    """
    variant, split = training.variant, training.split
    keras.utils.set_random_seed(training.seed)
    examples, watched = split.train, split.parts[split.watched]
    built = model(variant.network, examples.inputs.shape[1:], training.norm)
    binary = built.output_shape[-1] == 1
    kind = keras.losses.BinaryCrossentropy if binary else keras.losses.SparseCategoricalCrossentropy
    right = (
        keras.metrics.BinaryAccuracy(threshold=0, name="accuracy")
        if binary
        else keras.metrics.SparseCategoricalAccuracy(name="accuracy")
    )
    built.compile(optimizer=_optimizer(variant.optimizer), loss=kind(from_logits=True), metrics=[right])
    start = time.perf_counter()
    history = built.fit(
        examples.inputs,
        examples.labels,
        batch_size=training.batch_size,
        epochs=training.epochs,
        validation_data=(watched.inputs, watched.labels),
        validation_batch_size=EVALUATION_BATCH,
        callbacks=[_Reporter(report)],
        verbose=0,
    ).history
    seconds = time.perf_counter() - start
    final = {
        name: built.evaluate(
            part.inputs, part.labels, batch_size=EVALUATION_BATCH, verbose=0, return_dict=True
        )["accuracy"]
        for name, part in split.parts.items()
    }
    return Curve(training.seed, history["loss"], history["accuracy"], history["val_accuracy"], final, seconds)


class _Reporter(keras.callbacks.Callback):  # type: ignore[misc]
    def __init__(self, report: Callable[[], object]) -> None:
        super().__init__()
        self.report = report

    def on_train_batch_end(self, _batch: int, logs: Any = None) -> None:  # noqa: ARG002 - by keyword
        self.report()


def conditions() -> dict[str, Any]:
    """What the figures depend on besides the code. Keras trains on its torch backend's device."""
    device = torch.device(keras.ops.zeros(()).device)
    return {**environment(device), "keras": keras.__version__}


def model(network: layers.Network, shape: tuple[int, ...], norm: str) -> Any:
    """The network for examples of `shape`, channels last. Draws from Keras' global generator."""
    return keras.Sequential([keras.Input(shape), *(_layer(layer, norm) for layer in network)])


def _layer(layer: layers.Layer, norm: str) -> Any:
    match layer:
        case layers.Dense():
            return keras.layers.Dense(layer.units, **_weights(layer))
        case layers.Conv():
            return keras.layers.Conv2D(layer.filters, layer.kernel_size, **_weights(layer))
        case layers.Norm():
            return _norm(layer, norm)
        case layers.Lstm():
            return keras.layers.LSTM(layer.units)
        case layers.MaxPool():
            return keras.layers.MaxPooling2D(layer.size)
        case layers.AveragePool():
            return keras.layers.AveragePooling2D(layer.size)
        case layers.Flatten():
            return keras.layers.Flatten()
        case layers.Softmax():
            return keras.layers.Softmax()


def _weights(layer: layers.Dense | layers.Conv) -> dict[str, Any]:
    return {
        "activation": layer.activation,
        "use_bias": layer.use_bias,
        "kernel_initializer": layer.kernel_initializer,
        "bias_initializer": keras.initializers.Constant(layer.bias),
    }


def _norm(layer: layers.Norm, norm: str) -> Any:
    options: dict[str, Any] = {
        "momentum": layer.momentum,
        "epsilon": layer.epsilon,
        "center": layer.affine,
        "scale": layer.affine,
        "gamma_initializer": keras.initializers.Constant(layer.weight),
        "beta_initializer": keras.initializers.RandomNormal(stddev=layer.bias_std),
    }
    if norm == "framework":
        activation = keras.layers.Activation(layer.activation)
        return keras.Sequential([keras.layers.BatchNormalization(**options), activation])
    return BatchNormalization(**options, activation=layer.activation)


def _optimizer(wanted: layers.Optimizer) -> Any:
    if isinstance(wanted, layers.Adam):
        return keras.optimizers.Adam(wanted.learning_rate, epsilon=wanted.epsilon)
    return keras.optimizers.SGD(wanted.learning_rate, momentum=wanted.momentum)

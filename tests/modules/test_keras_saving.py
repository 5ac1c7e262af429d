"""Configurations, `.keras` files and weights files: round trips, and conversion to Keras' layer and back."""

import json
import subprocess
import sys
import zipfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

pytest.importorskip("keras")

import keras

from tests.modules.keras_layers import Ours, Theirs

X = np.random.default_rng(0).standard_normal((4, 6, 6, 3)).astype("float32")

OPTIONS: dict[str, Any] = {
    "axis": 1,
    "momentum": 0.7,
    "epsilon": 0.01,
    "center": False,
    "scale": True,
    "beta_initializer": keras.initializers.Constant(0.5),
    "gamma_initializer": keras.initializers.Constant(2.0),
    "moving_mean_initializer": keras.initializers.Constant(1.0),
    "moving_variance_initializer": keras.initializers.Constant(3.0),
    "beta_regularizer": keras.regularizers.L1(0.1),
    "gamma_regularizer": keras.regularizers.L2(0.2),
    "beta_constraint": keras.constraints.NonNeg(),
    "gamma_constraint": keras.constraints.MaxNorm(2.0),
    "synchronized": False,
    "name": "norm",
    "dtype": "mixed_bfloat16",
    "trainable": False,
}


class Subclassed(keras.Model):  # type: ignore[misc]
    def __init__(self, layer: Any) -> None:
        super().__init__()
        self.convolution, self.norm = keras.layers.Conv2D(5, 3), layer

    def call(self, x: Any, training: Any = None) -> Any:
        return self.norm(self.convolution(x), training=training)

    def get_config(self) -> dict[str, Any]:
        return {}  # `save` calls it; only weights are loaded


def sequential(layer: Any) -> Any:
    convolution = keras.layers.Conv2D(5, 3)
    return keras.Sequential([keras.Input((6, 6, 3)), convolution, layer, keras.layers.Flatten()])


def functional(layer: Any) -> Any:
    inputs = keras.Input((6, 6, 3))
    return keras.Model(inputs, keras.layers.Flatten()(layer(keras.layers.Conv2D(5, 3)(inputs))))


MODELS: dict[str, Callable[[Any], Any]] = {
    "Sequential": sequential,
    "functional": functional,
    "subclassed": Subclassed,
}


def trained(model: Any) -> Any:
    """The layer after a call that changes its statistics, with weights that no initialiser gives."""
    model(X, training=True)
    generator = np.random.default_rng(1)
    model.set_weights([weight + generator.random(weight.shape) for weight in model.get_weights()])
    return model


def assert_predict_the_same(mine: Any, theirs: Any) -> None:
    """Up to an inference's roundings: 9 of 2^-24 each, of values of up to 20."""
    np.testing.assert_allclose(mine.predict(X, verbose=0), theirs.predict(X, verbose=0), rtol=0, atol=1.1e-5)


@pytest.mark.parametrize("activation", [None, "relu", "softsign", keras.layers.LeakyReLU(0.3)])
def test_config_round_trip(activation: Any) -> None:
    layer = Ours(activation=activation, **OPTIONS)
    config = layer.get_config()
    again = Ours.from_config(json.loads(json.dumps(config)))
    assert again.get_config() == config
    assert again.trainable is False
    if isinstance(activation, keras.layers.Layer):
        assert again.activation.negative_slope == pytest.approx(0.3)
    else:
        assert again.activation is keras.activations.get(activation)


def test_configs_go_both_ways_where_there_is_no_activation() -> None:
    theirs = Theirs(**OPTIONS).get_config()
    assert Ours(**OPTIONS).get_config() == theirs
    assert Ours.from_config(theirs).get_config() == theirs
    assert Theirs.from_config(Ours(**OPTIONS).get_config()).get_config() == theirs


def test_positional_arguments_are_the_originals() -> None:
    assert Ours(1, 0.5, 0.1, False).get_config() | {"name": ""} == Theirs(1, 0.5, 0.1, False).get_config() | {
        "name": ""
    }


@pytest.mark.parametrize("suffix", [".keras", ".weights.h5"])
@pytest.mark.parametrize("kind", MODELS)
@pytest.mark.parametrize(("saved", "loaded"), [(Ours, Theirs), (Theirs, Ours)], ids=["ours", "theirs"])
def test_weights_go_both_ways(kind: str, saved: Any, loaded: Any, suffix: str, tmp_path: Path) -> None:
    """From a weights file and from a whole model's file."""
    path = tmp_path / f"model{suffix}"
    model, other = trained(MODELS[kind](saved())), trained(MODELS[kind](loaded()))
    other.set_weights([0 * weight for weight in other.get_weights()])
    if suffix == ".keras":
        model.save(path)
    else:
        model.save_weights(path)
    other.load_weights(path)
    for weight, expected in zip(other.get_weights(), model.get_weights(), strict=True):
        np.testing.assert_array_equal(weight, expected)
    assert_predict_the_same(other, model)


@pytest.mark.parametrize("kind", ["Sequential", "functional"])
def test_model_files_keep_the_class(kind: str, tmp_path: Path) -> None:
    model = trained(MODELS[kind](Ours(activation="relu")))
    model.save(tmp_path / "model.keras")
    again = keras.saving.load_model(tmp_path / "model.keras")
    (norm,) = (layer for layer in again.layers if isinstance(layer, Theirs))
    assert type(norm) is Ours
    assert norm.activation is keras.activations.relu
    np.testing.assert_array_equal(again.predict(X, verbose=0), model.predict(X, verbose=0))


def test_a_model_of_keras_layers_becomes_one_of_ours(tmp_path: Path) -> None:
    """In the way that docs/keras.md shows."""
    model = trained(functional(Theirs()))
    model.save(tmp_path / "model.keras")
    loaded = keras.saving.load_model(tmp_path / "model.keras")

    def ours(layer: Any) -> Any:
        same = type(layer) is not keras.layers.BatchNormalization
        return (type(layer) if same else Ours).from_config(layer.get_config())

    fused = keras.models.clone_model(loaded, clone_function=ours)
    fused.set_weights(loaded.get_weights())
    assert sum(type(layer) is Ours for layer in fused.layers) == 1
    assert_predict_the_same(fused, model)


WITHOUT_US = """
import sys
import keras, numpy
sys.modules["fused_bn"] = None  # importing it fails
try:
    keras.saving.load_model(sys.argv[1])
except TypeError as error:
    assert "fused_bn>BatchNormalization" in str(error), error
else:
    raise AssertionError("found our class")
theirs = keras.layers.BatchNormalization
model = keras.saving.load_model(sys.argv[1], custom_objects={"fused_bn>BatchNormalization": theirs})
assert sum(type(layer) is theirs for layer in model.layers) == 1
numpy.save(sys.argv[2], model.predict(numpy.load(sys.argv[3]), verbose=0))
"""


def test_model_files_load_without_us(tmp_path: Path) -> None:
    """Loads as Keras' own layer in a process that cannot import fused_bn."""
    model = trained(functional(Ours()))
    model.save(tmp_path / "model.keras")
    np.save(tmp_path / "x.npy", X)
    paths = [str(tmp_path / name) for name in ("model.keras", "y.npy", "x.npy")]
    subprocess.run([sys.executable, "-c", WITHOUT_US, *paths], check=True, timeout=120)
    np.testing.assert_allclose(model.predict(X, verbose=0), np.load(paths[1]), rtol=0, atol=1.1e-5)


def test_model_files_name_the_activation(tmp_path: Path) -> None:
    functional(Ours(activation="gelu")).save(tmp_path / "model.keras")
    with zipfile.ZipFile(tmp_path / "model.keras") as archive:
        layers = json.loads(archive.read("config.json"))["config"]["layers"]
    (norm,) = (layer for layer in layers if layer["class_name"] == "BatchNormalization")
    assert (norm["module"], norm["registered_name"]) == ("fused_bn.keras", "fused_bn>BatchNormalization")
    assert norm["config"]["activation"] == "gelu"


@pytest.mark.filterwarnings("ignore")
def test_models_are_exported_to_onnx(tmp_path: Path) -> None:
    """Keras' own export traces. None of our operators is left."""
    pytest.importorskip("onnx")
    pytest.importorskip("onnxscript")
    runtime = pytest.importorskip("onnxruntime")
    model = trained(functional(Ours(activation="relu")))
    path = str(tmp_path / "model.onnx")
    model.export(path, format="onnx", verbose=False)
    session = runtime.InferenceSession(path)
    (found,) = session.run(None, {session.get_inputs()[0].name: X.astype(np.float32)})
    np.testing.assert_allclose(model.predict(X, verbose=0), found, rtol=0, atol=1.1e-5)

"""The Keras layer in models: Keras' own tests, model.fit, torch.compile; other backends, no Keras."""

import os
import subprocess
import sys
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch

pytest.importorskip("keras")

import keras
from keras.src import layers as keras_layers
from keras.src import testing

from tests.modules.keras_layers import Ours, Theirs

ROOT = Path(__file__).resolve().parent.parent.parent

# Keras' own tests


class TestLayerHelper(testing.TestCase):  # type: ignore[misc]
    """Keras' helper for tests of layers: configuration, build, symbolic and eager calls, a training step."""

    def check(self, shape: tuple[int, ...], trainable: int, losses: int = 0, **arguments: Any) -> None:
        for training in (True, False, None):
            self.run_layer_test(
                Ours,
                init_kwargs=arguments,
                call_kwargs={"training": training},
                input_shape=shape,
                expected_output_shape=shape,
                expected_num_trainable_weights=trainable,
                expected_num_non_trainable_weights=2,
                expected_num_seed_generators=0,
                expected_num_losses=losses,
                supports_masking=True,
            )

    def test_vectors(self) -> None:
        self.check((4, 3), 2)

    def test_images(self) -> None:
        self.check((2, 4, 4, 3), 2, losses=2, beta_regularizer="l2", gamma_regularizer="l2")
        self.check((2, 3, 4, 4), 2, axis=1)

    def test_activations(self) -> None:
        for activation in ("relu", "softsign"):
            self.check((2, 4, 3), 2, activation=activation)

    def test_without_parameters(self) -> None:
        self.check((4, 3), 0, center=False, scale=False)
        self.check((4, 3), 1, center=False)


class LayersWithOurs(SimpleNamespace):
    """keras.layers with one class replaced."""

    BatchNormalization = Ours

    def __getattr__(self, name: str) -> Any:
        return getattr(keras_layers, name)


try:
    from keras.src.layers.normalization import batch_normalization_test as theirs
except ImportError:  # not every release includes its tests
    pass
else:

    class TestAsKerasTestsItsOwn(theirs.BatchNormalizationTest):  # type: ignore[misc]
        """All of Keras' tests of its layer, on ours."""

        @pytest.fixture(autouse=True)
        def ours_in_the_place_of_theirs(self, monkeypatch: pytest.MonkeyPatch) -> None:
            monkeypatch.setattr(theirs, "layers", LayersWithOurs())


# Training


def small_model(norm: Any, **compiling: Any) -> Any:
    keras.utils.set_random_seed(0)
    model = keras.Sequential([keras.Input((6,)), keras.layers.Dense(5), norm, keras.layers.Dense(1)])
    model.compile(optimizer=keras.optimizers.SGD(0.1), loss="mse", **compiling)
    return model


X = np.random.default_rng(0).standard_normal((64, 6)).astype("float32")
Y = X[:, :1] * X[:, 1:2]


def losses(model: Any, **how: Any) -> list[float]:
    history = model.fit(X, Y, batch_size=16, epochs=2, shuffle=False, verbose=0, **how).history
    return [*history["loss"], *history.get("val_loss", [])]


def assert_trains_alike(mine: Any, theirs: Any) -> None:
    """Over 8 steps, each of which multiplies a difference by less than 2: 2^8 times 16 roundings."""
    expected = losses(theirs, validation_data=(X, Y))
    np.testing.assert_allclose(losses(mine, validation_data=(X, Y)), expected, rtol=2**8 * 16 * 2**-24)


def test_fit_gives_the_losses_that_keras_gives() -> None:
    assert_trains_alike(small_model(Ours()), small_model(Theirs()))


@pytest.mark.slow
@pytest.mark.usefixtures("fresh_compiler")
def test_fit_under_torch_compile() -> None:
    """Also checks that the compiled program calls the operator."""
    model = small_model(Ours(activation="relu"), jit_compile=True)
    assert_trains_alike(model, small_model(keras.Sequential([Theirs(), keras.layers.Activation("relu")])))


@pytest.mark.usefixtures("fresh_compiler")
@pytest.mark.parametrize("shape", [(8, 5), (4, 3, 6, 5)])
def test_the_layer_itself_compiles_in_one_graph(shape: tuple[int, ...]) -> None:
    """fullgraph, as for call(). Keras' own __call__ has graph breaks."""
    compiled, eager = (Ours(activation="relu") for _ in range(2))
    x = torch.randn(shape, device=keras.ops.zeros(()).device)
    for layer in (compiled, eager):
        layer.build(shape)
    call = torch.compile(lambda x: compiled.call(x, training=True), fullgraph=True, backend="aot_eager")
    assert torch.equal(call(x), eager.call(x, training=True))
    assert torch.equal(compiled.moving_variance.value, eager.moving_variance.value)


# Elsewhere

ON_ANOTHER_BACKEND = """
import sys
import keras, numpy
from fused_bn.keras import BatchNormalization

x = numpy.random.default_rng(0).standard_normal((6, 4, 3)).astype("float32")

def model(*norm):
    keras.utils.set_random_seed(0)
    dense = keras.layers.Dense(5, use_bias=False)
    model = keras.Sequential([keras.Input((4, 3)), dense, *norm, keras.layers.Flatten()])
    model.compile(optimizer="sgd", loss="mse")
    return model

relu = keras.layers.Activation("relu")
mine, theirs = model(BatchNormalization(activation="relu")), model(keras.layers.BatchNormalization(), relu)
for training in (True, False):
    found, expected = (numpy.asarray(model(x, training=training)) for model in (mine, theirs))
    numpy.testing.assert_array_equal(found, expected)
if keras.config.backend() != "numpy":  # which cannot train
    for each in (mine, theirs):
        each.fit(x, numpy.ones((6, 20), numpy.float32), epochs=2, verbose=0)
# Compilers may round other graphs otherwise: two steps of at most 32 roundings.
for one, other in zip(mine.get_weights(), theirs.get_weights(), strict=True):
    numpy.testing.assert_allclose(one, other, rtol=64 * 2**-24, atol=64 * 2**-24)
print(keras.config.backend(), type(mine(x)).__module__)
"""


def python(code: str, **environment: str) -> subprocess.CompletedProcess[str]:
    """Runs `code` in a new process that finds this checkout."""
    paths = os.pathsep.join([environment.pop("first", ""), str(ROOT)]).lstrip(os.pathsep)
    return subprocess.run(
        [sys.executable, "-c", code],
        env={**os.environ, "PYTHONPATH": paths, **environment},
        capture_output=True,
        text=True,
        timeout=120,
    )


@pytest.mark.parametrize("backend", ["numpy", "jax"])
def test_on_another_backend_it_is_keras(backend: str) -> None:
    """Bit for bit."""
    pytest.importorskip(backend)
    done = python(ON_ANOTHER_BACKEND, KERAS_BACKEND=backend, JAX_PLATFORMS="cpu")
    assert done.returncode == 0, done.stderr
    assert done.stdout.startswith(f"{backend} {backend}")


@pytest.fixture
def without_keras(tmp_path: Path) -> str:
    """A folder with a keras that cannot be imported."""
    (tmp_path / "keras.py").write_text("raise ImportError('No module named keras')")
    return str(tmp_path)


def test_a_missing_keras_is_named(without_keras: str) -> None:
    done = python("import fused_bn, fused_bn.keras", first=without_keras)
    assert done.returncode == 1
    last = done.stderr.strip().splitlines()[-1]
    assert "fused_bn.keras cannot import Keras 3 (No module named keras)" in last
    assert "`pip install 'fused-bn[keras]'`" in last
    assert "KERAS_BACKEND=torch" in last


def test_fused_bn_itself_needs_no_keras() -> None:
    done = python("import sys, fused_bn; assert 'keras' not in sys.modules")
    assert done.returncode == 0, done.stderr

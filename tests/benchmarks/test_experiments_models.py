"""The experiments' networks: as published, and equal in both APIs, with our norms and the frameworks'."""

from functools import partial
from typing import Any

import numpy as np
import pytest
import torch
from torch import nn

pytest.importorskip("sklearn")
pytest.importorskip("keras")

import keras

import fused_bn
from benchmarks.experiments import data, keras_api, torch_api
from benchmarks.experiments.experiment import Experiment, Training, Variant
from benchmarks.experiments.layers import Conv, Dense, Lstm, Network, Norm, Sgd
from benchmarks.experiments.published import EXPERIMENTS, lenet
from benchmarks.lenet.model import lenet5
from tests.benchmarks.lenet_data import one_thread  # noqa: F401

pytestmark = pytest.mark.usefixtures("one_thread")

SHAPES = {
    "iris": (4,),
    "circles": (2,),
    "mnist-mlp": (28, 28, 1),
    "mnist-cnn": (28, 28, 1),
    "sequence": (28, 28),
    "conv": (28, 28, 1),
    "lenet": (32, 32, 1),
}
"""The shape of one example, channels last."""

CASES = [
    pytest.param(experiment, variant, id=f"{experiment.name}-{variant.id}")
    for experiment in EXPERIMENTS.values()
    for variant in experiment.variants
]


def channels_first(shape: tuple[int, ...]) -> tuple[int, ...]:
    return (shape[2], *shape[:2]) if len(shape) == 3 else shape


def give_weights(ours: nn.Sequential, theirs: Any) -> None:
    """Sets the weights of the Keras model to those of the PyTorch one."""
    rows: tuple[int, ...] | None = None  # (C, H, W) of the flattened input
    layers = iter([layer for layer in theirs.layers if layer.weights])
    shape = channels_first(theirs.input_shape[1:])
    for module in ours:
        if isinstance(module, nn.Flatten):
            rows = shape
        shape = tuple(module.eval()(torch.zeros(1, *shape)).shape[1:])
        found = weights(module, rows)
        if found:
            next(layers).set_weights(found)
            rows = None if isinstance(module, nn.Linear) else rows
    assert next(layers, None) is None


def weights(module: nn.Module, rows: tuple[int, ...] | None) -> list[Any]:
    """Weights in Keras' form. `rows` is the shape of the flattened images that the module reads."""
    found = {name: value.detach().numpy() for name, value in module.state_dict().items()}
    match module:
        case nn.Linear():
            kernel = found["weight"].T
            if rows is not None and len(rows) == 3:  # Keras flattens (H, W, C)
                kernel = kernel.reshape(*rows, -1).transpose(1, 2, 0, 3).reshape(kernel.shape)
            return [kernel, *([found["bias"]] if "bias" in found else [])]
        case nn.Conv2d():
            return [found["weight"].transpose(2, 3, 1, 0), *([found["bias"]] if "bias" in found else [])]
        case nn.BatchNorm1d() | nn.BatchNorm2d():
            own = [found["weight"], found["bias"]] if "weight" in found else []
            return [*own, found["running_mean"], found["running_var"]]
        case torch_api._LastOutput():
            biases = found["lstm.bias_ih_l0"] + found["lstm.bias_hh_l0"]
            return [found["lstm.weight_ih_l0"].T, found["lstm.weight_hh_l0"].T, biases]
    return []


@pytest.mark.parametrize(("experiment", "variant"), CASES)
@pytest.mark.parametrize("training", [False, True], ids=["evaluation", "training"])
def test_both_apis_build_the_same_network(experiment: Experiment, variant: Variant, training: bool) -> None:
    """Logits of a few float32 layers, of size about 1: 1e-4 is a hundred roundings of 2^-24 per layer.

    Norms divide by deviations that are down to 1/100 of the values, because images are mostly 0.
    """
    torch.manual_seed(0)
    shape = SHAPES[experiment.name]
    ours = torch_api.model(variant.network, channels_first(shape), "fused")
    theirs = keras_api.model(variant.network, shape, "fused")
    give_weights(ours, theirs)
    inputs = np.random.default_rng(0).uniform(size=(16, *shape)).astype(np.float32)
    images = torch.from_numpy(inputs)
    if images.dim() == 4:
        images = images.movedim(-1, 1)
    ours.train(training)
    with torch.no_grad():
        expected = ours(images).numpy()
        found = theirs(inputs, training=training).numpy()
    assert np.abs(expected).max() > 1e-3
    np.testing.assert_allclose(found, expected, rtol=1e-4, atol=1e-4 * np.abs(expected).max())


@pytest.mark.parametrize(("experiment", "variant"), CASES)
def test_every_norm_is_ours_unless_the_frameworks_is_asked_for(
    experiment: Experiment, variant: Variant
) -> None:
    norms = sum(isinstance(layer, Norm) for layer in variant.network)
    shape = channels_first(SHAPES[experiment.name])
    ours = torch_api.model(variant.network, shape, "fused")
    plain = torch_api.model(variant.network, shape, "framework")
    kinds = (fused_bn.BatchNorm1d, fused_bn.BatchNorm2d)
    assert sum(isinstance(module, kinds) for module in ours) == norms
    assert sum(isinstance(module, nn.BatchNorm1d | nn.BatchNorm2d) for module in plain) == norms
    assert not any(isinstance(module, kinds) for module in plain)


def test_options_of_a_norm_arrive_in_both_apis() -> None:
    layer = Norm("relu", momentum=0.95, epsilon=0.005, weight=0.9, bias_std=0.05)
    network: Network = [Dense(2000), layer]
    norm = torch_api.model(network, (4,), "fused")[-1]
    assert isinstance(norm, fused_bn.BatchNorm1d)
    assert norm.eps == 0.005
    assert norm.momentum == pytest.approx(0.05)
    assert norm.activation == "relu"
    theirs = keras_api.model(network, (4,), "fused").layers[-1]
    assert (theirs.momentum, theirs.epsilon) == (0.95, 0.005)
    assert theirs.activation is keras.activations.relu
    # For 2000 draws the deviation is within 0.05 / sqrt(2 * 2000) = 0.0008 of 0.05. The bound is six of
    # those.
    for weight, bias in (
        (norm.weight.detach().numpy(), norm.bias.detach().numpy()),
        [np.array(value) for value in theirs.get_weights()[:2]],
    ):
        np.testing.assert_array_equal(weight, np.float32(0.9))
        assert bias.std() == pytest.approx(0.05, abs=0.005)


def test_without_affine_there_is_nothing_to_learn() -> None:
    network = [Norm(affine=False)]
    assert not list(torch_api.model(network, (4,), "fused").parameters())
    assert not keras_api.model(network, (4,), "fused").trainable_weights


@pytest.mark.parametrize("norm", ["none", "tanh", "relu"])
def test_lenet_is_the_main_jobs(norm: Any) -> None:
    torch.manual_seed(0)
    kind = {
        "none": None,
        "tanh": fused_bn.BatchNorm2d,
        "relu": partial(fused_bn.BatchNorm2d, activation="relu"),
    }[norm]
    expected = lenet5(kind, tanh=norm != "relu")
    ours = torch_api.model(lenet.network(norm), (1, 32, 32), "fused")
    for name, value in ours.named_parameters():
        if name.endswith("bias") and value.dim() == 1 and norm == "none":
            assert torch.equal(value, torch.full_like(value, 0.01))
    kinds = (fused_bn.BatchNorm2d, nn.Conv2d, nn.Linear)
    described = [
        [repr(module) for module in model if isinstance(module, kinds)] for model in (ours, expected)
    ]
    assert described[0] == described[1]  # also momentum, eps and activation
    assert [tuple(value.shape) for value in ours.parameters()] == [
        tuple(value.shape) for value in expected.parameters()
    ]
    ours.load_state_dict(dict(zip(ours.state_dict(), expected.state_dict().values(), strict=True)))
    images = torch.rand(8, 1, 32, 32)
    assert torch.equal(ours.train()(images), expected.train()(images))


def test_layers_begin_the_same_with_norms_and_without() -> None:
    """A seed's variants differ only by the norm."""
    weights = []
    for variant in EXPERIMENTS["mnist-mlp"].variants:
        torch.manual_seed(0)
        built = torch_api.model(variant.network, (1, 28, 28), "fused")
        weights.append([module.weight for module in built if isinstance(module, nn.Linear)])
    for same in zip(*weights, strict=True):
        assert all(torch.equal(weight, same[0]) for weight in same)


LAYERS: dict[str, tuple[Network, tuple[int, ...]]] = {
    "dense": ([Dense(300)], (200,)),
    "he": ([Dense(300, kernel_initializer="he_uniform")], (200,)),
    "bias": ([Dense(300, bias=0.5)], (200,)),
    "conv": ([Conv(64, 5)], (6, 6, 8)),
    "lstm": ([Lstm(64)], (10, 100)),
}
"""Networks of one layer, and the shape of an example."""


@pytest.mark.parametrize("name", LAYERS)
def test_layers_begin_alike_in_both_apis(name: str) -> None:
    """The deviation of n >= 6400 uniform draws is within a relative 0.45 / sqrt(n) = 0.006.

    The bound is five of those. An orthogonal matrix varies less, and the largest draw is nearer to its bound.
    """
    network, shape = LAYERS[name]
    torch.manual_seed(0)
    keras.utils.set_random_seed(0)
    ours = weights(torch_api.model(network, channels_first(shape), "fused")[0], None)
    theirs = keras_api.model(network, shape, "fused").get_weights()
    for one, other in zip(ours, map(np.array, theirs), strict=True):
        assert one.shape == other.shape
        if one.ndim == 1:
            np.testing.assert_array_equal(one, other)
            continue
        assert one.std() == pytest.approx(other.std(), rel=0.03)
        if name != "lstm":
            assert np.abs(one).max() == pytest.approx(np.abs(other).max(), rel=0.03)


def test_evaluation_leaves_the_running_statistics_alone() -> None:
    """A norm uses its running statistics: after a first batch they are not the test part's own."""
    split = data.circles(0, None, None)
    network = torch_api.model([Norm("relu"), Dense(1)], (2,), "fused")
    network(torch.rand(8, 2))
    before = {name: value.clone() for name, value in network.state_dict().items()}
    torch_api._accuracy(network, *torch_api._tensors(split.parts["test"]))
    assert all(torch.equal(value, before[name]) for name, value in network.state_dict().items())


TRAINED = {"torch": torch_api.train, "keras": keras_api.train}


@pytest.mark.parametrize("api", TRAINED)
def test_training_learns_repeats_and_follows_the_frameworks_norm(api: str) -> None:
    """The first epoch's loss is the mean over 16 steps.

    The steps amplify roundings of 2^-24 by far less than 1000, so 1e-4 is enough.
    """
    split = data.circles(0, None, None)
    (variant,) = (v for v in EXPERIMENTS["circles"].variants if v.id == "after")
    steps: list[None] = []

    def train(norm: str, seed: int = 0) -> Any:
        return TRAINED[api](Training(variant, split, seed, 3, 32, norm), lambda: steps.append(None))

    curve, again, plain, other = train("fused"), train("fused"), train("framework"), train("fused", 1)
    assert len(steps) == 4 * 3 * 16
    assert curve.train_loss == again.train_loss
    assert curve.watched_accuracy == again.watched_accuracy
    assert curve.train_loss != other.train_loss
    assert curve.train_loss[0] == pytest.approx(plain.train_loss[0], rel=1e-4)
    assert curve.train_loss[-1] < curve.train_loss[0]
    assert curve.final["test"] == pytest.approx(curve.watched_accuracy[-1])
    assert set(curve.final) == {"train", "test"}
    assert curve.seconds > 0


@pytest.mark.parametrize("api", TRAINED)
def test_momentum_and_rate_of_the_optimiser_arrive(api: str) -> None:
    """Plain descent at rate 0 learns nothing. With momentum 0.9 training is ahead of training without."""
    split = data.circles(0, None, None)
    network = [Dense(20, "tanh"), Dense(1)]

    def losses(optimizer: Sgd) -> list[float]:
        variant = Variant("v", "", network, optimizer)
        found: list[float] = TRAINED[api](
            Training(variant, split, 0, 4, 500, "fused"), lambda: None
        ).train_loss
        return found

    still = losses(Sgd(0.0))
    assert max(still) - min(still) < 1e-6
    assert losses(Sgd(0.5, momentum=0.9))[-1] < losses(Sgd(0.5))[-1] < still[-1]

"""The Keras layer: Keras' results, closer to fp64, without copies. Otherwise it uses Keras' own layer."""

from collections.abc import Callable
from itertools import product
from typing import Any

import pytest
import torch
from torch import Tensor

pytest.importorskip("keras")

import keras

from benchmarks.memory import peak_bytes
from fused_bn.functional import batch_norm
from tests.cases import SMALL_SHAPES, make_tensors
from tests.modules.keras_layers import (
    DEVICE,
    FUSED,
    POLICIES,
    KerasCase,
    Ours,
    Theirs,
    options,
    run,
    same_bits,
    wrong_results,
)

SHAPES = (*SMALL_SHAPES, (4, 10, 29))
AXES = [(shape, axis) for shape in SHAPES for axis in (*range(len(shape)), -1)]


def layouts(shape: tuple[int, ...]) -> tuple[str, ...]:
    return ("contiguous", {4: "channels_last", 5: "channels_last_3d"}.get(len(shape), "contiguous"))


def randn(*shape: int, **options: Any) -> Tensor:
    return torch.randn(shape, device=DEVICE, **options)


# The option grid


@pytest.mark.parametrize("policy", POLICIES)
@pytest.mark.parametrize(("shape", "axis"), AXES, ids=str)
def test_option_grid(shape: tuple[int, ...], axis: int, policy: str) -> None:
    """Forward, gradients and moving variables for every combination of the constructor's options."""
    wrong = []
    for layout, scale, center, training in product(
        dict.fromkeys(layouts(shape)), (True, False), (True, False), (True, False)
    ):
        momentum, epsilon = (0.01, 1e-3) if scale else (0.3, 1e-5)
        case = KerasCase(
            *(shape, layout, *POLICIES[policy], scale, center),
            training=training,
            momentum=momentum,
            activation="none",
            eps=epsilon,
        )
        tensors = make_tensors(case, DEVICE.type)
        arguments = options(case, axis, policy)
        mine = run(case, tensors, Ours(**arguments), axis)
        theirs = run(case, tensors, Theirs(**arguments), axis)
        wrong += wrong_results(case, tensors, mine, theirs)
    assert not wrong, "\n".join(wrong)


@pytest.mark.needs_extension
@pytest.mark.parametrize("policy", POLICIES)
@pytest.mark.parametrize("activation", FUSED)
def test_fused_activations(activation: str, policy: str) -> None:
    """The operator's values and gradient of each activation, compared with Keras' layer and function."""
    wrong = []
    for shape, training in product(((5, 17, 3, 5), (6, 9)), (True, False)):
        dtypes = POLICIES[policy]
        case = KerasCase(shape, "contiguous", *dtypes, training=training, activation=FUSED[activation])
        tensors = make_tensors(case, DEVICE.type)
        arguments = options(case, 1, policy)
        function = keras.activations.get(activation)
        mine = run(case, tensors, Ours(activation=activation, **arguments), 1)
        theirs = run(case, tensors, Theirs(**arguments), 1, behind=function)
        wrong += wrong_results(case, tensors, mine, theirs)
    assert not wrong, "\n".join(wrong)


OTHER_ACTIVATIONS: dict[str, Callable[[], Any]] = {
    "name": lambda: "softsign",
    "softmax, along the axis": lambda: "softmax",
    "function": lambda: keras.ops.square,
    "layer": lambda: keras.layers.LeakyReLU(0.7),
}


@pytest.mark.parametrize("kind", OTHER_ACTIVATIONS)
@pytest.mark.parametrize("axis", [1, -1])
def test_other_activations_follow_the_norm(kind: str, axis: int) -> None:
    activation = OTHER_ACTIVATIONS[kind]()
    x = randn(4, 6, 5, 3)
    plain, active = Ours(axis=axis), Ours(axis=axis, activation=activation)
    assert same_bits(active(x, training=True), keras.activations.get(activation)(plain(x, training=True)))


def test_no_activation_and_unknown_ones() -> None:
    assert Ours(activation=None).activation is keras.activations.linear
    with pytest.raises(ValueError, match="no_such_activation"):
        Ours(activation="no_such_activation")


# Modes


def state(layer: Any) -> list[Tensor]:
    return [variable.value.detach().clone() for variable in layer.weights]


def ours_and_keras(x: Tensor, **arguments: Any) -> tuple[Any, Any]:
    """Our layer and Keras' with the same weights, none of them at its initial value."""
    mine, theirs = Ours(**arguments), Theirs(**arguments)
    for layer in (mine, theirs):
        layer.build(tuple(x.shape))
        generator = torch.Generator().manual_seed(1)
        for variable in layer.weights:
            variable.assign(0.5 + torch.rand(variable.shape, generator=generator))
    return mine, theirs


INFERENCE: tuple[dict[str, Any], ...] = (
    {},
    {"training": None},
    {"training": False},
    {"frozen": True, "training": True},
)


@pytest.mark.parametrize("how", INFERENCE, ids=str)
def test_inference_modes(how: dict[str, Any]) -> None:
    """By default, with training=False, or frozen: the moving statistics are used and do not change."""
    x = randn(8, 5, 4, 6)
    mine, theirs = ours_and_keras(x)
    how = dict(how)
    mine.trainable = theirs.trainable = not how.pop("frozen", False)
    before = state(mine)
    output = mine(x, **how)
    # 4 roundings in ours and 5 in Keras', of values of up to 6: 9 * 2^-24 * 6 = 3.2e-6.
    torch.testing.assert_close(output, theirs(x, **how), rtol=0, atol=3.3e-6)
    assert all(map(same_bits, state(mine), before))


def test_frozen_layers_pass_gradients_through_the_moving_statistics() -> None:
    x = randn(8, 5, requires_grad=True)
    mine, _ = ours_and_keras(x.detach())
    mine.trainable = False
    mine(x, training=True).sum().backward()
    slope = mine.gamma.value / (mine.moving_variance.value + mine.epsilon).sqrt()
    torch.testing.assert_close(x.grad, slope.detach().expand(8, 5))


def test_moving_statistics_follow_keras_for_many_steps() -> None:
    """The variance passes through the operator and back each time: no drift beyond one rounding per step.

    Both round at most 4 times a step, by 2^-24 of values of up to 30. A momentum of 0.9 keeps about ten
    steps: 2 * 4 * 10 * 2^-24 * 30 = 1.4e-4. The unbiased variance would be off by an eighth.
    """
    generator = torch.Generator().manual_seed(0)
    mine, theirs = Ours(momentum=0.9), Theirs(momentum=0.9)
    for _ in range(200):
        x = 3 * torch.randn(8, 5, generator=generator).to(DEVICE) + 1
        mine(x, training=True)
        theirs(x, training=True)
    for name in ("moving_mean", "moving_variance"):
        found, expected = (getattr(layer, name).value for layer in (mine, theirs))
        torch.testing.assert_close(found, expected, rtol=0, atol=1.4e-4)


def test_far_means_cost_no_digits() -> None:
    """Keras' own variance, a difference of squares, has no digits left here."""
    generator = torch.Generator().manual_seed(0)
    x = 1e4 + torch.randn(64, 3, dtype=torch.float64, generator=generator).to(DEVICE)
    x = x.float()
    mine, theirs = Ours(momentum=0.0), Theirs(momentum=0.0)
    mine(x, training=True)
    theirs(x, training=True)
    exact = x.double().var(0, correction=0)
    torch.testing.assert_close(mine.moving_variance.value.double(), exact, rtol=1e-6, atol=0)
    assert ((theirs.moving_variance.value - exact).abs() > 1e-2 * exact).any()


# Layouts


@pytest.fixture
def seen(monkeypatch: pytest.MonkeyPatch) -> list[Tensor]:
    """The inputs of the operator's calls."""
    inputs: list[Tensor] = []

    def spying(input: Tensor, *arguments: Any, **options: Any) -> Tensor:
        inputs.append(input)
        return batch_norm(input, *arguments, **options)

    monkeypatch.setattr("fused_bn.keras.batch_norm", spying)
    return inputs


@pytest.mark.parametrize("training", [True, False])
@pytest.mark.parametrize(
    ("axis", "view"),
    [(-1, (4 * 6 * 5, 32)), (3, (4 * 6 * 5, 32)), (1, (4, 6, 5, 32)), (2, (24, 5, 32)), (0, (1, 4, 960))],
)
def test_no_copies_of_row_major_inputs(
    seen: list[Tensor], axis: int, view: tuple[int, ...], training: bool
) -> None:
    """The channels_last kernels read it as (N * H * W, C)."""
    x = randn(4, 6, 5, 32)
    output = Ours(axis=axis)(x, training=training)
    (input,) = seen
    assert input.shape == view
    assert input.data_ptr() == x.data_ptr()
    assert input.is_contiguous()
    assert output.shape == x.shape
    assert output.is_contiguous()


def test_no_copies_of_images_that_a_convolution_left_channels_first(seen: list[Tensor]) -> None:
    x = randn(4, 32, 6, 5).movedim(1, -1)
    output = Ours()(x, training=True)
    (input,) = seen
    assert input.shape == (4, 32, 6, 5)
    assert input.data_ptr() == x.data_ptr()
    assert input.is_contiguous()
    assert output.shape == x.shape
    assert output.stride() == x.stride()


@pytest.mark.needs_extension
@pytest.mark.parametrize("axis", [-1, 1])
def test_the_operator_makes_no_copy_either(axis: int) -> None:
    """At most one tensor of the input's size is made: the output."""
    x = randn(8, 64, 64, 64)
    layer = Ours(axis=axis)
    layer(x)
    assert peak_bytes(lambda: layer(x, training=True), DEVICE) < 1.1 * x.nbytes


# What Keras computes


def test_devices_other_than_the_layers_are_left_to_keras() -> None:
    layer = Ours()
    layer.build((4, 5))
    assert layer(torch.empty(4, 5, device="meta")).shape == (4, 5)


FALLBACKS: dict[str, tuple[Tensor, dict[str, Any], dict[str, Any]]] = {
    "mask": (randn(4, 7, 5), {}, {"mask": torch.arange(28, device=DEVICE).view(4, 7) % 3 > 0}),
    "rank 6": (randn(2, 3, 2, 3, 2, 5), {}, {}),
    "one value a channel": (randn(1, 5), {}, {}),
    "one value a channel, axis 1": (randn(1, 5, 1, 1), {"axis": 1}, {}),
    "empty batch": (randn(0, 5), {}, {}),
    "renorm": (randn(6, 5), {"renorm": True}, {}),
    "momentum 1": (randn(6, 5), {"momentum": 1.0}, {}),
    "momentum beyond 1": (randn(6, 5), {"momentum": 1.5}, {}),
    "epsilon 0": (randn(6, 5), {"epsilon": 0.0}, {}),
    "another float": (randn(6, 5, dtype=torch.float64), {"autocast": False}, {}),
    "integers": (torch.arange(30, device=DEVICE).view(6, 5), {"autocast": False}, {}),
}


@pytest.mark.parametrize("kind", FALLBACKS)
def test_fallbacks_are_keras_to_the_bit(kind: str, monkeypatch: pytest.MonkeyPatch) -> None:
    x, arguments, call = FALLBACKS[kind]
    if "renorm" in arguments and not hasattr(Theirs(), "renorm"):
        pytest.skip("this Keras has no batch renormalisation")
    mine, theirs = ours_and_keras(x, **arguments)
    mine.activation = keras.activations.tanh
    monkeypatch.setattr("fused_bn.keras.batch_norm", None)
    output, expected = (layer(x, training=True, **call) for layer in (mine, theirs))
    assert same_bits(output, keras.activations.tanh(expected))
    assert all(map(same_bits, state(mine), state(theirs)))


def test_a_mask_of_a_wrong_shape_is_refused_in_keras_words() -> None:
    with pytest.raises(ValueError, match="The mask provided should be one dimension less"):
        Ours()(randn(4, 5), mask=torch.ones(4, 5))


def test_masks_go_on_to_the_next_layer() -> None:
    embedded = keras.layers.Embedding(5, 3, mask_zero=True)(torch.tensor([[1, 2, 0]], device=DEVICE))
    assert Ours()(embedded)._keras_mask.tolist() == [[True, True, False]]


def test_synchronized_is_refused_in_keras_words() -> None:
    with pytest.raises(ValueError, match="only supported with the TensorFlow backend"):
        Ours(synchronized=True)


def test_calls_without_side_effects() -> None:
    """Keras' stateless_call returns the new values and writes none."""
    x = randn(6, 5)
    mine, theirs = ours_and_keras(x)
    before = state(mine)
    results = [
        layer.stateless_call(
            [variable.value for variable in layer.trainable_variables],
            [variable.value for variable in layer.non_trainable_variables],
            x,
            training=True,
        )
        for layer in (mine, theirs)
    ]
    assert all(map(same_bits, state(mine), before))
    for found, expected in zip(*(result[1] for result in results), strict=True):
        torch.testing.assert_close(found, expected)


def test_regularisers_and_constraints() -> None:
    arguments = {"gamma_regularizer": "l2", "beta_regularizer": "l1", "gamma_constraint": "non_neg"}
    x = randn(6, 5)
    mine, theirs = ours_and_keras(x, **arguments)
    for layer in (mine, theirs):
        layer(x, training=True)
    assert len(mine.losses) == 2
    assert [loss.item() for loss in mine.losses] == [loss.item() for loss in theirs.losses]
    assert isinstance(mine.gamma.constraint, keras.constraints.NonNeg)

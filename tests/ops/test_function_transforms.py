"""torch.func: grad, vjp, jacrev, hessian, vmap and combinations, compared with PyTorch's own layers."""

import copy
from collections.abc import Callable
from itertools import product
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.func import functional_call, grad, grad_and_value, hessian, jacrev, stack_module_state, vjp, vmap

from fused_bn._activations import ACTIVATIONS
from tests.cases import present
from tests.twins import FP64_TOLERANCE, Original, assert_near, assert_same_buffers, batch, ours_and_original

pytestmark = pytest.mark.needs_extension  # the fallback is PyTorch and has its limits

MODES: dict[str, dict[str, Any]] = {
    "evaluation": {},
    "frozen": {"frozen": True},
    "training without statistics": {"track_running_stats": False},
}


def pair(mode: str, activation: str, **options: Any) -> tuple[nn.Module, Original]:
    ours, theirs = ours_and_original(activation=activation, **MODES[mode], **options)
    return ours.train(mode != "evaluation"), theirs.train(mode == "training without statistics")


def small(count: int = 1) -> Tensor:
    """A small input, as Hessians need."""
    generator = torch.Generator().manual_seed(1)
    return torch.randn(4, 3, 6, 2, 1, generator=generator, dtype=torch.float64)[:count] * 3


def cubes(module: Callable[..., Tensor]) -> Callable[..., Tensor]:
    return lambda *given: module(*given).pow(3).sum()


def parameters_of(module: nn.Module) -> dict[str, Tensor]:
    return {name: value.detach() for name, value in module.named_parameters()}


def gradients_of_parameters(module: nn.Module) -> list[Tensor]:
    def loss(parameters: dict[str, Tensor]) -> Tensor:
        output: Tensor = functional_call(module, parameters, (small()[0],))
        return output.pow(3).sum()

    return list(grad(loss)(parameters_of(module)).values())


def per_sample_gradients(module: nn.Module) -> list[Tensor]:
    """vmap over grad over parameters, as for differential privacy. Each sample is a batch of its own."""

    def loss(parameters: dict[str, Tensor], x: Tensor) -> Tensor:
        output: Tensor = functional_call(module, parameters, (x,))
        return output.pow(3).sum()

    return list(vmap(grad(loss), in_dims=(None, 0))(parameters_of(module), small(4)).values())


TRANSFORMS: dict[str, Callable[[nn.Module], list[Tensor]]] = {
    "grad": lambda module: [grad(cubes(module))(small()[0])],
    "grad of the residual": lambda module: list(grad(cubes(module), argnums=(0, 1))(*small(2))),
    "grad_and_value": lambda module: list(grad_and_value(cubes(module))(small()[0])),
    "vjp": lambda module: list(vjp(module, small()[0])[1](torch.ones_like(small()[0]).cumsum(0))),
    "jacrev": lambda module: [jacrev(module)(small()[0])],
    "hessian": lambda module: [hessian(cubes(module))(small()[0])],
    "grad of grad": lambda module: [grad(lambda x: grad(cubes(module))(x).square().sum())(small()[0])],
    "vmap": lambda module: [vmap(module)(small(4))],
    "vmap with a residual": lambda module: [vmap(module)(small(4), small(4).flip(0))],
    "vmap of the residual alone": lambda module: [vmap(module, (None, 0))(small()[0], small(4))],
    "vmap along another dimension": lambda module: [vmap(module, 1, 2)(small(4).transpose(0, 1))],
    "vmap of vmap": lambda module: [vmap(vmap(module))(small(4).unflatten(0, (2, 2)))],
    "vmap of grad": lambda module: [vmap(grad(cubes(module)))(small(4))],
    "grad of vmap": lambda module: [grad(cubes(vmap(module)))(small(4))],
    "grad of parameters": gradients_of_parameters,
    "per-sample gradients": per_sample_gradients,
}


@pytest.mark.parametrize("mode", MODES)
@pytest.mark.parametrize("transform", TRANSFORMS)
def test_transforms_follow_the_original(transform: str, mode: str) -> None:
    """Activations with a kink, without one, and smooth. Parameters and buffers stay unchanged."""
    for activation in ("none", "relu", "gelu"):
        ours, theirs = pair(mode, activation)
        before = copy.deepcopy(ours.state_dict())
        found, expected = TRANSFORMS[transform](ours), TRANSFORMS[transform](theirs)
        # Third powers of values up to 10 have derivatives a hundred times as large.
        assert_near(found, expected, 100 * FP64_TOLERANCE)
        assert all(map(torch.equal, before.values(), ours.state_dict().values()))


@pytest.mark.parametrize("activation", ACTIVATIONS)
def test_every_activation_is_transformed(activation: str) -> None:
    for mode, options in product(MODES, ({}, {"bias": False}, {"affine": False})):
        ours, theirs = pair(mode, activation, **options)
        for transform in ("grad of the residual", "vmap of grad"):
            found, expected = TRANSFORMS[transform](ours), TRANSFORMS[transform](theirs)
            assert_near(found, expected, 100 * FP64_TOLERANCE)


@pytest.mark.parametrize("momentum", [0.1, None])
@pytest.mark.parametrize("transform", ["grad", "grad of the residual", "vjp", "jacrev"])
def test_one_transform_in_training_moves_the_statistics_once(transform: str, momentum: float | None) -> None:
    """Counts as a call without it does. nn.BatchNorm2d raises here, because it counts in a separate call."""
    ours, theirs = ours_and_original(momentum=momentum)
    with pytest.raises(RuntimeError, match="would mutate a captured Tensor"):
        TRANSFORMS[transform](theirs)
    copied = copy.deepcopy(ours)
    for count in (1, 2):
        TRANSFORMS[transform](ours)
        copied(small()[0])
        assert_same_buffers(ours, copied)
        assert ours.num_batches_tracked == count


def test_gradients_in_training_are_those_of_autograd() -> None:
    ours, _ = ours_and_original()
    x, residual, _ = batch()
    found = grad(cubes(ours), argnums=(0, 1))(x, residual)
    given = [x.requires_grad_(), residual.requires_grad_()]
    assert_near(found, torch.autograd.grad(cubes(ours)(*given), given), 100 * FP64_TOLERANCE)


VMAPS = ["vmap", "vmap with a residual", "vmap of vmap", "vmap of grad", "grad of vmap"]


@pytest.mark.parametrize("momentum", [0.1, None])
@pytest.mark.parametrize("transform", VMAPS)
def test_vmap_in_training_raises_what_nn_batchnorm_raises(transform: str, momentum: float | None) -> None:
    """One set of statistics for many batches: refused with PyTorch's text, and nothing is counted."""
    ours, theirs = ours_and_original(momentum=momentum)
    before = copy.deepcopy(ours.state_dict())
    texts = []
    for module in (theirs, ours):
        with pytest.raises(RuntimeError) as caught:
            TRANSFORMS[transform](module)
        texts.append(str(caught.value).replace("add_.Tensor", "add_.Scalar"))
    # Inside a grad, nn.BatchNorm2d complains about the counter; ours about the statistics.
    assert texts[0] == texts[1] or transform == "vmap of grad"
    assert "grad" in transform or "track_running_stats" in texts[1]
    assert all(map(torch.equal, before.values(), ours.state_dict().values()))


@pytest.mark.parametrize("transform", ["grad of grad", "hessian"])
def test_nested_transforms_in_training_are_refused_and_change_nothing(transform: str) -> None:
    """Inside two transforms torch allows no write to the counter. The statistics must not change either."""
    for module in ours_and_original():
        before = copy.deepcopy(module.state_dict())
        with pytest.raises(RuntimeError, match="would mutate a captured Tensor"):
            TRANSFORMS[transform](module)
        assert all(map(torch.equal, before.values(), module.state_dict().values()))


def test_statistics_given_to_functional_call_are_those_that_move() -> None:
    ours, _ = ours_and_original()
    before = copy.deepcopy(ours.state_dict())
    given = {name: value.clone() for name, value in ours.state_dict().items()}
    x, residual, _ = batch()
    functional_call(ours, given, (x, residual))
    assert all(map(torch.equal, before.values(), ours.state_dict().values()))
    ours(x, residual)
    for name, value in ours.named_buffers():
        torch.testing.assert_close(given[name], value, rtol=FP64_TOLERANCE, atol=FP64_TOLERANCE)


@pytest.mark.parametrize("mode", MODES)
def test_an_ensemble_is_the_models_one_by_one(mode: str) -> None:
    """stack_module_state and vmap over the models, with one batch for all or one for each."""
    models = []
    for scale in (1, 2, 3):
        model, _ = pair(mode, "silu")
        with torch.no_grad():
            present(model.get_parameter("weight")).mul_(scale)
        models.append(model)
    parameters, buffers = stack_module_state(models)

    def call(parameters: Any, buffers: Any, x: Tensor, residual: Tensor) -> Tensor:
        output: Tensor = functional_call(models[0], (parameters, buffers), (x, residual))
        return output

    x = small(3)
    for in_dims in ((0, 0, None, None), (0, 0, 0, None), (0, 0, 0, 0)):
        given = [x if dim == 0 else x[0] for dim in in_dims[2:]]
        found = vmap(call, in_dims)(parameters, buffers, *given)
        for i, model in enumerate(models):
            alone = model(*(x[i] if dim == 0 else x[0] for dim in in_dims[2:]))
            assert_near([found[i]], [alone])


def test_an_ensemble_in_training_moves_each_models_statistics() -> None:
    """As with nn.BatchNorm2d, stacked buffers may be written, and each model's are."""
    results: list[list[Tensor]] = []
    for module in ours_and_original():
        models = [copy.deepcopy(module) for _ in range(2)]
        parameters, buffers = stack_module_state(models)

        def call(parameters: Any, buffers: Any, x: Tensor, model: nn.Module = models[0]) -> Tensor:
            output: Tensor = functional_call(model, (parameters, buffers), (x,))
            return output

        output = vmap(call)(parameters, buffers, small(2))
        results.append([output, *buffers.values()])
    assert_near(results[0], results[1])


def test_a_transform_of_a_compiled_module_is_the_eager_one() -> None:
    ours, _ = pair("evaluation", "silu")
    expected = grad(cubes(ours))(small()[0])
    compiled = torch.compile(lambda x: grad(cubes(ours))(x), backend="aot_eager", fullgraph=True)
    assert_near([compiled(small()[0])], [expected])

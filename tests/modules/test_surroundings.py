"""PyTorch's features around a module: hooks, parametrisations, autocast, casts, copies, modes, profiles."""

import copy
import io
import pickle
from collections.abc import Callable, Iterator
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.nn.utils import parametrize, prune
from torch.profiler import ProfilerActivity, profile

import fused_bn
from fused_bn._activations import ActivationName
from tests.cases import HALF_DTYPES, present, same_bits
from tests.modules.test_module import CASTS
from tests.twins import Original, assert_near, assert_same_buffers, batch, ours_and_original, step


class Exponential(nn.Module):
    def forward(self, weight: Tensor) -> Tensor:
        return weight.exp()


def norm_of(module: nn.Module) -> nn.Module:
    return module.norm if isinstance(module, Original) else module


@pytest.mark.parametrize("names", [("weight",), ("bias",), ("weight", "bias")], ids="-".join)
def test_parametrised_parameters_are_read_through_their_parametrisation(
    names: tuple[str, ...], device: str
) -> None:
    """Values, the original parameters' gradients, and the names in the state_dict. Also after removal."""
    ours, theirs = ours_and_original(device=device)
    for module in (ours, theirs):
        for name in names:
            parametrize.register_parametrization(norm_of(module), name, Exponential())
    given = batch(device=device)
    assert_near(step(ours, *given), step(theirs, *given))
    assert list(ours.state_dict()) == list(theirs.norm.state_dict())
    for module in (ours, theirs):
        for name in names:
            parametrize.remove_parametrizations(norm_of(module), name)
    assert_near(step(ours, *given), step(theirs, *given))
    assert type(ours) is fused_bn.BatchNorm2d


def test_pruned_weights_are_those_used(device: str) -> None:
    """Pruning replaces the parameter by a plain tensor, and recomputes it before each call."""
    ours, theirs = ours_and_original(device=device)
    for module in (ours, theirs):
        prune.l1_unstructured(norm_of(module), "weight", amount=2)
    for seed in range(2):
        given = batch(seed=seed, device=device)
        mine, other = step(ours, *given), step(theirs, *given)
        assert_near(mine, other)
    assert torch.count_nonzero(torch.as_tensor(ours.weight)) == 4


@pytest.mark.parametrize("by_name", [False, True], ids=["by position", "by name"])
def test_hooks_see_and_change_what_nn_modules_show_them(by_name: bool, device: str) -> None:
    """Forward hooks get the residual however it was passed. Backward hooks get its gradient."""
    ours, _ = ours_and_original(activation="silu", device=device)
    seen: dict[str, Any] = {}
    x, residual, grad_output = batch(device=device)
    expected = step(copy.deepcopy(ours), x + 1, residual, 2 * grad_output)

    def before(_: nn.Module, args: Any, kwargs: Any) -> Any:
        seen["before"] = (len(args), list(kwargs))
        return (args[0] + 1, *args[1:]), kwargs

    def behind(_: nn.Module, args: Any, kwargs: Any, output: Tensor) -> Tensor:
        seen["behind"] = (len(args), list(kwargs))
        return 2 * output

    def backward(_: nn.Module, grad_input: Any, grad_output: Any) -> None:
        seen["backward"] = (len(grad_input), len(grad_output))

    ours.register_forward_pre_hook(before, with_kwargs=True)
    ours.register_forward_hook(behind, with_kwargs=True)
    ours.register_full_backward_hook(backward)
    ours.register_full_backward_pre_hook(lambda *_: seen.update(first=True))
    given = [t.detach().requires_grad_() for t in (x, residual)]
    output = ours(given[0], residual=given[1]) if by_name else ours(*given)
    output.backward(grad_output)
    arguments = (1, ["residual"]) if by_name else (2, [])
    assert seen == {
        "before": arguments,
        "behind": arguments,
        "backward": (arguments[0], 1),  # torch wraps positional arguments
        "first": True,
    }
    found = [output.detach() / 2, *(t.grad for t in given), *(p.grad for p in ours.parameters())]
    assert all(map(same_bits, found, expected))


def two_convolutions(norm: nn.Module, device: str) -> nn.ModuleList:
    """Without biases: before a norm their gradients are zero up to roundings."""
    torch.manual_seed(0)
    return nn.ModuleList([*(nn.Conv2d(3, 6, 3, bias=False) for _ in range(2)), norm]).to(device)


@pytest.mark.parametrize("dtype", HALF_DTYPES, ids=lambda dtype: str(dtype)[6:])
@pytest.mark.parametrize("training", [True, False], ids=["training", "evaluation"])
def test_autocast_of_a_residual_block(training: bool, dtype: torch.dtype, device: str) -> None:
    """Two convolutions return half-precision tensors. Output, gradients and statistics are the original's."""
    results = []
    for norm in (
        fused_bn.BatchNorm2d(6, activation="relu"),
        Original(nn.BatchNorm2d(6), "relu"),
    ):
        layers = two_convolutions(norm, device).train(training)
        one, other, _ = layers
        x = torch.randn(4, 3, 9, 9, generator=torch.Generator().manual_seed(1)).to(device)
        with torch.autocast(device, dtype=dtype):
            output = norm(one(x), other(x))
        assert output.dtype == dtype
        output.float().square().mean().backward()
        gradients = [p.grad for p in layers.parameters()]
        results.append((output.detach(), gradients, list(norm.buffers())))
    (mine, gradients, buffers), (theirs, their_gradients, their_buffers) = results
    bits = CASTS[dtype]
    torch.testing.assert_close(mine, theirs, rtol=bits, atol=bits)
    for a, b in zip(gradients, their_gradients, strict=True):
        assert present(a).dtype == torch.float32
        # 196 terms with a relative error of that each, of random sign
        torch.testing.assert_close(a, b, rtol=8 * bits, atol=8 * bits * float(present(b).abs().max()))
    assert_near(buffers, their_buffers, 2.0**-10)  # fp32 sums of equal half-precision values


@pytest.mark.parametrize("training", [True, False], ids=["training", "evaluation"])
@pytest.mark.parametrize("activation", ["none", "relu", "silu"])
def test_a_residual_of_another_dtype_is_one_clear_error(
    activation: ActivationName, training: bool, device: str
) -> None:
    """Autocast can make the input bfloat16 and leave the residual float32. Nothing is counted."""
    norm = fused_bn.BatchNorm2d(6, activation=activation).to(device).train(training)
    conv = nn.Conv2d(3, 6, 3, padding=1).to(device)
    x = torch.randn(4, 3, 9, 9, device=device)
    residual = torch.randn(4, 6, 9, 9, device=device)
    with (
        torch.autocast(device, dtype=torch.bfloat16),
        pytest.raises(
            RuntimeError, match=r"residual is of .*[Ff]loat.*, but the input is of .*[Bb][Ff]loat16"
        ),
    ):
        norm(conv(x), residual)
    assert norm.num_batches_tracked == 0
    assert torch.equal(present(norm.running_mean), torch.zeros(6, device=device))


@pytest.mark.parametrize("dtype", CASTS, ids=lambda dtype: str(dtype)[6:])
@pytest.mark.parametrize("activation", ["relu", "gelu"])
def test_cast_modules_with_a_residual_follow_the_original(
    activation: str, dtype: torch.dtype, device: str
) -> None:
    """.double(), .half() and .bfloat16() of a trained module: dtype and values of the output and buffers."""
    ours, theirs = ours_and_original(activation=activation, device=device)
    ours, theirs = ours.to(dtype), theirs.to(dtype)
    x, residual, _ = batch(device=device, dtype=dtype)
    for training in (True, False):
        mine, other = ours.train(training)(x, residual), theirs.train(training)(x, residual)
        assert mine.dtype == dtype
        # PyTorch rounds to `dtype` in each of three steps, ours once. Values are up to 16.
        torch.testing.assert_close(mine, other, rtol=CASTS[dtype], atol=8 * CASTS[dtype])
    assert_same_buffers(ours, theirs, CASTS[dtype])


def filled_with_3(parameter: Tensor) -> None:
    nn.init.constant_(parameter, 3)


def through_a_file(module: nn.Module) -> nn.Module:
    file = io.BytesIO()
    torch.save(module, file)
    file.seek(0)
    return torch.load(file, weights_only=False)


COPIES: dict[str, Callable[[nn.Module], nn.Module]] = {
    "deepcopy": copy.deepcopy,
    "pickle": lambda module: pickle.loads(pickle.dumps(module)),
    "torch.save": through_a_file,
}


@pytest.mark.parametrize("way", COPIES)
def test_copies_keep_every_option(way: str) -> None:
    """Copies keep their initialisers, which a later reset_parameters needs."""
    norm = fused_bn.BatchNorm2d(
        6, activation="elu", activation_param=0.5, bias=False, weight_init=filled_with_3, frozen=True
    )
    copied = COPIES[way](norm)
    assert repr(copied) == repr(norm)
    x, residual, _ = batch(dtype=torch.float32)
    assert torch.equal(copied(x, residual), norm(x, residual))
    nn.init.zeros_(present(copied.get_parameter("weight")))
    copied.reset_parameters()  # type: ignore[operator]
    assert (copied.get_parameter("weight") == 3).all()
    assert copied.get_buffer("running_mean").data_ptr() != present(norm.running_mean).data_ptr()


def test_modules_pickled_before_they_had_options_run() -> None:
    """Options that an older file lacks have their defaults."""
    norm = fused_bn.BatchNorm2d(6)
    for name in ("activation", "activation_param", "weight_init", "bias_init", "frozen"):
        del norm.__dict__[name]
    old = pickle.loads(pickle.dumps(norm))
    x, residual, _ = batch(dtype=torch.float32)
    assert torch.equal(old(x, residual), fused_bn.BatchNorm2d(6)(x, residual))
    old.reset_parameters()
    assert repr(old) == repr(fused_bn.BatchNorm2d(6))


@pytest.mark.parametrize("training", [True, False], ids=["training", "evaluation"])
def test_inference_mode_gives_the_same_bits(training: bool, device: str) -> None:
    """Modules made outside and inside inference mode train and evaluate there like any other."""
    ours, _ = ours_and_original(device=device)
    x, residual, _ = batch(device=device)
    with torch.inference_mode():
        inside = copy.deepcopy(ours).train(training)
        assert inside.get_parameter("weight").is_inference()
        found = [inside(x, residual), *inside.buffers()]
        again = copy.deepcopy(ours)
    ours.train(training)
    with torch.inference_mode():
        outside = ours(x, residual)
    assert again.get_parameter("weight").is_inference()
    assert all(map(same_bits, found, [outside, *ours.buffers()]))


@pytest.mark.needs_extension
def test_statistics_made_in_inference_mode_are_refused_outside_it_and_do_not_move(device: str) -> None:
    """As nn.BatchNorm2d, it refuses them before anything is written. Evaluation without gradients runs."""
    with torch.inference_mode():
        modules: list[nn.Module] = [kind(6, device=device) for kind in (fused_bn.BatchNorm2d, nn.BatchNorm2d)]
    x, _, _ = batch(device=device, dtype=torch.float32)
    for norm in modules[::-1]:
        before = {name: value.clone() for name, value in norm.state_dict().items()}
        for enabled in (True, False):
            with (
                torch.set_grad_enabled(enabled),
                pytest.raises(RuntimeError, match="Inplace update to inference"),
            ):
                norm(x)
    assert all(torch.equal(before[name], value) for name, value in norm.state_dict().items())
    with torch.no_grad():
        assert_near([modules[0].eval()(x)], [modules[1].eval()(x)], 1e-5)  # some 50 roundings of fp32


@pytest.fixture
def _deterministic() -> Iterator[None]:
    torch.use_deterministic_algorithms(True)
    yield
    torch.use_deterministic_algorithms(False)


@pytest.mark.usefixtures("_deterministic")
@pytest.mark.parametrize("activation", ["relu", "silu"])
def test_deterministic_mode_changes_nothing(activation: str, device: str) -> None:
    """Nothing here is nondeterministic: no error, no warning, the same bits."""
    ours, _ = ours_and_original(activation=activation, device=device)
    copied = copy.deepcopy(ours)
    given = batch(device=device)
    found = step(ours, *given)
    torch.use_deterministic_algorithms(False)
    assert all(map(same_bits, found, step(copied, *given)))


@pytest.mark.needs_extension
def test_profiles_name_operators_and_autograd_nodes(device: str) -> None:
    """The profile shows the operators' names, and the autograd nodes without C++'s anonymous namespaces."""
    norm = fused_bn.BatchNorm2d(6, activation="relu").to(device)
    x, residual, _ = batch(device=device, dtype=torch.float32)
    with profile(activities=[ProfilerActivity.CPU]) as recorded:
        y = norm(x, residual)
        y.sum().backward()
    names = {event.name for event in recorded.events()}
    operators = {name for name in names if name.startswith("fused_bn::")}
    assert operators == {
        "fused_bn::" + name for name in ("batch_norm", "batch_norm_forward", "batch_norm_backward")
    }
    node = "torch::autograd::CppNode<fused_bn::BatchNorm>"
    assert y.grad_fn is not None
    assert y.grad_fn.name() == node
    assert node in names
    assert not any("anonymous" in name for name in names)


@pytest.mark.needs_extension
@pytest.mark.parametrize("training", [True, False], ids=["training", "evaluation"])
def test_one_call_is_one_operator_and_allocations(training: bool) -> None:
    """Another name would cost a tiny call a tenth of its time."""
    norm = fused_bn.BatchNorm2d(6, activation="relu").train(training)
    x, _, _ = batch(dtype=torch.float32)
    with torch.no_grad(), profile(activities=[ProfilerActivity.CPU]) as recorded:
        norm(x)
    names = {event.name for event in recorded.events()}
    training_calls = {"fused_bn::batch_norm", "fused_bn::batch_norm_forward"}
    calls = training_calls if training else {"fused_bn::batch_norm_inference"}
    assert names == {*calls, "aten::empty_like", "aten::empty"}


@pytest.mark.needs_extension
def test_anomaly_detection_points_at_the_node(device: str) -> None:
    """The error for a NaN in backward has the name of the node that made it."""
    norm = fused_bn.BatchNorm2d(6, eps=0.5).to(device)
    x, _, grad_output = batch(device=device, dtype=torch.float32)
    x.requires_grad_()
    grad_output[0, 0, 0, 0] = float("inf")  # inf - inf
    with (
        torch.autograd.set_detect_anomaly(True),
        pytest.warns(UserWarning, match=r"Error detected in torch::autograd::CppNode<fused_bn::BatchNorm>"),
        pytest.raises(RuntimeError, match=r"CppNode<fused_bn::BatchNorm>.* returned nan"),
    ):
        norm(x).backward(grad_output)

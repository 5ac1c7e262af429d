"""The contract of nn.BatchNorm: the same misuse gives the same error, and a refused call changes nothing."""

import os
import re
from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F

import fused_bn
from fused_bn._activations import ActivationName
from fused_bn._extension import DISABLE_VARIABLE
from tests.cases import HAS_EXTENSION, NEWER_TORCH, present
from tests.reference import DEMANDED_RUNNING

MODULES = {
    "1d": (fused_bn.BatchNorm1d, nn.BatchNorm1d),
    "2d": (fused_bn.BatchNorm2d, nn.BatchNorm2d),
    "3d": (fused_bn.BatchNorm3d, nn.BatchNorm3d),
}


def test_the_compiled_extension_is_what_is_tested() -> None:
    """Without the extension most of this suite skips, so its absence is an error unless requested."""
    if os.environ.get(DISABLE_VARIABLE, "0") not in ("", "0"):
        pytest.skip(f"{DISABLE_VARIABLE} is set")
    assert HAS_EXTENSION


@dataclass(frozen=True)
class Call:
    """The arguments of F.batch_norm as functions of the device, so that they can stand in a grid."""

    input: Callable[[], Tensor] = lambda: torch.randn(2, 3, 4, 4)
    running_mean: Callable[[], Tensor | None] = lambda: torch.full((3,), 0.25)
    running_var: Callable[[], Tensor | None] = lambda: torch.full((3,), 4.0)
    weight: Callable[[], Tensor | None] = lambda: torch.ones(3)
    bias: Callable[[], Tensor | None] = lambda: torch.zeros(3)
    training: bool = True
    momentum: float = 0.1
    eps: float = 1e-5

    def tensors(self) -> tuple[Tensor, Tensor | None, Tensor | None, Tensor | None, Tensor | None]:
        return (self.input(), self.running_mean(), self.running_var(), self.weight(), self.bias())


def ones(*shape: int, **options: Any) -> Callable[[], Tensor]:
    return lambda: torch.ones(shape, **options)


def nothing() -> None:
    return None


def raised(function: Callable[[], object]) -> tuple[type[Exception], str]:
    """Type and first line of the error of `function`. torch may append a C++ stack."""
    with pytest.raises(Exception) as caught:  # noqa: PT011  (any type: it is compared)
        function()
    return caught.type, str(caught.value).splitlines()[0]


def refused(call: Call) -> tuple[type[Exception], str]:
    """The error of our function for `call`, after checking that buffers and counter are unchanged."""
    x, running_mean, running_var, weight, bias = call.tensors()
    counter = torch.tensor(7)
    buffers = [tensor for tensor in (running_mean, running_var, counter) if tensor is not None]
    before = [(tensor.clone(), tensor._version) for tensor in buffers]
    for activation in ("none", "relu"):
        error = raised(
            lambda activation=activation: fused_bn.functional.batch_norm(  # type: ignore[misc]
                x,
                running_mean,
                running_var,
                weight,
                bias,
                call.training,
                call.momentum,
                call.eps,
                activation=activation,
                num_batches_tracked=counter,
            )
        )
    for tensor, (values, version) in zip(buffers, before, strict=True):
        assert tensor.device.type == "meta" or torch.equal(tensor, values)
        assert tensor._version == version
    return error


WRONG_ARGUMENTS = {
    "running_mean of 4": Call(running_mean=ones(4)),
    "running_var of 4": Call(running_var=ones(4)),
    "weight of 4": Call(weight=ones(4)),
    "bias of 4": Call(bias=ones(4)),
    "weight of 2": Call(weight=ones(2)),
    "bias of 0": Call(bias=ones(0)),
    "running_mean of 1": Call(running_mean=ones(1)),
    "scalar weight": Call(weight=ones()),
    "scalar running_var": Call(running_var=ones()),
    "running_mean alone": Call(running_var=nothing),
    "running_var alone": Call(running_mean=nothing),
    "eps 0 in training": Call(eps=0.0),
    "eps -1 in training": Call(eps=-1.0),
    "one value a channel, 4d": Call(input=ones(1, 3, 1, 1)),
    "one value a channel, 2d": Call(input=ones(1, 3)),
    "one value a channel, 5d": Call(input=ones(1, 3, 1, 1, 1)),
    "running_mean that requires a gradient": Call(running_mean=ones(3, requires_grad=True)),
    "running_var that requires a gradient": Call(running_var=ones(3, requires_grad=True)),
    "one value a channel, channels_last": Call(
        input=lambda: torch.ones(1, 3, 1, 1).contiguous(memory_format=torch.channels_last)
    ),
}
EVALUATION_ONLY = {
    "no running statistics": Call(running_mean=nothing, running_var=nothing),
    "eps -1 in evaluation": Call(eps=-1.0),
    "eps -1e-5 in evaluation": Call(eps=-1e-5),
}


def skip_older_words(name: str) -> None:
    if name.startswith("eps") and not NEWER_TORCH:
        pytest.skip("this torch says it in other words, and refuses an eps of 0 in evaluation too")


@pytest.mark.core
@pytest.mark.parametrize("name", WRONG_ARGUMENTS)
def test_misuse_in_training_raises_what_torch_raises(name: str) -> None:
    """Type and text are the same. Running statistics, counter and version counters are unchanged."""
    skip_older_words(name)
    call = WRONG_ARGUMENTS[name]
    expected = raised(lambda: F.batch_norm(*call.tensors(), True, call.momentum, call.eps))
    assert refused(call) == expected


@pytest.mark.core
@pytest.mark.parametrize("name", WRONG_ARGUMENTS | EVALUATION_ONLY)
def test_misuse_in_evaluation_raises_what_torch_raises(name: str) -> None:
    skip_older_words(name)
    call = replace((WRONG_ARGUMENTS | EVALUATION_ONLY)[name], training=False)
    if name.startswith("one value") or name == "eps 0 in training":  # evaluation accepts these
        fused_bn.functional.batch_norm(*call.tensors(), False, call.momentum, call.eps)
        return
    expected = raised(lambda: F.batch_norm(*call.tensors(), False, call.momentum, call.eps))
    assert refused(call) == expected


def test_error_texts_are_the_documented_ones() -> None:
    """The texts that users know, written out to notice a change in torch."""
    assert refused(WRONG_ARGUMENTS["running_mean of 4"]) == (
        RuntimeError,
        "running_mean should contain 3 elements not 4",
    )
    assert refused(WRONG_ARGUMENTS["one value a channel, 4d"]) == (
        ValueError,
        "Expected more than 1 value per channel when training, got input size torch.Size([1, 3, 1, 1])",
    )
    assert refused(WRONG_ARGUMENTS["running_mean alone"]) == (
        ValueError,
        "running_mean and running_var must either both be None or neither be None",
    )
    assert refused(replace(WRONG_ARGUMENTS["running_mean alone"], training=False)) == (
        RuntimeError,
        "running_var must be defined in evaluation mode",
    )
    assert refused(WRONG_ARGUMENTS["eps 0 in training"]) == (
        ValueError,
        "batch_norm eps must be positive during training, but got 0.0",
    )
    assert refused(replace(EVALUATION_ONLY["eps -1 in evaluation"], training=False)) == (
        ValueError,
        "batch_norm eps must be non-negative, but got -1.0",
    )


def half_weight(dtype: torch.dtype) -> Call:
    return Call(weight=ones(3, dtype=dtype), bias=ones(3, dtype=dtype))


UNSUPPORTED = {
    "rank 1": (Call(input=ones(3)), r"dimension|N, C"),
    "rank 0": (Call(input=ones()), r"dimension|N, C"),
    "int32 input": (Call(input=ones(2, 3, 4, 4, dtype=torch.int32)), r"[Ii]nt"),
    "int64 input": (Call(input=ones(2, 3, 4, 4, dtype=torch.int64)), r"[Ll]ong|[Ii]nt64"),
    "bool input": (Call(input=ones(2, 3, 4, 4, dtype=torch.bool)), r"[Bb]ool"),
    "complex64 input": (Call(input=ones(2, 3, 4, 4, dtype=torch.complex64)), r"[Cc]omplex"),
    "double input, float parameters": (
        Call(input=ones(2, 3, 4, 4, dtype=torch.float64)),
        r"[Ff]loat|[Dd]ouble",
    ),
    "float input, double weight": (half_weight(torch.float64), r"[Dd]ouble|float64"),
    "float input, bfloat16 weight": (half_weight(torch.bfloat16), r"[Bb][Ff]loat16"),
    "float input, half weight": (half_weight(torch.float16), r"[Hh]alf|float16"),
    "float input, integer weight": (half_weight(torch.int64), r"[Ll]ong|int64"),
    "float input, double bias": (Call(bias=ones(3, dtype=torch.float64)), r"[Dd]ouble|float64"),
    "float input, bfloat16 running_mean": (
        Call(running_mean=ones(3, dtype=torch.bfloat16)),
        r"[Bb][Ff]loat16",
    ),
    "float input, double running_var": (Call(running_var=ones(3, dtype=torch.float64)), r"[Dd]ouble|float64"),
    "half input, bfloat16 weight": (
        replace(half_weight(torch.bfloat16), input=ones(2, 3, 4, 4, dtype=torch.float16)),
        r"[Bb][Ff]loat16",
    ),
    "bfloat16 input, double weight": (
        replace(half_weight(torch.float64), input=ones(2, 3, 4, 4, dtype=torch.bfloat16)),
        r"[Dd]ouble|float64",
    ),
    "meta weight": (Call(weight=ones(3, device="meta")), "meta"),
    "meta bias": (Call(bias=ones(3, device="meta")), "meta"),
    "meta running_mean": (Call(running_mean=ones(3, device="meta")), "meta"),
    "meta running_var": (Call(running_var=ones(3, device="meta")), "meta"),
    "meta input": (Call(input=ones(2, 3, 4, 4, device="meta")), "meta|cpu"),
    "weight of rank 2": (Call(weight=ones(3, 1)), "weight"),
    "bias of rank 2": (Call(bias=ones(1, 3)), "bias"),
    "running_mean of rank 2": (Call(running_mean=ones(3, 1)), "running_mean"),
    "running_var of rank 2": (Call(running_var=ones(1, 3)), "running_var"),
}


@pytest.mark.needs_extension
@pytest.mark.parametrize("training", [True, False], ids=["training", "evaluation"])
@pytest.mark.parametrize("name", UNSUPPORTED)
def test_unsupported_dtype_device_or_rank_is_one_clear_error(name: str, training: bool) -> None:
    """The error names the wrong argument. torch reads some of these and refuses others with unclear texts."""
    call, named = UNSUPPORTED[name]
    kind, text = refused(replace(call, training=training))
    assert issubclass(kind, (RuntimeError, ValueError, TypeError))
    assert re.search(named, text), text


def test_statistics_that_require_a_gradient_are_taken_under_no_grad() -> None:
    """As in F.batch_norm, nothing is checked for differentiation."""
    running_mean, running_var = (torch.ones(3, requires_grad=True) for _ in range(2))
    with torch.no_grad():
        fused_bn.functional.batch_norm(torch.randn(2, 3, 4, 4), running_mean, running_var, training=True)
    assert not torch.equal(running_mean, torch.ones(3))


SPELT: dict[str, tuple[Any, tuple[str, float | None]]] = {
    "None": (None, ("none", None)),
    "nn.Identity": (nn.Identity, ("none", None)),
    "ReLU": ("ReLU", ("relu", None)),
    "LeakyReLU": ("LeakyReLU", ("leaky_relu", None)),
    "swish": ("swish", ("silu", None)),
    "nn.ReLU()": (nn.ReLU(), ("relu", None)),
    "nn.LeakyReLU(0.2)": (nn.LeakyReLU(0.2), ("leaky_relu", 0.2)),
    "nn.ELU": (nn.ELU, ("elu", 1.0)),
    "nn.GELU('tanh')": (nn.GELU("tanh"), ("gelu_tanh", None)),
    "F.relu": (F.relu, ("relu", None)),
    "torch.sigmoid": (torch.sigmoid, ("sigmoid", None)),
    "HardSigmoid": ("HardSigmoid", ("hardsigmoid", None)),
    "nn.Softplus(2)": (nn.Softplus(2), ("softplus", 2)),
    "F.mish": (F.mish, ("mish", None)),
}


@pytest.mark.parametrize("name", SPELT)
def test_an_activation_is_known_in_all_the_ways_people_write_it(name: str) -> None:
    given, (expected, param) = SPELT[name]
    norm = fused_bn.BatchNorm1d(3, activation=given)
    assert (norm.activation, norm.activation_param) == (expected, param)
    x = torch.randn(4, 3)
    found = fused_bn.functional.batch_norm(x, None, None, training=True, activation=given)
    named = fused_bn.functional.batch_norm(
        x, None, None, training=True, activation=expected, activation_param=param
    )
    assert torch.equal(found, named)


def test_a_wrong_argument_type_is_one_sentence() -> None:
    """Our error, not that of an operator's schema."""
    wrong: dict[str, Any] = {"momentum": "0.1", "weight_init": "zeros", "bias_init": torch.zeros(3)}
    for name, value in wrong.items():
        with pytest.raises(TypeError, match=f"{name} must be a number"):
            fused_bn.BatchNorm1d(3, **{name: value})
    norm: Any = fused_bn.BatchNorm1d(3)
    with pytest.raises(TypeError, match="residual must be a tensor or None, but got True"):
        norm(torch.randn(4, 3), True)
    norm.momentum = "0.1"
    with pytest.raises(TypeError, match=r"momentum must be a number or None, but got '0.1'"):
        norm(torch.randn(4, 3))


def test_unknown_activation_is_refused_by_module_and_function() -> None:
    x = torch.randn(2, 3)
    wrongs: tuple[Any, ...] = (
        ["relu"],
        3,
        "",
        "softmax",
        nn.Softmax(),
        nn.Softmax,
        F.softmax,
        nn.Threshold,
        nn.GELU("tanh").forward,
    )
    for wrong in wrongs:
        with pytest.raises(ValueError, match=r"activation must be one of none, relu, .*mish, but got"):
            fused_bn.BatchNorm1d(3, activation=wrong)
        with pytest.raises(ValueError, match="activation must be one of"):
            fused_bn.functional.batch_norm(x, None, None, training=True, activation=wrong)
    with pytest.raises(ValueError, match=r"but got 'rellu': did you mean 'relu'\?"):
        fused_bn.BatchNorm1d(3, activation="rellu")  # type: ignore[arg-type]
    with pytest.raises(ValueError, match="has a parameter of its own"):
        fused_bn.BatchNorm1d(3, activation=nn.LeakyReLU(0.2), activation_param=0.1)
    with pytest.raises(TypeError):
        fused_bn.BatchNorm1d(3, 1e-5, 0.1, True, True, None, None, "relu")  # type: ignore[call-arg, arg-type]


@pytest.mark.needs_extension
@pytest.mark.parametrize(
    "counter",
    [torch.ones(2, dtype=torch.int64), torch.ones((), dtype=torch.bool)],
    ids=["two elements", "bool"],
)
def test_wrong_counter_is_refused_and_statistics_stay(counter: Tensor) -> None:
    running_mean, running_var = torch.zeros(3), torch.ones(3)
    with pytest.raises((RuntimeError, ValueError), match="num_batches_tracked"):
        fused_bn.functional.batch_norm(
            torch.randn(2, 3), running_mean, running_var, training=True, num_batches_tracked=counter
        )
    assert torch.equal(running_mean, torch.zeros(3))
    assert torch.equal(running_var, torch.ones(3))


@pytest.mark.parametrize("momentum", [0.1, None])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float16, torch.float64, torch.int32])
def test_a_counter_of_another_type_counts(dtype: torch.dtype, momentum: float | None) -> None:
    """Averaging of models over clients, or load_state_dict(assign=True), leaves such counters.

    Tolerance: the statistics are of size 2 and are blended twice.
    """
    found = []
    for kind in (fused_bn.BatchNorm2d, nn.BatchNorm2d):
        norm = kind(3, momentum=momentum)
        state = {**norm.state_dict(), "num_batches_tracked": torch.tensor(2, dtype=dtype)}
        norm.load_state_dict(state, assign=True)
        for seed in range(2):
            norm(torch.randn(4, 3, 5, 5, generator=torch.Generator().manual_seed(seed)))
        assert present(norm.num_batches_tracked).dtype == dtype
        found.append([*norm.buffers()])
    for ours, theirs in zip(*found, strict=True):
        torch.testing.assert_close(ours, theirs, rtol=0, atol=DEMANDED_RUNNING * 4)


def test_a_counter_on_another_device_counts_there() -> None:
    norm = fused_bn.BatchNorm1d(3)
    norm.num_batches_tracked = torch.zeros((), dtype=torch.int64, device="meta")
    norm(torch.randn(4, 3))
    assert norm.num_batches_tracked.device.type == "meta"
    assert not torch.equal(present(norm.running_mean), torch.zeros(3))


def test_an_activation_may_be_set_in_any_spelling() -> None:
    norm: Any = fused_bn.BatchNorm1d(3)
    for given, expected in ((nn.LeakyReLU(0.2), "leaky_relu"), (None, "none"), ("Swish", "silu")):
        norm.activation = given
        assert norm.activation == expected
        assert not list(norm.children())
    with pytest.raises(ValueError, match="activation must be one of"):
        norm.activation = nn.Softmax()
    assert norm.activation == "silu"


@pytest.mark.needs_extension
@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize("way", ["torch.jit.trace", "functionalize"])
def test_a_counter_of_another_type_counts_where_calls_are_recorded(way: str) -> None:
    norm = fused_bn.BatchNorm1d(3)
    norm.num_batches_tracked = torch.tensor(2.0)
    x = torch.randn(4, 3)
    if way == "torch.jit.trace":
        torch.jit.trace(norm, x, check_trace=False)
    else:
        torch.func.functionalize(norm)(x)
    assert norm.num_batches_tracked == 3


@pytest.mark.needs_extension
def test_a_counter_that_cannot_be_written_is_refused_first() -> None:
    mean, variance = torch.zeros(3), torch.ones(3)
    counter = torch.tensor(2.0, requires_grad=True)
    with pytest.raises(RuntimeError, match="leaf Variable"):
        fused_bn.functional.batch_norm(
            torch.randn(4, 3), mean, variance, training=True, num_batches_tracked=counter
        )
    assert torch.equal(mean, torch.zeros(3))


@pytest.mark.needs_extension
def test_a_refused_call_does_not_count_in_another_type() -> None:
    counter = torch.tensor(2.0)
    with pytest.raises(ValueError, match="eps"):
        fused_bn.functional.batch_norm(
            torch.randn(2, 3), None, None, training=True, eps=-1.0, num_batches_tracked=counter
        )
    assert counter == 2


def outcome(module: nn.Module, x: Tensor) -> object:
    """The shape of the output, or type and text of the error."""
    try:
        shape: torch.Size = module(x).shape
    except (ValueError, RuntimeError) as error:
        return type(error), str(error).splitlines()[0]
    return shape


@pytest.mark.core
@pytest.mark.parametrize("activation", ["none", "relu"])
@pytest.mark.parametrize("kind", MODULES)
def test_module_refuses_the_ranks_nn_batchnorm_refuses(kind: str, activation: ActivationName) -> None:
    ours, theirs = MODULES[kind]
    for rank in range(7):
        x = torch.randn((2, 3, 2, 2, 2, 2)[:rank])
        module = ours(3, activation=activation)
        expected = outcome(theirs(3), x)
        assert outcome(module, x) == expected
        assert module.num_batches_tracked == (1 if isinstance(expected, torch.Size) else 0)


@pytest.mark.core
@pytest.mark.parametrize("training", [True, False], ids=["training", "evaluation"])
@pytest.mark.parametrize("tracking", [True, False], ids=["tracking", "not tracking"])
def test_module_raises_what_nn_batchnorm_raises(tracking: bool, training: bool) -> None:
    """Wrong number of channels, one value per channel, eps out of range. Refused calls are not counted."""
    inputs = [torch.randn(2, 4, 5, 5), torch.randn(1, 3, 1, 1), torch.randn(2, 3, 1, 1)]
    for eps in (1e-5, 0.0, -1.0) if NEWER_TORCH else (1e-5,):
        theirs = nn.BatchNorm2d(3, eps=eps, track_running_stats=tracking).train(training)
        for x in inputs:
            ours = fused_bn.BatchNorm2d(3, eps=eps, track_running_stats=tracking).train(training)
            before = {name: value.clone() for name, value in ours.state_dict().items()}
            expected = outcome(theirs, x)
            assert outcome(ours, x) == expected
            if not isinstance(expected, torch.Size):
                assert all(torch.equal(before[name], value) for name, value in ours.state_dict().items())


@pytest.mark.core
@pytest.mark.parametrize("momentum", [0.1, None])
def test_evaluation_does_not_count_a_batch(momentum: float | None, device: str) -> None:
    """In evaluation neither a given counter nor the running statistics change."""
    running_mean, running_var = torch.zeros(3, device=device), torch.ones(3, device=device)
    counter = torch.tensor(4, device=device)
    fused_bn.functional.batch_norm(
        torch.randn(2, 3, 4, 4, device=device),
        running_mean,
        running_var,
        training=False,
        momentum=momentum,
        num_batches_tracked=counter,
    )
    assert counter == 4
    assert (running_mean == 0).all()
    assert (running_var == 1).all()


def test_output_shares_no_memory_with_input_parameters_or_buffers(device: str) -> None:
    x = torch.randn(2, 3, 4, 4, device=device)
    for training in (True, False):
        norm = fused_bn.BatchNorm2d(3).to(device).train(training)
        y = norm(x)
        owned = {t.untyped_storage().data_ptr() for t in (x, *norm.parameters(), *norm.buffers())}
        assert y.untyped_storage().data_ptr() not in owned

"""The raw operators: their results, what the mask replaces, and their checks of every argument."""

import subprocess
import sys
from itertools import product
from typing import Any

import pytest
import torch
from torch import Tensor

from fused_bn._activations import ACTIVATIONS
from tests.cases import DTYPES, Case, core_grid, layouts, make_tensors, run_fused, same_bits
from tests.ops.test_backends import ROOT

pytestmark = pytest.mark.needs_extension

FORWARD_ARGUMENTS = (
    "input",
    "residual",
    "weight",
    "bias",
    "running_mean",
    "running_var",
    "num_batches_tracked",
    "training",
    "momentum",
    "eps",
    "activation",
    "activation_param",
    "negative_slope",
    "save_for_backward",
)
USER_ARGUMENTS = FORWARD_ARGUMENTS[:-1]
INFERENCE_ARGUMENTS = tuple(
    name for name in USER_ARGUMENTS if name not in ("num_batches_tracked", "training", "momentum")
)

WITH_MASK = ("relu", "leaky_relu", "relu6")
SMOOTH = tuple(name for name in ACTIVATIONS if name not in ("none", *WITH_MASK))
BACKWARD_ARGUMENTS = (
    "grad_output",
    "input",
    "residual",
    "weight",
    "bias",
    "negative_slope",
    "statistics",
    "mask",
    "training",
    "activation",
    "activation_param",
    "output_mask",
)
ELEMENTWISE_ARGUMENTS = (
    *("input", "residual", "weight", "bias", "statistics", "activation", "activation_param"),
    *("negative_slope", "save_mask"),
)


def forward_arguments(case: Case, device: str = "cpu", **changes: Any) -> dict[str, Any]:
    tensors = make_tensors(case, device)
    values: dict[str, Any] = {
        "input": tensors.input,
        "residual": tensors.residual,
        "weight": tensors.weight,
        "bias": tensors.bias,
        "running_mean": tensors.running_mean,
        "running_var": tensors.running_var,
        "num_batches_tracked": tensors.num_batches_tracked,
        "training": case.training,
        "momentum": case.momentum,
        "eps": case.eps,
        "activation": case.activation,
        "activation_param": case.activation_param or 0.0,
        "negative_slope": tensors.negative_slope,
        "save_for_backward": True,
        "save_mask": True,
    }
    return values | changes


def user_operator(arguments: dict[str, Any]) -> Tensor:
    output: Tensor = torch.ops.fused_bn.batch_norm(*(arguments[name] for name in USER_ARGUMENTS))
    return output


def forward(arguments: dict[str, Any]) -> list[Tensor]:
    """The output, the statistics and the mask."""
    return list(torch.ops.fused_bn.batch_norm_forward(*(arguments[name] for name in FORWARD_ARGUMENTS)))[:3]


def elementwise(arguments: dict[str, Any]) -> list[Tensor]:
    """The output and the mask."""
    operator = torch.ops.fused_bn.batch_norm_elementwise
    return list(operator(*(arguments[name] for name in ELEMENTWISE_ARGUMENTS)))


def backward_arguments(case: Case, device: str = "cpu", **changes: Any) -> dict[str, Any]:
    arguments = forward_arguments(case, device)
    _, statistics, mask = forward(arguments)
    values = {name: arguments.get(name) for name in BACKWARD_ARGUMENTS}
    values |= {
        "grad_output": make_tensors(case, device).grad_output,
        "residual": arguments["residual"] if case.activation in SMOOTH else None,
        "statistics": statistics,
        "mask": mask if mask.numel() > 0 else None,
        "output_mask": [True, case.residual, True, True, True],
    }
    return values | changes


def backward(arguments: dict[str, Any]) -> list[Tensor]:
    """The gradients of input, residual, weight and bias, and of prelu's slopes where there are some."""
    found = torch.ops.fused_bn.batch_norm_backward(*(arguments[name] for name in BACKWARD_ARGUMENTS))
    return [gradient for gradient in found if gradient is not None]


CASES = [
    Case(shape, layout, dtype, parameter_dtype, training=training, activation=activation, residual=residual)
    for shape in ((3, 17, 4, 5), (6, 9))
    for layout in layouts(shape)
    for (dtype, parameter_dtype), training in product(DTYPES, (True, False))
    for activation, residual in product(("none", "relu", "prelu", "silu"), (False, True))
]


@pytest.mark.parametrize("case", CASES, ids=str)
def test_the_three_operators_agree_bit_for_bit(case: Case, device: str) -> None:
    """The user-level operator is forward and backward together. It adds only autograd."""
    together = run_fused(case, make_tensors(case, device))
    output, statistics, mask = forward(forward_arguments(case, device))
    grad_input, grad_residual, grad_weight, grad_bias, *grad_slope = backward(
        backward_arguments(case, device)
    )
    assert torch.equal(output, together.output)
    assert torch.equal(user_operator(forward_arguments(case, device)), together.output)
    assert statistics.shape == (3, case.channels)
    assert torch.equal(grad_input, together.grad_input)
    if case.residual:
        assert same_bits(grad_residual, together.grad_residual)
    assert (mask.numel() > 0) == (case.residual and case.activation in WITH_MASK)
    assert mask.dtype is torch.uint8
    assert same_bits(grad_weight, together.grad_weight)
    assert same_bits(grad_bias, together.grad_bias)
    assert same_bits(grad_slope[0] if grad_slope else None, together.grad_negative_slope)
    assert {each.dtype for each in (grad_weight, grad_bias, *grad_slope)} == {case.parameter_dtype}


@pytest.mark.core
@pytest.mark.parametrize("case", [*CASES, *core_grid()], ids=str)
def test_elementwise_gives_what_forward_gave(case: Case, device: str) -> None:
    """Forward's statistics, output and mask bit for bit. The statistics are only read."""
    arguments = forward_arguments(case, device)
    output, statistics, mask = forward(arguments)
    before = statistics.clone()
    again, mask_again = elementwise(arguments | {"statistics": statistics})
    assert torch.equal(again, output)
    assert again.stride() == output.stride()
    assert torch.equal(mask_again, mask)
    assert torch.equal(statistics, before)


def test_elementwise_of_an_empty_batch(device: str) -> None:
    for shape in ((0, 3, 4, 4), (2, 3, 0, 4)):
        arguments = forward_arguments(Case((2, 3, 4, 4)), device, input=torch.ones(shape, device=device))
        output, mask = elementwise(arguments | {"statistics": torch.zeros(3, 3, device=device)})
        assert output.shape == shape
        assert mask.numel() == 0


@pytest.mark.parametrize("mask", list(product((True, False), repeat=5)), ids=str)
@pytest.mark.parametrize("layout", ["contiguous", "channels_last"])
def test_masked_gradients_are_empty_and_the_others_unchanged(
    mask: tuple[bool, ...], layout: str, device: str
) -> None:
    for training, activation in product((True, False), ("none", "relu", "prelu", "silu")):
        case = Case((3, 17, 4, 5), layout, training=training, activation=activation, residual=True)
        everything = backward(backward_arguments(case, device))
        asked = backward(backward_arguments(case, device, output_mask=list(mask)))
        for wanted, full, found in zip(mask[: len(everything)], everything, asked, strict=True):
            if wanted:
                assert torch.equal(full, found)
            else:
                assert found.shape == (0,)


@pytest.mark.parametrize("layout", ["contiguous", "channels_last"])
def test_gradients_without_weight_or_bias(layout: str, device: str) -> None:
    """Without affine parameters grad_input equals that of weight 1 and bias 0, bit for bit."""
    for training, activation in product((True, False), ("none", "relu")):
        case = Case((3, 17, 4, 5), layout, training=training, activation=activation)
        bare = Case((3, 17, 4, 5), layout, training=training, activation=activation, weight=False, bias=False)
        absent = backward(backward_arguments(bare, device, output_mask=[True, *[False] * 4]))[0]
        arguments = backward_arguments(bare, device)
        arguments |= {
            "weight": torch.ones(case.channels, device=device),
            "bias": torch.zeros(case.channels, device=device),
        }
        assert torch.equal(backward(arguments)[0], absent)


@pytest.mark.parametrize("shape", [(3, 17, 4, 5), (2, 3, 4, 4, 4)], ids=str)
def test_output_and_grad_input_take_the_layout_of_the_input(shape: tuple[int, ...], device: str) -> None:
    """grad_output's layout does not matter for the layout or the values."""
    for of_input, of_grad, activation in product(layouts(shape), layouts(shape), ("none", "relu")):
        case = Case(shape, of_input, activation=activation)
        arguments = backward_arguments(case, device)
        expected = backward(arguments)[0]
        arguments["grad_output"] = make_tensors(Case(shape, of_grad), device).grad_output
        grad_input = backward(arguments)[0]
        assert grad_input.stride() == arguments["input"].stride()
        assert torch.equal(grad_input, expected)
        assert forward(forward_arguments(case, device))[0].stride() == arguments["input"].stride()


@pytest.mark.parametrize("training", [True, False], ids=["training", "evaluation"])
def test_momentum_none_is_a_cumulative_average(training: bool, device: str) -> None:
    """The counter is read after its increment. Without a counter nothing is blended, as in nn.BatchNorm."""
    case = Case((4, 3, 5, 5), momentum=None, training=training)
    with_counter = forward_arguments(case, device)
    as_third = forward_arguments(case, device, momentum=1 / 3, num_batches_tracked=None)
    without = forward_arguments(case, device, num_batches_tracked=None)
    before = without["running_mean"].clone()
    for arguments in (with_counter, as_third, without):
        forward(arguments)
    assert with_counter["num_batches_tracked"].item() == (3 if training else 2)
    assert torch.equal(without["running_mean"], before)
    assert torch.equal(with_counter["running_mean"], as_third["running_mean"])
    assert torch.equal(with_counter["running_var"], as_third["running_var"])
    assert torch.equal(with_counter["running_mean"], before) is not training


def test_version_counters_of_written_buffers_move(device: str) -> None:
    """Autograd must notice a buffer that changes after it was saved. Evaluation writes nothing."""
    names = ("running_mean", "running_var", "num_batches_tracked")
    for operator, training in product((user_operator, forward), (True, False)):
        arguments = forward_arguments(Case((4, 3, 5, 5), training=training), device)
        before = [arguments[name]._version for name in names]
        operator(arguments)
        moved = [arguments[name]._version > version for name, version in zip(names, before, strict=True)]
        assert moved == [training] * 3


OTHER = torch.ones(2, 3, 4, 4)
LONGER = torch.ones(5)
SHARED, SHARED_BY_TWO = LONGER[:3], LONGER[1:4]
WRONG_FORWARD: dict[str, dict[str, Any]] = {
    "input of rank 1": {"input": torch.ones(3)},
    "input of rank 0": {"input": torch.ones(())},
    "integer input": {"input": torch.ones(2, 3, 4, 4, dtype=torch.int32)},
    "sparse input": {"input": OTHER.to_sparse()},
    "weight too long": {"weight": torch.ones(4)},
    "weight too short": {"weight": torch.ones(2)},
    "weight of rank 2": {"weight": torch.ones(3, 1)},
    "weight in double": {"weight": torch.ones(3).double()},
    "weight on meta": {"weight": torch.ones(3, device="meta")},
    "bias too long": {"bias": torch.ones(4)},
    "bias of rank 2": {"bias": torch.ones(1, 3)},
    "bias in bfloat16": {"bias": torch.ones(3).bfloat16()},
    "running_mean too short": {"running_mean": torch.ones(2)},
    "running_mean in half": {"running_mean": torch.ones(3).half()},
    "running_mean missing": {"running_mean": None},
    "running_var too short": {"running_var": torch.ones(2)},
    "running_var of rank 2": {"running_var": torch.ones(3, 1)},
    "running_var missing": {"running_var": None},
    "counter of two": {"num_batches_tracked": torch.ones(2, dtype=torch.int64)},
    "counter in bool": {"num_batches_tracked": torch.ones((), dtype=torch.bool)},
    "eps 0": {"eps": 0.0},
    "eps -1": {"eps": -1.0},
    "unknown activation": {"activation": "swish"},
    "infinite activation_param": {"activation": "leaky_relu", "activation_param": float("inf")},
    "activation_param that is no number": {"activation": "elu", "activation_param": float("nan")},
    "prelu without slopes": {"activation": "prelu"},
    "slopes without prelu": {"negative_slope": torch.ones(3)},
    "too many slopes": {"activation": "prelu", "negative_slope": torch.ones(4)},
    "slopes in double": {"activation": "prelu", "negative_slope": torch.ones(3).double()},
    "a beta of 0": {"activation": "softplus", "activation_param": 0.0},
    "a beta of 0 in float": {"activation": "softplus", "activation_param": 1e-46},
    "residual of fewer channels": {"residual": torch.ones(2, 2, 4, 4)},
    "residual of smaller images": {"residual": torch.ones(2, 3, 4, 3)},
    "residual of another rank": {"residual": torch.ones(2, 3, 16)},
    "residual that would broadcast": {"residual": torch.ones(1, 3, 1, 1)},
    "residual in double": {"residual": torch.ones(2, 3, 4, 4).double()},
    "residual in half": {"residual": torch.ones(2, 3, 4, 4).half()},
    "residual on meta": {"residual": torch.ones(2, 3, 4, 4, device="meta")},
    "sparse residual": {"residual": OTHER.to_sparse()},
    "empty activation": {"activation": ""},
    "one value a channel": {"input": torch.ones(1, 3, 1, 1)},
    "running_mean whose elements share memory": {"running_mean": torch.full((1,), 0.5).expand(3)},
    "running_var whose elements share memory": {"running_var": torch.full((1,), 2.0).expand(3)},
    "running_mean and running_var that share memory": dict.fromkeys(("running_mean", "running_var"), SHARED),
    "running_mean and running_var that share a part": {"running_mean": SHARED, "running_var": SHARED_BY_TWO},
    "running_var and weight that share memory": {"running_var": SHARED, "weight": SHARED},
    "running_mean and bias that share memory": {"running_mean": SHARED, "bias": SHARED},
    "running_mean that shares the input's memory": {"input": OTHER, "running_mean": OTHER.view(-1)[5:8]},
    "running_var that shares the residual's memory": {
        "residual": OTHER,
        "running_var": OTHER.view(-1)[5:8],
    },
}


@pytest.mark.parametrize("operator", [user_operator, forward], ids=["batch_norm", "batch_norm_forward"])
@pytest.mark.parametrize("name", WRONG_FORWARD)
def test_forward_operators_refuse_wrong_arguments_and_change_nothing(name: str, operator: Any) -> None:
    buffers = {
        "running_mean": torch.full((3,), 0.5),
        "running_var": torch.full((3,), 2.0),
        "num_batches_tracked": torch.tensor(4),
    }
    arguments = forward_arguments(Case((2, 3, 4, 4))) | buffers | WRONG_FORWARD[name]
    before = {key: value.clone() for key, value in buffers.items()}
    with pytest.raises((RuntimeError, ValueError, TypeError, NotImplementedError)):
        operator(arguments)
    for key, value in buffers.items():
        assert torch.equal(value, before[key]), key


FREEABLE = [
    *((forward, forward_arguments, name) for name in FORWARD_ARGUMENTS[:7]),
    *((user_operator, forward_arguments, name) for name in FORWARD_ARGUMENTS[:7]),
    *((backward, backward_arguments, name) for name in BACKWARD_ARGUMENTS[:8]),
    *((elementwise, forward_arguments, name) for name in ELEMENTWISE_ARGUMENTS[:5]),
    *((operator, forward_arguments, "negative_slope") for operator in (forward, user_operator, elementwise)),
]


@pytest.mark.parametrize("training", [True, False], ids=["training", "evaluation"])
@pytest.mark.parametrize(
    ("operator", "make", "name"), FREEABLE, ids=[f"{f.__name__}-{name}" for f, _, name in FREEABLE]
)
def test_a_tensor_without_memory_is_refused_and_not_taken_for_absent(
    operator: Any, make: Any, name: str, training: bool
) -> None:
    """A sharded parameter has a shape and no memory. As input it crashed; as weight it counted as 1."""
    activation = {"residual": "silu", "negative_slope": "prelu"}.get(name, "relu")
    case = Case((2, 3, 4, 4), activation=activation, residual=name in ("residual", "mask"), training=training)
    arguments = make(case)
    arguments.setdefault("statistics", torch.ones(3, 3))
    buffers = {key: arguments[key] for key in ("running_mean", "num_batches_tracked") if key in arguments}
    before = {key: value.clone() for key, value in buffers.items()}
    arguments[name].untyped_storage().resize_(0)
    with pytest.raises(RuntimeError, match="its data is not allocated yet"):
        operator(arguments)
    assert all(torch.equal(buffers[key], before[key]) for key in before if key != name)


@pytest.mark.parametrize("inference", [False, True])
@pytest.mark.parametrize("name", ["running_mean", "running_var"])
def test_negated_buffers_are_refused_before_anything_is_written(name: str, inference: bool) -> None:
    """The operator gets a copy of such a view, so its writes would be lost. PyTorch raises an assertion."""
    arguments = forward_arguments(Case((2, 3, 4, 4)))
    before = {key: arguments[key].clone() for key in ("running_mean", "running_var", "num_batches_tracked")}
    arguments[name] = torch.ones(3)._neg_view()
    for operator in (user_operator, forward):
        with (
            torch.inference_mode(inference),
            pytest.raises(RuntimeError, match=f"{name} is a view that is negated when read"),
        ):
            operator(arguments)
    assert all(torch.equal(arguments[key], before[key]) for key in before if key != name)
    training = forward_arguments(Case((2, 3, 4, 4)), training=False)
    expected = user_operator(training | {name: -torch.ones(3)})
    changed = training | {name: torch.ones(3)._neg_view()}
    of_evaluation = torch.ops.fused_bn.batch_norm_inference(*(changed[name] for name in INFERENCE_ARGUMENTS))
    for found in (user_operator(changed), of_evaluation):
        assert torch.equal(found.nan_to_num(), expected.nan_to_num()), "evaluation reads it"


SHORT_OF_MEMORY = """
import resource, torch
from fused_bn.functional import batch_norm
C = 4_000_000  # the kernel's own numbers of a channel are larger than the output, 2 x C
x, mean, var, count = torch.ones(2, C), torch.zeros(C), torch.ones(C), torch.tensor(3)
batch_norm(torch.randn(2, 8), torch.zeros(8), torch.ones(8), training=True)  # starts threads
size = int(open("/proc/self/statm").read().split()[0]) * resource.getpagesize()
resource.setrlimit(resource.RLIMIT_AS, (size + 120_000_000, -1))
try:
    batch_norm(x, mean, var, training=True, num_batches_tracked=count)
except (RuntimeError, MemoryError) as error:
    print("alloc" in str(error), mean.any().item(), (var == 1).all().item(), count.item(), mean._version)
"""


@pytest.mark.needs_extension
@pytest.mark.skipif(sys.platform != "linux", reason="limits its memory as on Linux")
def test_a_call_that_runs_out_of_memory_leaves_the_statistics_as_they_were() -> None:
    """They are written last, after all allocations of the kernels."""
    command = [sys.executable, "-c", SHORT_OF_MEMORY]
    result = subprocess.run(command, capture_output=True, text=True, check=True, cwd=ROOT)
    assert result.stdout.split() == ["True", "False", "True", "3", "0"]


def test_shared_memory_is_named_and_read_in_evaluation() -> None:
    """Training would write one element several times. Evaluation only reads."""
    arguments = forward_arguments(Case((2, 3, 4, 4))) | {"running_mean": torch.full((1,), 0.5).expand(3)}
    with pytest.raises(RuntimeError, match="elements of running_mean share memory, and training writes"):
        forward(arguments)
    expected = forward(arguments | {"running_mean": torch.full((3,), 0.5), "training": False})
    assert torch.equal(forward(arguments | {"training": False})[0], expected[0])


def test_interleaved_buffers_are_no_shared_memory() -> None:
    """Every second element of one tensor each."""
    both = torch.stack((torch.zeros(3), torch.ones(3)), 1)
    arguments = forward_arguments(Case((2, 3, 4, 4)))
    expected = forward(arguments | {"running_mean": torch.zeros(3), "running_var": torch.ones(3)})[0]
    assert torch.equal(
        forward(arguments | {"running_mean": both[:, 0], "running_var": both[:, 1]})[0], expected
    )


WRONG_BACKWARD: dict[str, dict[str, Any]] = {
    "grad_output of fewer channels": {"grad_output": torch.ones(2, 2, 4, 4)},
    "grad_output of fewer samples": {"grad_output": torch.ones(1, 3, 4, 4)},
    "grad_output of smaller images": {"grad_output": torch.ones(2, 3, 4, 3)},
    "grad_output of another rank": {"grad_output": torch.ones(2, 3, 16)},
    "grad_output that would broadcast": {"grad_output": torch.ones(1, 1, 1, 1)},
    "grad_output in double": {"grad_output": torch.ones(2, 3, 4, 4).double()},
    "grad_output in half": {"grad_output": torch.ones(2, 3, 4, 4).half()},
    "grad_output on meta": {"grad_output": torch.ones(2, 3, 4, 4, device="meta")},
    "input of rank 1": {"input": torch.ones(3), "grad_output": torch.ones(3)},
    "integer input": {"input": torch.ones(2, 3, 4, 4, dtype=torch.int64)},
    "weight too short": {"weight": torch.ones(2)},
    "weight of rank 2": {"weight": torch.ones(3, 1)},
    "weight in double": {"weight": torch.ones(3).double()},
    "weight on meta": {"weight": torch.ones(3, device="meta")},
    "bias too short": {"bias": torch.ones(1)},
    "bias in double": {"bias": torch.ones(3).double()},
    "statistics of two rows": {"statistics": torch.ones(2, 3)},
    "statistics of one row": {"statistics": torch.ones(3)},
    "statistics of more channels": {"statistics": torch.ones(3, 4)},
    "statistics of fewer channels": {"statistics": torch.ones(3, 2)},
    "statistics in double": {"statistics": torch.ones(3, 3).double()},
    "statistics in half": {"statistics": torch.ones(3, 3).half()},
    "statistics on meta": {"statistics": torch.ones(3, 3, device="meta")},
    "unknown activation": {"activation": "swish"},
    "infinite activation_param": {"activation_param": float("inf")},
    "activation_param beyond float": {"activation_param": 1e39},
    "output_mask of four": {"output_mask": [True] * 4},
    "mask too short": {"mask": torch.zeros(11, dtype=torch.uint8)},
    "mask too long": {"mask": torch.zeros(13, dtype=torch.uint8)},
    "mask of rank 2": {"mask": torch.zeros(3, 4, dtype=torch.uint8)},
    "mask in float": {"mask": torch.zeros(12)},
    "mask on meta": {"mask": torch.zeros(12, dtype=torch.uint8, device="meta")},
    "residual where a mask tells": {"residual": OTHER},
    "mask where a residual tells": {"activation": "silu", "mask": torch.zeros(12, dtype=torch.uint8)},
    "residual of fewer channels": {"activation": "silu", "residual": torch.ones(2, 2, 4, 4)},
    "residual that would broadcast": {"activation": "silu", "residual": torch.ones(1, 3, 1, 1)},
    "residual in half": {"activation": "silu", "residual": torch.ones(2, 3, 4, 4).half()},
}


@pytest.mark.parametrize("name", WRONG_BACKWARD)
def test_backward_operator_refuses_wrong_arguments(name: str) -> None:
    """If passed on to a kernel, each of these would be read out of bounds or misread."""
    arguments = backward_arguments(Case((2, 3, 4, 4)))
    with pytest.raises((RuntimeError, ValueError, TypeError, NotImplementedError)):
        backward(arguments | WRONG_BACKWARD[name])


OF_ELEMENTWISE = ("input", "weight", "bias", "residual", "statistics", "activation", "activation_param")
WRONG_ELEMENTWISE = {
    name: changes
    for name, changes in {**WRONG_FORWARD, **WRONG_BACKWARD}.items()
    if changes.keys() <= set(OF_ELEMENTWISE)
    and name not in ("one value a channel", "residual where a mask tells")
}


@pytest.mark.parametrize("name", WRONG_ELEMENTWISE)
def test_elementwise_operator_refuses_wrong_arguments(name: str) -> None:
    arguments = forward_arguments(Case((2, 3, 4, 4))) | {"statistics": torch.ones(3, 3)}
    elementwise(arguments)
    with pytest.raises((RuntimeError, ValueError, TypeError, NotImplementedError)):
        elementwise(arguments | WRONG_ELEMENTWISE[name])


def test_strided_statistics_parameters_and_buffers_are_read_and_written_in_place(device: str) -> None:
    """Every second element of a longer vector: values are right, and the elements between are unchanged."""

    def strided(values: Tensor) -> Tensor:
        view = torch.full((2 * values.numel(),), 7.0, device=device)[::2]
        return view.copy_(values)

    for training, layout in product((True, False), ("contiguous", "channels_last")):
        case = Case((4, 5, 3, 3), layout, training=training)
        dense = forward_arguments(case, device)
        spread = forward_arguments(case, device)
        for name in ("weight", "bias", "running_mean", "running_var"):
            spread[name] = strided(spread[name])
        assert torch.equal(forward(spread)[0], forward(dense)[0])
        for name in ("running_mean", "running_var"):
            assert torch.equal(spread[name], dense[name])
            assert (spread[name]._base[1::2] == 7).all()
        arguments = backward_arguments(case, device)
        expected = backward(arguments)
        arguments["statistics"] = arguments["statistics"].t().contiguous().t()
        arguments["weight"], arguments["bias"] = strided(arguments["weight"]), strided(arguments["bias"])
        assert all(map(torch.equal, backward(arguments), expected))

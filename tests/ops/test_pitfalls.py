"""Inputs that broke other implementations: where each is tested here.

In brackets, issues of pytorch/pytorch unless another project is named. A name without a file is below.

(131072, 1), (65536, 1, 1, 1), (70000, 1, 2) [16998, 19911, 29744]
    -> ops/test_large.py::test_dimensions_beyond_a_launch_grid
evaluation of (147000, 100) [29744]
    -> ops/test_large.py::test_evaluation_of_147000_rows_of_100
(4194305, 512) half, 2^31 elements passed
    -> ops/test_large.py::test_more_than_two_to_the_31_elements
channels_last, C not a power of two [57077, apex 1768]
    -> test_channels_last_with_65_channels
grad_output channels_last, input not, and the reverse [64039, 62967]
    -> test_gradient_of_the_other_layout
channels_last_3d (2, 3, 4, 4, 4) [107199]
    -> test_channels_last_3d_keeps_its_layout
CPU half channels_last (16, 3, 224, 224) [147303, 126525]
    -> ops/test_adversarial.py::test_large_half_channels_last_has_finite_accurate_gradients
constant channel up to 1e10 [5410]
    -> ops/test_adversarial.py::test_constant_channel_normalises_to_exactly_zero
100 * ones(1, 1, 2) [8283]
    -> ops/test_adversarial.py::test_a_hundred_ones_of_one_row_normalise_to_zero
values near 1e30 [178123]
    -> ops/test_adversarial.py::test_values_near_1e30_are_normalised_although_their_squares_overflow
bf16 of mean +-5, std 0.1
    -> ops/test_adversarial.py::test_half_input_with_a_mean_of_fifty_sigmas
ones(1, 4, 20, 20) with one inf [90342]
    -> ops/test_adversarial.py::test_non_finite_input_spoils_what_it_spoils_in_pytorch_and_no_more
(0, 64, 112, 112), (0, 5, 9), (4, 2, 0, 3) [29578, 12013, 189831]
    -> test_empty_batches
one value a channel in training
    -> ops/test_contract.py::test_misuse_in_training_raises_what_torch_raises
backward twice in evaluation [586]
    -> ops/test_autograd.py::test_backward_twice_through_a_kept_graph_gives_the_same_gradient
double backward of 1d on (5, 5), and of 2d [4422, 2264]
    -> test_double_backward_of_five_by_five
NaN into BN + ReLU
    -> ops/test_adversarial.py::test_nan_passes_through_relu_and_its_gradient_too
sum().backward(), stride 0 [64529]
    -> ops/test_autograd.py::test_expanded_gradients_of_stride_zero_are_read_correctly
std 3 rather than 1
    -> ops/test_numerics.py::test_every_shape_layout_and_dtype_meets_the_demands
mismatched shapes to the raw operators [188958, 189828, 105458, 166405]
    -> ops/test_operator.py::test_forward_operators_refuse_wrong_arguments_and_change_nothing
    -> ops/test_operator.py::test_backward_operator_refuses_wrong_arguments
affine=False, also half [apex 158, 133]
    -> test_affine_off_in_half_precision
two forwards, one backward, buffers broadcast [175024]
    -> ops/test_autograd.py::test_running_buffers_may_change_between_forward_and_backward
momentum=None under compile(fullgraph=True) [194504]
    -> modules/test_compile.py::test_full_graph_compilation_is_bit_equal_to_eager
forward twice before one backward [apex groupbn]
    -> ops/test_autograd.py::test_two_forwards_before_one_backward_keep_their_own_statistics
activation checkpointing [96136]
    -> modules/test_module.py::test_activation_checkpointing_counts_twice_like_nn_batchnorm
checkpoint without num_batches_tracked [8481]
    -> modules/test_module.py::test_checkpoint_without_num_batches_tracked_loads_as_in_nn_batchnorm
empty state_dict [110361]
    -> modules/test_module.py::test_empty_state_dict_reports_the_same_missing_keys
tall (125000, 50), (20, 6, 65536), C = 256 of 140k rows
    -> test_slow_places_of_others_are_right

convert_sync_batchnorm, and other functions of torch that replace the module
    -> modules/test_converters.py::test_torchs_sync_conversion_keeps_activation_and_frozen
    -> test_torchs_sync_conversion_takes_a_plain_norm
    -> test_a_norm_without_an_activation_is_folded_into_a_convolution
    -> modules/test_converters.py::test_what_would_drop_an_activation_is_refused

leaky_relu slope 0
    -> test_leaky_relu_of_slope_0_is_relu

Not of this file: different spatial sizes on each process: sync/test_sync.py, test_spatial_sizes_may_differ.
cuda:1 and streams: cuda/test_cuda.py, on a GPU or an emulated one.
"""

import importlib
import re
from itertools import product

import pytest
import torch
from torch import nn
from torch.nn.utils.fusion import fuse_conv_bn_eval

import fused_bn
from fused_bn._activations import ActivationName
from tests.cases import HALF_DTYPES, Case, in_layout, layouts, make_tensors, present, run_fused, run_torch
from tests.reference import assert_meets_demands


def test_every_test_in_the_table_above_exists() -> None:
    assert __doc__ is not None
    listed = re.findall(r"^    -> (?:(\w+/test_\w+)\.py::)?(test_\w+)$", __doc__, re.MULTILINE)
    assert len(listed) == __doc__.count("->")
    for module, name in listed:
        assert hasattr(
            importlib.import_module(f"tests.{module.replace('/', '.') or 'ops.test_pitfalls'}"), name
        ), name


@pytest.mark.core
@pytest.mark.parametrize("training", [True, False], ids=["training", "evaluation"])
def test_channels_last_with_65_channels(training: bool, device: str) -> None:
    """Another implementation returned zeros from channel 64 on. Each channel has its own statistics here."""
    case = Case((1, 65, 100, 100), "channels_last", training=training)
    result = assert_meets_demands(case, make_tensors(case, device))
    assert (result.output[:, 64:].abs().amax((0, 2, 3)) > 0).all()


@pytest.mark.core
@pytest.mark.parametrize("shape", [(3, 17, 4, 5), (2, 65, 7, 7), (2, 3, 4, 4, 4)], ids=str)
def test_gradient_of_the_other_layout(shape: tuple[int, ...], device: str) -> None:
    """grad_output is contiguous with channels_last input, and the reverse; against the fp64 reference."""
    other = "channels_last" if len(shape) == 4 else "channels_last_3d"
    for (of_input, of_grad), activation, training in product(
        (("contiguous", other), (other, "contiguous")), ("none", "relu"), (True, False)
    ):
        case = Case(shape, of_input, activation=activation, training=training)
        tensors = make_tensors(case, device)
        tensors.grad_output = in_layout(tensors.grad_output, of_grad)
        assert tensors.grad_output.stride() != tensors.input.stride()
        result = assert_meets_demands(case, tensors)
        assert result.grad_input.stride() == tensors.input.stride()


@pytest.mark.core
def test_channels_last_3d_keeps_its_layout(device: str) -> None:
    for training in (True, False):
        case = Case((2, 3, 4, 4, 4), "channels_last_3d", training=training)
        tensors = make_tensors(case, device)
        result = assert_meets_demands(case, tensors)
        assert result.output.is_contiguous(memory_format=torch.channels_last_3d)
        assert result.grad_input.is_contiguous(memory_format=torch.channels_last_3d)


EMPTY_SHAPES = [
    (0, 64, 112, 112),
    (0, 5, 9),
    (4, 2, 0, 3),
    (0, 3),
    (2, 3, 0),
    (0, 2, 3, 4, 5),
    (2, 3, 4, 0, 5),
]


@pytest.mark.core
@pytest.mark.parametrize("activation", ["none", "relu"])
@pytest.mark.parametrize("training", [True, False], ids=["training", "evaluation"])
@pytest.mark.parametrize("shape", EMPTY_SHAPES, ids=str)
def test_empty_batches(shape: tuple[int, ...], training: bool, activation: str, device: str) -> None:
    """As in PyTorch: statistics unchanged, counter + 1 in training, zero gradients of the parameters."""
    for layout, momentum in product(layouts(shape), (0.1, None)):
        case = Case(shape, layout, training=training, activation=activation, momentum=momentum)
        tensors = make_tensors(case, device)
        ours, theirs = run_fused(case, tensors), run_torch(case, tensors)
        assert ours.grad_residual is theirs.grad_residual is None
        for name in vars(ours).keys() - {"grad_residual", "grad_negative_slope"}:
            mine, other = present(getattr(ours, name)), present(getattr(theirs, name))
            assert mine.shape == other.shape, name
            assert torch.equal(mine, other), name
        assert present(ours.num_batches_tracked) == (3 if training else 2)
        assert torch.equal(present(ours.running_mean), present(tensors.running_mean))
        assert (present(ours.grad_weight) == 0).all()
        assert (present(ours.grad_bias) == 0).all()


@pytest.mark.core
@pytest.mark.parametrize("activation", ["none", "relu"])
def test_empty_batch_through_a_module(activation: ActivationName, device: str) -> None:
    """The last batch of a filtered data set is empty. Training goes on with the old statistics."""
    norm = fused_bn.BatchNorm2d(3, activation=activation).to(device)
    norm(torch.randn(2, 3, 4, 4, device=device))
    mean, var = present(norm.running_mean).clone(), present(norm.running_var).clone()
    x = torch.empty(0, 3, 4, 4, device=device, requires_grad=True)
    norm(x).sum().backward()
    assert torch.equal(present(norm.running_mean), mean)
    assert torch.equal(present(norm.running_var), var)
    assert norm.num_batches_tracked == 2
    assert present(x.grad).shape == x.shape


@pytest.mark.parametrize("activation", ["none", "relu"])
@pytest.mark.parametrize("kind", [fused_bn.BatchNorm1d, fused_bn.BatchNorm2d], ids=["1d", "2d"])
def test_double_backward_of_five_by_five(kind: type[nn.Module], activation: str) -> None:
    """(5, 5) through the module: all tensors of the graph have the same size by chance."""
    shape = (5, 5) if kind is fused_bn.BatchNorm1d else (5, 5, 5, 5)
    norm = kind(5, activation=activation).double()
    x = torch.randn(shape, generator=torch.Generator().manual_seed(3), dtype=torch.float64) * 3
    x.requires_grad_()
    assert torch.autograd.gradgradcheck(norm, (x,), fast_mode=True)


@pytest.mark.core
@pytest.mark.parametrize("layout", ["contiguous", "channels_last"])
@pytest.mark.parametrize("dtype", [torch.float32, *HALF_DTYPES], ids=lambda dtype: str(dtype)[6:])
def test_affine_off_in_half_precision(dtype: torch.dtype, layout: str, device: str) -> None:
    """Module and function without weight and bias, also without buffers, in training and evaluation."""
    activations: tuple[ActivationName, ...] = ("none", "relu")
    for activation, tracking in product(activations, (True, False)):
        norm = fused_bn.BatchNorm2d(
            5, affine=False, track_running_stats=tracking, activation=activation, device=device, dtype=dtype
        )
        for training in (True, False):
            norm.train(training)
            case = Case((4, 5, 6, 7), layout, dtype, dtype, weight=False, bias=False, buffers=tracking)
            tensors = make_tensors(case, device)
            x = tensors.input.requires_grad_()
            output = norm(x)
            output.backward(tensors.grad_output)
            assert output.dtype == present(x.grad).dtype == dtype
            assert output.isfinite().all()
            assert present(x.grad).isfinite().all()
            assert present(x.grad).stride() == x.stride()


@pytest.mark.parametrize(
    ("shape", "layout"),
    [
        ((125000, 50), "contiguous"),
        ((4, 6, 65536), "contiguous"),
        ((35000, 16, 2, 2), "channels_last"),
        ((32, 64, 7, 7), "contiguous"),
    ],
    ids=lambda value: value if isinstance(value, str) else "x".join(map(str, value)),
)
def test_slow_places_of_others_are_right(shape: tuple[int, ...], layout: str, device: str) -> None:
    """Tall, long and tiny tensors, which need special code to be fast. This test checks only the results.

    140,000 rows have 16 channels instead of 256, to keep the fp64 reference fast.
    """
    case = Case(shape, layout)
    assert_meets_demands(case, make_tensors(case, device))


@pytest.mark.core
@pytest.mark.parametrize("residual", [True, False])
def test_leaky_relu_of_slope_0_is_relu(residual: bool, device: str) -> None:
    """Nothing is divided by the slope, and nothing is reconstructed from the output."""
    case = Case((4, 5, 6, 7), activation="relu", residual=residual)
    tensors = make_tensors(case, device)
    results = []
    for options in ({"activation": "relu"}, {"activation": "leaky_relu", "activation_param": 0.0}):
        own = tensors.clone().require_grad()
        arguments = (own.input, own.running_mean, own.running_var, own.weight, own.bias, True)
        y = fused_bn.functional.batch_norm(*arguments, residual=own.residual, **options)
        y.backward(own.grad_output)
        results.append((y, own.input.grad, own.weight.grad, own.bias.grad))  # type: ignore[union-attr]
    for mine, other in zip(*results, strict=True):
        assert torch.equal(present(mine), present(other))  # and -0.0 equals 0.0


def test_torchs_sync_conversion_takes_a_plain_norm() -> None:
    torch.manual_seed(0)
    conv, norm = nn.Conv2d(3, 6, 3), fused_bn.BatchNorm2d(6)
    model = nn.Sequential(conv, norm)
    model(torch.randn(4, 3, 5, 5))
    expected = model.eval()(x := torch.randn(4, 3, 5, 5))
    converted = nn.SyncBatchNorm.convert_sync_batchnorm(model)
    assert type(converted[1]) is nn.SyncBatchNorm
    assert converted[1].weight is norm.weight
    # Both compute the same with a few roundings in fp32.
    torch.testing.assert_close(converted(x), expected, rtol=1e-5, atol=1e-5)


def test_a_norm_without_an_activation_is_folded_into_a_convolution() -> None:
    """torch treats ours as an nn.BatchNorm2d and copies parameters and statistics."""
    torch.manual_seed(0)
    x = torch.randn(4, 3, 5, 5)
    conv, norm = nn.Conv2d(3, 6, 3).eval(), fused_bn.BatchNorm2d(6)
    norm(torch.randn(8, 6, 3, 3) * 2 + 1)
    nn.init.uniform_(present(norm.weight))
    expected = nn.Sequential(conv, norm.eval())(x)
    folded = fuse_conv_bn_eval(conv, norm)
    assert type(folded) is nn.Conv2d
    torch.testing.assert_close(folded(x), expected, rtol=1e-5, atol=1e-5)

"""prelu, whose slopes are a parameter: its gradient, its owner, and what fuse does with nn.PReLU."""

import copy
import pickle
from itertools import product
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.autograd import forward_ad
from torch.nn import functional as F

import fused_bn
from fused_bn.functional import batch_norm
from tests.cases import Case, in_layout, make_tensors, present, run_fused, same_bits
from tests.reference import assert_meets_demands
from tests.twins import FP64_TOLERANCE, assert_near, batch, step

CASES = [
    Case(shape, layout, dtype, parameter_dtype, training=training, activation="prelu", residual=residual)
    for shape, layout in (
        ((64, 6, 28, 28), "contiguous"),
        ((5, 17, 3, 5), "channels_last"),
        ((9, 33), "contiguous"),
    )
    for dtype, parameter_dtype in ((torch.float32, torch.float32), (torch.bfloat16, torch.float32))
    for training, residual in product((True, False), repeat=2)
]


@pytest.mark.core
@pytest.mark.parametrize("case", CASES, ids=str)
def test_all_gradients_meet_the_demands(case: Case, device: str) -> None:
    """Also the slopes' gradients: the sum over a channel of grad_output * min(z, 0)."""
    result = assert_meets_demands(case, make_tensors(case, device))
    assert present(result.grad_negative_slope).shape == (case.channels,)


def pairs(count: int, device: str, **options: Any) -> tuple[nn.Module, nn.Module]:
    """Ours, and the norm and nn.PReLU that it replaces."""
    slopes = torch.linspace(-0.3, 0.9, count, dtype=torch.float64)
    activations = [nn.PReLU(count).to(device, torch.float64) for _ in range(2)]
    for each in activations:
        each.weight.data.copy_(slopes)
    ours = fused_bn.BatchNorm2d(6, activation=activations[0], dtype=torch.float64, device=device, **options)
    theirs = nn.Sequential(nn.BatchNorm2d(6, dtype=torch.float64, device=device, **options), activations[1])
    return ours, theirs


@pytest.mark.parametrize("count", [1, 6])
@pytest.mark.parametrize("training", [True, False])
def test_a_module_computes_what_norm_and_prelu_do(count: int, training: bool, device: str) -> None:
    """Slopes below 0 too, for which the output's sign does not tell z's."""
    ours, theirs = (each.train(training) for each in pairs(count, device))
    x, _, grad_output = batch(device=device)
    assert_near(step(ours, x, None, grad_output), step(theirs, x, None, grad_output))


def test_the_parameter_is_the_modules_own() -> None:
    activation = nn.PReLU(6)
    norm = fused_bn.BatchNorm2d(6, activation=activation)
    assert norm.prelu_weight is activation.weight
    assert [name for name, _ in norm.named_parameters()] == ["weight", "bias", "prelu_weight"]
    copied = copy.deepcopy(norm)
    assert copied.prelu_weight is not norm.prelu_weight
    copied.load_state_dict({name: value + 1 for name, value in norm.state_dict().items()})
    assert torch.equal(copied.prelu_weight, activation.weight + 1)


def test_prelu_by_name_learns_one_slope() -> None:
    norm = fused_bn.BatchNorm2d(6, activation="prelu", activation_param=0.1, dtype=torch.float64)
    assert norm.prelu_weight.shape == (1,)
    assert norm.prelu_weight.dtype is torch.float64
    assert norm.prelu_weight.item() == 0.1
    optimizer = torch.optim.SGD(norm.parameters(), lr=0.1)
    x = torch.randn(8, 6, 5, 5, dtype=torch.float64)
    norm(x).square().sum().backward()
    optimizer.step()
    assert norm.prelu_weight.item() != 0.1
    norm.reset_parameters()
    assert norm.prelu_weight.item() == 0.1
    for spelling in (nn.PReLU, F.prelu):
        norm = fused_bn.BatchNorm2d(6, activation=spelling, dtype=torch.float64)
        assert norm.prelu_weight.item() == 0.25
        assert norm.prelu_weight.dtype is torch.float64
    bare = fused_bn.BatchNorm2d(6, affine=False, track_running_stats=False, device="meta", activation="prelu")
    assert bare.prelu_weight.is_meta


def test_slopes_that_came_in_a_module_are_kept() -> None:
    """By a lazy norm, which initialises itself at its first input, and by reset_parameters."""
    lazy = fused_bn.LazyBatchNorm2d(activation=nn.PReLU(6, init=0.1))
    lazy(torch.randn(2, 6, 3, 3))
    lazy.reset_parameters()
    assert torch.equal(lazy.prelu_weight, torch.full((6,), 0.1))
    reloaded = pickle.loads(pickle.dumps(lazy))
    assert torch.equal(reloaded.prelu_weight, lazy.prelu_weight)
    given = torch.tensor(0.3)
    assert fused_bn.BatchNorm2d(6, activation="prelu", activation_param=given).prelu_weight.shape == (1,)


def test_a_number_is_a_slope_that_is_not_learned() -> None:
    """Stored in float32: 0.1 in bfloat16 would round differently from leaky_relu's."""
    x = torch.randn(64, 6, 5, 5).bfloat16()
    options: dict[str, Any] = {"training": True, "activation_param": 0.1}
    y = batch_norm(x, None, None, activation="prelu", **options)
    assert not y.requires_grad
    assert torch.equal(y, batch_norm(x, None, None, activation="leaky_relu", **options))
    with pytest.raises(ValueError, match="activation_param must be a finite number"):
        batch_norm(x, None, None, training=True, activation="prelu", activation_param=float("nan"))


def test_a_refused_fuse_modules_leaves_the_norm_as_it_was() -> None:
    model = nn.Sequential(nn.Conv2d(3, 6, 1), fused_bn.BatchNorm2d(6, activation=nn.PReLU(6))).eval()
    x = torch.randn(2, 3, 4, 4)
    expected = model(x)
    with pytest.raises(RuntimeError, match="cannot fold the prelu"):
        torch.ao.quantization.fuse_modules(model, [["0", "1"]], inplace=True)
    assert torch.equal(model(x), expected)


@pytest.mark.needs_extension
def test_slopes_that_share_memory_with_running_statistics_are_refused() -> None:
    running = torch.zeros(6)
    with pytest.raises(RuntimeError, match="running_mean and negative_slope share memory"):
        batch_norm(
            torch.randn(4, 6, 3, 3), running, torch.ones(6), None, None, True, activation="prelu",
            activation_param=running,
        )  # fmt: skip


def test_an_infinite_gradient_where_the_slope_is_not_used() -> None:
    """Only values below 0 enter the slope's gradient, also in forward mode over backward."""
    x = torch.tensor([[1.0], [-1.0], [2.0], [-3.0]], dtype=torch.float64)
    grad = torch.tensor([[float("inf")], [1.0], [1.0], [1.0]], dtype=torch.float64)
    slopes = torch.full((1,), 0.25, dtype=torch.float64, requires_grad=True)

    def of_slopes(grad: Tensor) -> Tensor:
        y = batch_norm(
            x, torch.zeros(1).double(), torch.ones(1).double(), activation="prelu", activation_param=slopes
        )
        return torch.autograd.grad(y, slopes, grad, create_graph=True)[0]

    expected = torch.tensor([-4.0], dtype=torch.float64)
    torch.testing.assert_close(of_slopes(grad), expected, rtol=1e-4, atol=0)
    with forward_ad.dual_level():
        dual = forward_ad.make_dual(grad, torch.ones_like(grad))
        torch.testing.assert_close(
            forward_ad.unpack_dual(of_slopes(dual)).primal, expected, rtol=1e-4, atol=0
        )


def test_under_autocast_a_fused_pair_gives_what_the_modules_give() -> None:
    """Autocast casts the arguments of prelu, but not those of batch norm and ReLU."""
    plain = nn.Sequential(nn.BatchNorm2d(6), nn.PReLU(6))
    model, x = fused_bn.fuse(copy.deepcopy(plain)), torch.randn(4, 6, 3, 3)
    with torch.autocast("cpu", torch.bfloat16):
        for given in (x, x.bfloat16()):
            assert model(given).dtype is plain(given).dtype


def test_the_activation_may_be_changed() -> None:
    """An unused parameter would have no gradient, which DistributedDataParallel refuses."""
    norm = fused_bn.BatchNorm2d(6)
    norm.activation = nn.PReLU(6)  # type: ignore[assignment]
    assert norm.prelu_weight.shape == (6,)
    norm.activation = "relu"
    assert "prelu_weight" not in dict(norm.named_parameters())
    norm.activation = "prelu"
    assert norm.prelu_weight.item() == norm.activation_param == 0.25
    norm.activation = "leaky_relu"
    assert norm.activation_param is None, "that was prelu's"


@pytest.mark.parametrize("slopes", [torch.ones(6, 1), torch.ones(6, dtype=torch.int64)])
def test_invalid_slopes_are_refused(slopes: Tensor) -> None:
    with pytest.raises(ValueError, match="activation_param of prelu must be a floating-point tensor"):
        fused_bn.BatchNorm2d(6, activation="prelu", activation_param=slopes)
    with pytest.raises(ValueError, match="activation_param of prelu must be a floating-point tensor"):
        batch_norm(
            torch.randn(4, 6, 3, 3), None, None, training=True, activation="prelu", activation_param=slopes
        )


def test_slopes_for_other_channels_are_refused() -> None:
    norm = fused_bn.BatchNorm2d(6, activation=nn.PReLU(5))
    with pytest.raises(RuntimeError, match="negative_slope should contain 6 elements not 5"):
        norm(torch.randn(4, 6, 3, 3))


def test_first_and_second_derivatives(device: str) -> None:
    """Gradients of the input, the parameters, the slopes and a residual, by finite differences."""
    generator = torch.Generator().manual_seed(3)

    def leaf(*shape: int) -> Tensor:
        return torch.randn(shape, generator=generator, dtype=torch.float64).to(device).requires_grad_()

    def call(x: Tensor, weight: Tensor, bias: Tensor, slopes: Tensor, residual: Tensor) -> Tensor:
        options: dict[str, Any] = {"activation": "prelu", "activation_param": slopes, "residual": residual}
        return batch_norm(x, None, None, weight, bias, training=True, **options)

    for count in (1, 3):
        given = (leaf(4, 3, 2, 2), leaf(3), leaf(3), leaf(count), leaf(4, 3, 2, 2))
        torch.autograd.gradcheck(call, given)
        torch.autograd.gradgradcheck(call, given)


def test_values_that_are_not_finite_pass_as_in_pytorch(device: str) -> None:
    x = torch.tensor([[1.0, float("nan")], [-2.0, 1.0], [float("inf"), 0.5], [0.0, -1.0]], device=device)
    mean, variance = torch.zeros(2, device=device), torch.ones(2, device=device)
    slopes = torch.tensor([0.5, 0.0], device=device)
    ours = batch_norm(x, mean, variance, eps=0.0, activation="prelu", activation_param=slopes)
    assert torch.equal(ours.nan_to_num(9.0), F.prelu(x, slopes).nan_to_num(9.0))


@pytest.mark.parametrize("layout", ["contiguous", "channels_last"])
def test_the_same_bits_with_and_without_the_gradient_of_the_slopes(layout: str, device: str) -> None:
    """It runs separately."""
    case = Case((8, 17, 9, 9), layout, activation="prelu")
    tensors = make_tensors(case, device)
    expected = run_fused(case, tensors)
    own = tensors.clone().require_grad()
    slopes = present(own.negative_slope).detach()
    y = batch_norm(
        own.input, None, None, own.weight, own.bias, True, activation="prelu", activation_param=slopes
    )
    y.backward(own.grad_output)
    assert torch.equal(present(own.input.grad), expected.grad_input)
    assert same_bits(present(own.weight).grad, expected.grad_weight)


class Block(nn.Module):
    """As in segmentation networks: convolution, norm, one slope per channel, and a sum before another one."""

    def __init__(self) -> None:
        super().__init__()
        self.conv, self.bn, self.act = nn.Conv2d(4, 8, 3, padding=1), nn.BatchNorm2d(8), nn.PReLU(8)
        self.last, self.last_bn, self.last_act = nn.Conv2d(8, 8, 1), nn.BatchNorm2d(8), nn.PReLU()
        self.act.weight.data.copy_(torch.linspace(-0.3, 0.9, 8))

    def forward(self, x: Tensor) -> Tensor:
        y = self.act(self.bn(self.conv(x)))
        return self.last_act(self.last_bn(self.last(y)) + y)


def test_fuse_takes_the_modules_slopes(device: str) -> None:
    """They stay in place with their gradients. An older optimiser goes on training them."""
    torch.manual_seed(1)
    plain = Block().to(device, torch.float64)
    model = copy.deepcopy(plain)
    optimizers = [torch.optim.SGD(each.parameters(), lr=1e-3) for each in (plain, model)]
    report: Any = fused_bn.fuse(model).fusion_report
    assert sorted(norm.outcome for norm in report.norms) == ["add, prelu", "prelu"]
    assert list(model.state_dict()) == list(plain.state_dict())
    x = torch.randn(4, 4, 6, 6, dtype=torch.float64, device=device)
    for _ in range(3):
        assert_near(
            step(model, x, None), step(plain, x, None), 10 * FP64_TOLERANCE
        )  # three steps, each from the last step's parameters
        for optimizer in optimizers:
            optimizer.step()
    assert not torch.equal(model.act.weight, torch.full_like(model.act.weight, 0.25))
    fused_bn.unfuse(model)
    assert_near([model(x)], [plain(x)], 10 * FP64_TOLERANCE)


@pytest.mark.usefixtures("fresh_compiler")
def test_compiled_exported_and_traced() -> None:
    torch.manual_seed(1)
    model = fused_bn.fuse(Block())
    x = in_layout(torch.randn(4, 4, 6, 6), "channels_last")
    expected = step(model, x, None)
    compiled: Any = torch.compile(model, fullgraph=True)
    torch.testing.assert_close(step(compiled, x, None), expected)
    model.eval()
    for program in (torch.export.export(model, (x,)).module(), torch.jit.trace(model, x)):
        torch.testing.assert_close(program(x), model(x))


def test_unfused_norms_and_recomputed_outputs_keep_the_slopes() -> None:
    torch.manual_seed(2)
    model = nn.Sequential(
        nn.Conv2d(3, 64, 3, padding=1), nn.BatchNorm2d(64), nn.PReLU(64), nn.Conv2d(64, 8, 3)
    )
    x = torch.randn(8, 3, 32, 32)
    expected = step(copy.deepcopy(model), x, None)
    recomputed = fused_bn.fuse(copy.deepcopy(model), recompute=True)
    torch.testing.assert_close(step(recomputed, x, None), expected, rtol=1e-4, atol=1e-3)
    norm = fused_bn.BatchNorm2d(3, activation=nn.PReLU(3))
    y = norm.eval()(x)
    plain = fused_bn.unfuse(norm)
    assert type(plain).__module__ != "fused_bn.modules"
    torch.testing.assert_close(plain(x), y)

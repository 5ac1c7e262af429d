"""The modules drop in for nn.BatchNorm*: values, state_dict both ways, copies, casts, autocast."""

import copy
import io
import pickle
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

import fused_bn
from benchmarks.lenet import agreement
from tests.cases import NEWER_TORCH, in_layout, present
from tests.reference import DEMANDED_GRAD_INPUT, DEMANDED_GRAD_PARAMETER, DEMANDED_OUTPUT

RANKS: dict[str, tuple[type[nn.Module], type[nn.Module], tuple[int, ...], str]] = {
    "1d of rank 2": (fused_bn.BatchNorm1d, nn.BatchNorm1d, (16, 6), "contiguous"),
    "1d of rank 3": (fused_bn.BatchNorm1d, nn.BatchNorm1d, (4, 6, 9), "contiguous"),
    "2d": (fused_bn.BatchNorm2d, nn.BatchNorm2d, (4, 6, 7, 5), "contiguous"),
    "2d channels_last": (fused_bn.BatchNorm2d, nn.BatchNorm2d, (4, 6, 7, 5), "channels_last"),
    "3d": (fused_bn.BatchNorm3d, nn.BatchNorm3d, (2, 6, 3, 4, 5), "contiguous"),
    "3d channels_last": (fused_bn.BatchNorm3d, nn.BatchNorm3d, (2, 6, 3, 4, 5), "channels_last_3d"),
}
OPTIONS: dict[str, dict[str, Any]] = {
    "default": {},
    "affine off": {"affine": False},
    "tracking off": {"track_running_stats": False},
    "neither": {"affine": False, "track_running_stats": False},
    "momentum None": {"momentum": None},
    "eps and momentum": {"eps": 0.1, "momentum": 0.7},
    **({"bias off": {"bias": False}} if NEWER_TORCH else {}),
}
OUTPUT_TOLERANCE = 2 * DEMANDED_OUTPUT * 10
"""Twice the demand (half of it for PyTorch), for |w xhat| + |w| + |b| of up to 10 here."""
GRADIENT_TOLERANCE = 2 * DEMANDED_GRAD_INPUT * 20
"""Twice the demand, for |w invstd| of up to 1.5 and 1 + |dy| + |xhat| of up to 13 here."""
PARAMETER_TOLERANCE = 2 * DEMANDED_GRAD_PARAMETER * 40
"""Twice the demand, for sqrt(sum (dy xhat)^2) over up to 140 values. dy has a root mean square of 1. xhat has
3.3 in evaluation, where the running statistics lag behind."""


def inputs(shape: tuple[int, ...], layout: str, device: str, count: int) -> list[Tensor]:
    generator = torch.Generator().manual_seed(7)
    return [
        in_layout((torch.randn(shape, generator=generator) * 3 + 1).to(device), layout) for _ in range(count)
    ]


def pair(kind: str, device: str, activation: str, **options: Any) -> tuple[nn.Module, nn.Module]:
    """Ours with the activation and theirs without, with the same random parameters."""
    ours_type, theirs_type, shape, _ = RANKS[kind]
    ours = ours_type(shape[1], activation=activation, **options)
    theirs = theirs_type(shape[1], **options)
    generator = torch.Generator().manual_seed(8)
    for parameter in theirs.parameters():
        nn.init.uniform_(parameter, -1.5, 1.5, generator=generator)
    ours.load_state_dict(theirs.state_dict())
    return ours.to(device), theirs.to(device)


def assert_same_state(ours: nn.Module, theirs: nn.Module, tolerance: float) -> None:
    mine, other = ours.state_dict(), theirs.state_dict()
    assert list(mine) == list(other)
    for name in mine:
        assert mine[name].dtype == other[name].dtype
        torch.testing.assert_close(mine[name], other[name], rtol=tolerance, atol=tolerance, msg=name)


@pytest.mark.core
@pytest.mark.parametrize("activation", ["none", "relu"])
@pytest.mark.parametrize("options", OPTIONS)
@pytest.mark.parametrize("kind", RANKS)
def test_training_then_evaluation_follows_nn_batchnorm(
    kind: str, options: str, activation: str, device: str
) -> None:
    """Three training steps and one evaluation: outputs, gradients, and state_dict after each."""
    ours, theirs = pair(kind, device, activation, **OPTIONS[options])
    shape, layout = RANKS[kind][2:]
    for step, x in enumerate(inputs(shape, layout, device, 4)):
        if step == 3:
            ours.eval()
            theirs.eval()
        a, b = x.clone().requires_grad_(), x.clone().requires_grad_()
        mine, other = ours(a), theirs(b)
        other = other.relu() if activation == "relu" else other
        torch.testing.assert_close(mine, other, rtol=0, atol=OUTPUT_TOLERANCE)
        assert mine.stride() == x.stride()
        grad_output = inputs(shape, layout, device, 5)[step + 1].sub(1).div(3)
        mine.backward(grad_output)
        other.backward(grad_output)
        torch.testing.assert_close(a.grad, b.grad, rtol=0, atol=GRADIENT_TOLERANCE)
        assert present(a.grad).stride() == x.stride()
        for p, q in zip(ours.parameters(), theirs.parameters(), strict=True):
            torch.testing.assert_close(p.grad, q.grad, rtol=0, atol=PARAMETER_TOLERANCE)
        assert_same_state(ours, theirs, OUTPUT_TOLERANCE)


@pytest.mark.parametrize("options", OPTIONS)
@pytest.mark.parametrize("kind", ["1d of rank 2", "2d", "3d"])
def test_checkpoints_load_both_ways_and_through_files(kind: str, options: str) -> None:
    ours, theirs = pair(kind, "cpu", "relu", **OPTIONS[options])
    ours(inputs(*RANKS[kind][2:], "cpu", 1)[0])
    theirs.load_state_dict(ours.state_dict())
    assert_same_state(ours, theirs, 0)
    file = io.BytesIO()
    torch.save(theirs.state_dict(), file)
    file.seek(0)
    again = RANKS[kind][0](RANKS[kind][2][1], activation="relu", **OPTIONS[options])
    again.load_state_dict(torch.load(file))
    assert_same_state(again, ours, 0)


def test_checkpoint_without_num_batches_tracked_loads_as_in_nn_batchnorm() -> None:
    """A checkpoint older than the counter: the counter is unchanged and not reported missing [8481]."""
    old = nn.BatchNorm2d(3).state_dict()
    del old["num_batches_tracked"]
    old._metadata[""]["version"] = 1  # type: ignore[attr-defined]
    old["running_mean"] += 2
    for kind in (nn.BatchNorm2d, fused_bn.BatchNorm2d):
        norm = kind(3)
        norm(torch.randn(2, 3, 4, 4))
        norm.load_state_dict(old)
        assert norm.num_batches_tracked == 1
        assert torch.equal(present(norm.running_mean), torch.full((3,), 2.0))


def test_empty_state_dict_reports_the_same_missing_keys() -> None:
    """With strict=True an error with nn.BatchNorm2d's text. Otherwise nothing is reset [110361]."""
    texts = []
    for kind in (nn.BatchNorm2d, fused_bn.BatchNorm2d):
        with pytest.raises(RuntimeError, match="Missing key") as caught:
            kind(3).load_state_dict({})
        texts.append(str(caught.value))
    assert texts[0] == texts[1]
    norm = fused_bn.BatchNorm2d(3)
    norm(torch.randn(2, 3, 4, 4))
    before = copy.deepcopy(norm.state_dict())
    norm.load_state_dict({}, strict=False)
    assert all(torch.equal(before[name], value) for name, value in norm.state_dict().items())


@pytest.mark.parametrize("way", ["deepcopy", "pickle", "torch.save"])
def test_copies_are_equal_and_independent(way: str) -> None:
    norm = fused_bn.BatchNorm2d(5, eps=0.1, momentum=None, activation="relu")
    x = torch.randn(4, 5, 3, 3)
    norm(x)
    if way == "deepcopy":
        copied = copy.deepcopy(norm)
    elif way == "pickle":
        copied = pickle.loads(pickle.dumps(norm))
    else:
        file = io.BytesIO()
        torch.save(norm, file)
        file.seek(0)
        copied = torch.load(file, weights_only=False)
    assert (copied.activation, copied.eps, copied.momentum) == ("relu", 0.1, None)
    before = copy.deepcopy(norm.state_dict())
    assert torch.equal(copied(x), copy.deepcopy(norm)(x))
    assert all(torch.equal(before[name], value) for name, value in norm.state_dict().items())
    assert copied.num_batches_tracked == 2
    assert norm.num_batches_tracked == 1


def test_it_is_an_nn_batchnorm_and_says_its_activation() -> None:
    """Code that looks for nn.BatchNorm2d (freezing, weight decay, fusion) must find ours."""
    for ours, theirs in ((RANKS[kind][0], RANKS[kind][1]) for kind in RANKS):
        assert issubclass(ours, theirs)
        plain = repr(ours(3)), repr(theirs(3))
        assert plain[0] == plain[1]
        assert repr(ours(3, activation="relu")).endswith(", activation=relu)")


def test_constructor_takes_device_and_dtype_by_position_as_nn_batchnorm() -> None:
    norm = fused_bn.BatchNorm2d(4, 1e-3, 0.2, True, True, "meta", torch.float64, activation="relu")
    assert (norm.eps, norm.momentum) == (1e-3, 0.2)
    assert present(norm.weight).device.type == "meta"
    assert present(norm.running_var).dtype == torch.float64


def test_reset_gives_the_state_of_a_new_module() -> None:
    norm = fused_bn.BatchNorm2d(3, activation="relu")
    norm(torch.randn(2, 3, 4, 4))
    norm.reset_parameters()
    assert_same_state(norm, nn.BatchNorm2d(3), 0)


CASTS = {torch.float64: 1e-14, torch.float16: 2.0**-8, torch.bfloat16: 2.0**-5}
"""fp64: 50 roundings. Half precision: 4 ulp of 1 (2^-10 and 2^-7), two for each side's half statistics."""


@pytest.mark.parametrize("layout", ["contiguous", "channels_last"])
@pytest.mark.parametrize("dtype", CASTS, ids=lambda dtype: str(dtype)[6:])
def test_cast_modules_follow_cast_nn_batchnorm(dtype: torch.dtype, layout: str, device: str) -> None:
    """.double(), .half() and .bfloat16() cast parameters and buffers. Output and state keep that dtype."""
    ours, theirs = pair("2d", device, "relu")
    ours, theirs = ours.to(dtype), theirs.to(dtype)
    x = inputs((4, 6, 7, 5), layout, device, 1)[0].to(dtype)
    for training in (True, False):
        mine, other = ours.train(training)(x), theirs.train(training)(x).relu()
        assert mine.dtype == dtype
        torch.testing.assert_close(mine, other, rtol=CASTS[dtype], atol=2 * CASTS[dtype])
    assert_same_state(ours, theirs, CASTS[dtype])


@pytest.mark.parametrize("training", [True, False], ids=["training", "evaluation"])
def test_autocast_keeps_parameters_in_fp32_and_the_dtype_of_nn_batchnorm(training: bool, device: str) -> None:
    """Under autocast a convolution returns bfloat16. Output dtype and gradients are nn.BatchNorm2d's."""
    results = []
    for kind in ("ours", "theirs"):
        torch.manual_seed(0)
        norm = fused_bn.BatchNorm2d(6, activation="relu") if kind == "ours" else nn.BatchNorm2d(6)
        # No bias: in training the norm subtracts it again, so its gradient would be 0 up to roundings.
        convolution = nn.Conv2d(3, 6, 3, bias=not training)
        net = nn.Sequential(convolution, norm, *([] if kind == "ours" else [nn.ReLU()])).to(device)
        net.train(training)
        x = torch.randn(4, 3, 9, 9).to(device)
        with torch.autocast(device, dtype=torch.bfloat16):
            output = net(x)
        output.float().square().mean().backward()
        results.append((output.detach(), [parameter.grad for parameter in net.parameters()]))
    (mine, gradients), (other, their_gradients) = results
    assert mine.dtype == other.dtype
    torch.testing.assert_close(mine, other, rtol=2.0**-7, atol=2.0**-7)  # one ulp of bf16 on each side
    for a, b in zip(gradients, their_gradients, strict=True):
        assert present(a).dtype == torch.float32
        # 196 terms with a relative error of 2^-8 each, of random sign
        torch.testing.assert_close(a, b, rtol=2.0**-4, atol=2.0**-4 * float(present(b).abs().max()))


def test_activation_checkpointing_counts_twice_like_nn_batchnorm(device: str) -> None:
    """As in PyTorch, the recomputed forward updates the running statistics again [96136]."""
    for activation in ("none", "relu"):
        ours, theirs = pair("2d", device, activation)
        x = inputs((4, 6, 7, 5), "contiguous", device, 1)[0]
        for norm in (ours, theirs):
            checkpoint(norm, x.clone().requires_grad_(), use_reentrant=False).sum().backward()
        assert ours.num_batches_tracked == theirs.num_batches_tracked == 2
        assert_same_state(ours, theirs, OUTPUT_TOLERANCE)


def test_evaluation_never_touches_the_statistics(device: str) -> None:
    norm = fused_bn.BatchNorm2d(6).to(device).eval()
    before = {name: (value.clone(), value._version) for name, value in norm.state_dict().items()}
    for x in inputs((4, 6, 7, 5), "contiguous", device, 2):
        norm(x.requires_grad_()).sum().backward()
        with torch.no_grad():
            norm(x)
    for name, value in norm.state_dict().items():
        assert torch.equal(value, before[name][0])
        assert value._version == before[name][1]


class Halved(nn.Module):
    def forward(self, value: Tensor) -> Tensor:
        return value / 2 if value.is_floating_point() else value


@pytest.mark.parametrize("name", ["running_mean", "running_var", "num_batches_tracked"])
@pytest.mark.parametrize("way", ["attribute", "parameter", "parametrised"])
def test_statistics_need_not_be_buffers(way: str, name: str) -> None:
    """As in nn.BatchNorm, which reads attributes. A deleted one gives the same error text."""
    found = []
    for kind in (nn.BatchNorm1d, fused_bn.BatchNorm1d):
        norm: Any = kind(3)
        value = getattr(norm, name).clone()
        if way == "parametrised":
            nn.utils.parametrize.register_parametrization(norm, name, Halved(), unsafe=True)
        else:
            delattr(norm, name)
            with pytest.raises(AttributeError, match=f"has no attribute '{name}'"):
                norm(torch.randn(4, 3))
            made = nn.Parameter(value, requires_grad=False) if way == "parameter" else value
            setattr(norm, name, made)
        norm(torch.arange(12.0).view(4, 3))
        found.append(getattr(norm, name).detach())
    assert torch.allclose(*found)


def test_tracking_switched_off_later_behaves_as_in_nn_batchnorm(device: str) -> None:
    """Setting track_running_stats to False on a module with buffers is a known trick to freeze them."""
    for training in (True, False):
        ours, theirs = pair("2d", device, "none")
        for norm in (ours, theirs):
            norm.train(training)
            setattr(norm, "track_running_stats", False)  # noqa: B010  (nn.Module's own type)
        x = inputs((4, 6, 7, 5), "contiguous", device, 1)[0]
        torch.testing.assert_close(ours(x), theirs(x), rtol=0, atol=OUTPUT_TOLERANCE)
        assert_same_state(ours, theirs, OUTPUT_TOLERANCE)


@pytest.mark.parametrize("momentum", [None, 0.1])
def test_statistics_after_many_batches_follow_nn_batchnorm(momentum: float | None, device: str) -> None:
    """20 batches of different sizes: the blend's errors must not accumulate beyond rounding."""
    for layout in ("contiguous", "channels_last"):
        ours, theirs = pair("2d", device, "relu", momentum=momentum)
        generator = torch.Generator().manual_seed(9)
        for step in range(20):
            shape = (1 + step % 4, 6, 3 + step, 5)
            x = in_layout((torch.randn(shape, generator=generator) * 3 + step).to(device), layout)
            ours(x)
            theirs(x)
        assert_same_state(ours, theirs, 20 * OUTPUT_TOLERANCE)


def test_sequential_of_conv_norm_trains_like_the_original(device: str) -> None:
    """Ten steps of SGD from one seed: ours is as near to the original as the A/A controls.

    benchmarks/lenet/agreement.py measures the bound in the same way for LeNet-5's losses.
    """

    def losses(layout: str, *norm: nn.Module) -> Tensor:
        torch.manual_seed(0)
        net = nn.Sequential(nn.Conv2d(3, 8, 3), *norm, nn.Flatten(), nn.Linear(8 * 36, 4)).to(device)
        optimizer = torch.optim.SGD(net.parameters(), lr=0.05)
        x = in_layout(torch.randn(16, 3, 8, 8).to(device), layout)
        target = torch.arange(16, device=device) % 4
        history = []
        for _ in range(10):
            optimizer.zero_grad()
            loss = nn.functional.cross_entropy(net(x), target)
            loss.backward()
            optimizer.step()
            history.append(loss.detach().cpu())
        return torch.stack(history)

    original = losses("contiguous", nn.BatchNorm2d(8), nn.ReLU())
    assert original[-1] < original[0]
    controls = []
    for seed in range(agreement.CONTROLS):
        generator = torch.Generator(device).manual_seed(seed)
        norm = (nn.BatchNorm2d(8), agreement.Rounding(generator), nn.ReLU())
        controls.append(losses("contiguous", *norm))
    for layout in ("contiguous", "channels_last"):
        ours = losses(layout, fused_bn.BatchNorm2d(8, activation="relu"))
        differences, bounds = agreement.compare(original, ours, controls)
        assert (differences <= bounds).all(), layout
        assert bounds.max() < 1e-3  # otherwise the test would show nothing

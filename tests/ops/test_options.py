"""Every option of the modules, with every activation and a residual, compared with PyTorch's steps."""

import copy
import pickle
from collections.abc import Callable
from itertools import product
from typing import Any

import pytest
import torch
from torch import Tensor, nn

import fused_bn
from fused_bn._activations import ACTIVATIONS
from tests.cases import Case, Tensors, call_fused, in_layout, make_tensors, present, same_bits
from tests.modules.test_module import RANKS
from tests.ops.test_autograd import VIEWS
from tests.twins import assert_near, assert_same_buffers, batch, ours_and_original, step

LAZY = {
    "1d of rank 2": fused_bn.LazyBatchNorm1d,
    "1d of rank 3": fused_bn.LazyBatchNorm1d,
    "2d": fused_bn.LazyBatchNorm2d,
    "2d channels_last": fused_bn.LazyBatchNorm2d,
    "3d": fused_bn.LazyBatchNorm3d,
    "3d channels_last": fused_bn.LazyBatchNorm3d,
}
OPTIONS: dict[str, dict[str, Any]] = {
    "default": {},
    "bias off": {"bias": False},
    "affine off": {"affine": False},
    "tracking off": {"track_running_stats": False},
    "momentum None": {"momentum": None},
}


@pytest.mark.parametrize("residual", [False, True], ids=["alone", "residual"])
@pytest.mark.parametrize("activation", ACTIVATIONS)
@pytest.mark.parametrize("kind", RANKS)
def test_every_activation_follows_the_original(
    kind: str, activation: str, residual: bool, device: str
) -> None:
    """Two training steps and one evaluation: outputs, gradients, statistics, layouts."""
    ours, theirs = ours_and_original(kind, activation, device=device)
    for seed, training in enumerate((True, True, False)):
        x, r, grad_output = batch(kind, seed=seed, device=device)
        given = (x, r if residual else None, grad_output)
        mine = step(ours.train(training), *given)
        assert_near(mine, step(theirs.train(training), *given))
        assert present(mine[0]).stride() == present(mine[1]).stride() == x.stride()
        assert_same_buffers(ours, theirs)


@pytest.mark.parametrize("activation", ["none", "leaky_relu", "gelu"])
@pytest.mark.parametrize("options", OPTIONS)
@pytest.mark.parametrize("kind", ["1d of rank 2", "2d channels_last"])
def test_every_option_with_a_residual_follows_the_original(
    kind: str, options: str, activation: str, device: str
) -> None:
    """Any parameter or statistic may be absent. bias=False works in every version of torch."""
    ours, theirs = ours_and_original(kind, activation, device=device, **OPTIONS[options])
    for seed, training in enumerate((True, True, False)):
        given = batch(kind, seed=seed, device=device)
        assert_near(step(ours.train(training), *given), step(theirs.train(training), *given))
        assert_same_buffers(ours, theirs)


RESIDUAL_VIEWS: dict[str, Callable[[Tensor], Tensor]] = {"dense": lambda x: x, **VIEWS}


def on_aliases(case: Case, tensors: Tensors) -> list[Tensor | None]:
    """Output, gradients and statistics. Copies lose strides, so only the buffers are copied."""
    own = tensors.clone()
    own.input, own.residual = tensors.input.detach(), present(tensors.residual).detach()
    output = call_fused(case, own.require_grad())
    output.backward(tensors.grad_output)
    gradients = [present(t).grad for t in (own.input, own.residual, own.weight, own.bias)]
    return [output.detach(), *gradients, own.running_mean, own.running_var]


@pytest.mark.needs_extension
@pytest.mark.parametrize(
    "layouts", [("contiguous", "channels_last"), ("channels_last", "contiguous")], ids=str
)
@pytest.mark.parametrize("view", RESIDUAL_VIEWS)
def test_strides_of_the_residual_do_not_matter(view: str, layouts: tuple[str, str], device: str) -> None:
    """Input, residual and grad_output differ in layout. The bits are those of dense copies in one layout."""
    generator = torch.Generator().manual_seed(4)

    def viewed(name: str, layout: str) -> Tensor:
        return RESIDUAL_VIEWS[name](
            in_layout(torch.randn(6, 6, 6, 6, generator=generator).to(device), layout)
        )

    x = viewed(view, layouts[0])
    of_residual = [name for name in RESIDUAL_VIEWS if viewed(name, layouts[0]).shape == x.shape]
    for other, activation, training in product(of_residual, ("none", "relu", "silu"), (True, False)):
        case = Case(tuple(x.shape), activation=activation, training=training, residual=True)
        own = make_tensors(case, device)
        own.input, own.residual = x, viewed(other, layouts[1])
        own.grad_output = in_layout(own.grad_output, layouts[1])
        found = on_aliases(case, own)
        chosen = "contiguous" if present(found[0]).is_contiguous() else "channels_last"
        dense = own.clone()
        for name in ("input", "residual", "grad_output"):
            setattr(dense, name, in_layout(getattr(own, name).clone(), chosen))
        assert all(map(same_bits, found, on_aliases(case, dense))), (other, activation, training)


@pytest.mark.parametrize("activation", ["none", "relu", "silu"])
def test_frozen_statistics_survive_train(activation: str, device: str) -> None:
    """In train() output and gradients are those of evaluation, and nothing is written or counted."""
    frozen, _ = ours_and_original("2d", activation, device=device, frozen=True)
    expected, _ = ours_and_original("2d", activation, device=device)
    before = {name: (value.clone(), value._version) for name, value in frozen.named_buffers()}
    given = batch(device=device)
    mine, other = step(frozen.train(), *given), step(expected.eval(), *given)
    assert all(map(same_bits, mine, other))
    for name, value in frozen.named_buffers():
        assert torch.equal(value, before[name][0])
        assert value._version == before[name][1]


def test_frozen_may_change_at_any_time(device: str) -> None:
    """The attribute is read at each call. train() and eval() do not change it."""
    ours, theirs = ours_and_original(device=device)
    x, _, _ = batch(device=device)
    for frozen in (False, True, False):
        setattr(ours, "frozen", frozen)  # noqa: B010  (nn.Module's own type)
        theirs.train(not frozen)
        assert_near([ours.train()(x)], [theirs(x)])
        assert_same_buffers(ours, theirs)
    assert "frozen" not in repr(ours)
    assert repr(fused_bn.BatchNorm2d(3, frozen=True)).endswith(", frozen=True)")


@pytest.mark.parametrize(
    ("options", "text"),
    [
        ({"frozen": True, "track_running_stats": False}, "frozen needs track_running_stats=True"),
        ({"bias": False, "bias_init": 1.0}, "bias_init is given, but bias is False"),
        ({"affine": False, "weight_init": 1.0}, "need affine=True"),
        ({"affine": False, "bias_init": 1.0}, "need affine=True"),
        ({"activation": "relu", "activation_param": 0.5}, "takes no activation_param"),
        ({"activation": "elu", "activation_param": float("nan")}, "must be a finite number"),
        ({"activation": "elu", "activation_param": "1"}, "must be a finite number"),
        ({"activation": "softplus", "activation_param": 0.0}, "must not be 0"),
    ],
    ids=lambda value: value if isinstance(value, str) else "",
)
def test_options_that_contradict_each_other_are_refused(options: dict[str, Any], text: str) -> None:
    for kind in (fused_bn.BatchNorm1d, fused_bn.BatchNorm2d, fused_bn.BatchNorm3d):
        with pytest.raises(ValueError, match=text):
            kind(3, **options)


def eighths(parameter: Tensor) -> None:
    nn.init.constant_(parameter, 0.125)


INITIALISERS: dict[str, tuple[dict[str, Any], float, float]] = {
    "a zero weight": ({"weight_init": 0}, 0.0, 0.0),
    "numbers": ({"weight_init": 0.5, "bias_init": -1.0}, 0.5, -1.0),
    "functions": ({"weight_init": eighths, "bias_init": nn.init.ones_}, 0.125, 1.0),
    "none": ({}, 1.0, 0.0),
}


@pytest.mark.parametrize("name", INITIALISERS)
def test_initialisers_are_applied_wherever_parameters_begin(name: str) -> None:
    """At construction, by reset_parameters, after to_empty of a module from the meta device, and lazily."""
    options, weight, bias = INITIALISERS[name]
    norm = fused_bn.BatchNorm2d(3, **options)
    reset = copy.deepcopy(norm)
    with torch.no_grad():
        for parameter in reset.parameters():
            parameter.fill_(7)
    reset(torch.randn(2, 3, 4, 4))
    reset.reset_parameters()
    from_meta = fused_bn.BatchNorm2d(3, device="meta", **options).to_empty(device="cpu")
    from_meta.reset_parameters()
    lazy = fused_bn.LazyBatchNorm2d(frozen=True, **options)
    lazy(torch.randn(2, 3, 4, 4))
    for module in (norm, reset, from_meta, lazy):
        state = module.state_dict()
        assert (state["weight"] == weight).all()
        assert (state["bias"] == bias).all()
        assert (state["running_mean"] == 0).all()
        assert (state["running_var"] == 1).all()
        assert state["num_batches_tracked"] == 0
        assert all(parameter.requires_grad for parameter in module.parameters())


def test_a_weight_alone_is_initialised() -> None:
    norm = fused_bn.BatchNorm1d(3, bias=False, weight_init=0.5)
    assert list(norm.state_dict()) == ["weight", "running_mean", "running_var", "num_batches_tracked"]
    assert norm.bias is None
    for value, module in ((0.5, norm), (1.0, fused_bn.BatchNorm1d(3, bias=False))):
        assert (present(module.weight) == value).all()
        nn.init.zeros_(module.weight)
        module.reset_parameters()
        assert (present(module.weight) == value).all()


@pytest.mark.parametrize("kind", LAZY)
def test_a_lazy_module_becomes_the_one_that_its_name_says(kind: str, device: str) -> None:
    """With a residual in the first call, by position or name: results and state are the original's."""
    eager_type, _, shape, _ = RANKS[kind]
    x, residual, grad_output = batch(kind, device=device, dtype=torch.float32)
    for by_name in (False, True):
        eager = eager_type(shape[1], activation="silu", device=device)
        lazy = LAZY[kind](activation="silu", device=device)
        y = lazy(x, residual=residual) if by_name else lazy(x, residual)
        assert type(lazy) is eager_type
        assert torch.equal(y, eager(x, residual))
        mine, other = step(lazy, x, residual, grad_output), step(eager, x, residual, grad_output)
        assert all(map(same_bits, mine, other))
        assert repr(lazy) == repr(eager)
        assert list(lazy.state_dict()) == list(eager.state_dict())
        assert all(map(torch.equal, lazy.state_dict().values(), eager.state_dict().values()))


@pytest.mark.parametrize(
    "options", [{"affine": False}, {"track_running_stats": False}, {"momentum": None}], ids=str
)
def test_lazy_modules_take_the_options(options: dict[str, Any]) -> None:
    x = torch.randn(4, 6, 3, 3)
    lazy, eager = fused_bn.LazyBatchNorm2d(**options), fused_bn.BatchNorm2d(6, **options)
    assert torch.equal(lazy(x, x), eager(x, x))
    assert repr(lazy) == repr(eager)


def test_state_of_lazy_modules_goes_both_ways() -> None:
    """Before the first call a state_dict has no tensors. Loading a full one has the effect of the call."""
    uninitialised = fused_bn.LazyBatchNorm2d(activation="relu")
    fused_bn.LazyBatchNorm2d().load_state_dict(uninitialised.state_dict())
    trained, original = ours_and_original(dtype=torch.float32)
    x, residual, _ = batch(dtype=torch.float32)
    for state in (trained.state_dict(), original.norm.state_dict()):
        lazy = fused_bn.LazyBatchNorm2d(activation="relu", weight_init=0)
        lazy.load_state_dict(state)
        assert torch.equal(lazy.eval()(x, residual), trained.eval()(x, residual))
        assert type(lazy) is type(trained)
    theirs = nn.LazyBatchNorm2d()
    theirs.load_state_dict(trained.state_dict())
    assert torch.equal(theirs.state_dict()["weight"], trained.state_dict()["weight"])


def test_lazy_modules_are_copied() -> None:
    """Pickled before the first call, and deep-copied after it. Before it torch cannot copy the buffers."""
    x = torch.randn(4, 6, 3, 3)
    lazy = fused_bn.LazyBatchNorm2d(activation="elu", activation_param=0.5, weight_init=2.0)
    early = pickle.loads(pickle.dumps(lazy))
    y = lazy(x, x)
    late = copy.deepcopy(lazy)
    assert torch.equal(early(x, x), y)
    assert repr(early) == repr(late) == repr(lazy)
    late(x)
    assert late.num_batches_tracked == 2
    assert lazy.num_batches_tracked == 1

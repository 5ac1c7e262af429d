"""Code that builds another module from a norm's parameters: it keeps the activation or is refused."""

import copy
import pickle
import types
import warnings
from collections.abc import Callable
from typing import Any, cast

import pytest
import torch
from torch import nn

import fused_bn
from fused_bn import _patches
from tests.modules.test_tools import (
    MODELS,
    TOLERANCE,
    Written,
    assert_same,
    images,
    model,
    tells_readers,
    tool,
)

pytestmark = [pytest.mark.needs_extension, pytest.mark.filterwarnings("ignore")]


def freeze_batch_norm_2d(module: Any) -> Any:
    """Does what timm's function of that name does: reads the norm's attributes. It is refused."""
    if isinstance(module, nn.BatchNorm2d):
        return nn.BatchNorm2d(module.num_features, module.eps)
    for name, child in module.named_children():
        module.add_module(name, freeze_batch_norm_2d(child))
    return module


def rebuild(norm: Any) -> nn.BatchNorm2d:
    return nn.BatchNorm2d(norm.num_features, norm.eps)


def written_and_unfused() -> nn.Module:
    """PyTorch's norms, with our activations as modules or calls beside them."""
    return fused_bn.unfuse(model(Written))


ACTIVATED = {"written": MODELS["written"], "unfused": written_and_unfused}
FOLDS: dict[str, Callable[[Any], object]] = {
    "fuse_conv_bn_eval": lambda m: torch.nn.utils.fusion.fuse_conv_bn_eval(m[1].conv1, m[1].bn1),
    "freeze_batch_norm_2d": freeze_batch_norm_2d,
    "to_mkldnn": lambda m: torch.utils.mkldnn.to_mkldnn(m),
    "fuse_modules of another activation": lambda m: torch.ao.quantization.fuse_modules(
        with_silu(m), ["1.conv1", "1.bn1"]
    ),
}


def with_silu(m: nn.Module) -> nn.Module:
    made: Any = copy.deepcopy(m)
    made[1].bn1.activation = "silu"
    return cast(nn.Module, made)


@pytest.mark.parametrize("kind", ACTIVATED)
@pytest.mark.parametrize("name", FOLDS)
def test_what_would_drop_an_activation_is_refused(name: str, kind: str) -> None:
    """Nothing is changed, but a function that replaces norms one by one has replaced the earlier ones."""
    if name == "freeze_batch_norm_2d":
        tells_readers()
    m: Any = ACTIVATED[kind]()
    whole: Any = nn.Sequential(*m, nn.Identity())
    before = [*whole.modules(), *(vars(each).copy() for each in whole.modules())]
    with pytest.raises((RuntimeError, AssertionError), match=r"relu|silu|did not find fuser"):
        FOLDS[name](whole)
    assert [*whole.modules(), *(vars(each) for each in whole.modules())] == before


def test_to_mkldnn_looks_at_the_whole_model_first() -> None:
    m = nn.Sequential(
        nn.Conv2d(3, 3, 1), nn.BatchNorm2d(3), fused_bn.BatchNorm2d(3, activation="relu")
    ).eval()
    before = list(m)
    with pytest.raises(RuntimeError, match="'2', a BatchNorm2d that applies relu"):
        torch.utils.mkldnn.to_mkldnn(m)
    assert list(m) == before


def test_a_refused_fuse_modules_leaves_the_norm_as_it_is() -> None:
    m: Any = nn.Sequential(nn.Conv2d(3, 3, 1), fused_bn.BatchNorm2d(3, activation="relu").eval())
    with pytest.raises(AssertionError, match="same mode"):
        torch.ao.quantization.fuse_modules(m, ["0", "1"], inplace=True)
    assert type(m[1]) is fused_bn.BatchNorm2d
    assert m[1].activation == "relu"


class Reader(fused_bn.BatchNorm2d):
    """A subclass may read its own attributes."""

    def doubled(self) -> float:
        return 2 * self.eps


@pytest.mark.parametrize("kind", ACTIVATED)
def test_unknown_code_that_reads_eps_is_warned(kind: str) -> None:
    tells_readers()
    norm: Any = ACTIVATED[kind]().get_submodule("1.bn1")
    with pytest.warns(UserWarning, match="rebuild reads the eps of a BatchNorm2d that also applies relu"):
        rebuild(norm)
    plain_norm = fused_bn.BatchNorm2d(3, eps=0.5)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        assert plain_norm.eps == 0.5
        norm.eps = 1e-3  # as initialisers do
        repr(norm), copy.deepcopy(norm), norm(torch.randn(2, 8, 4, 4))
        assert Reader(3, activation="relu").doubled() == 2e-5
    assert vars(norm)["eps"] == 1e-3


@pytest.mark.parametrize("frozen", [True, False], ids=["frozen", "not frozen"])
@pytest.mark.parametrize("kind", ACTIVATED)
def test_torchs_sync_conversion_keeps_activation_and_frozen(kind: str, frozen: bool) -> None:
    m: Any = ACTIVATED[kind]()
    m[1].bn1.frozen = frozen
    expected = m(images())
    converted: Any = nn.SyncBatchNorm.convert_sync_batchnorm(m)
    for norm in (converted[1].bn1, converted[1].bn2):
        assert isinstance(norm, fused_bn.SyncBatchNorm)
        assert isinstance(norm, nn.BatchNorm2d)  # code that freezes norms looks for these
        assert norm.activation == "relu"
    assert converted[1].bn1.frozen == frozen
    torch.testing.assert_close(converted(images()), expected, rtol=0, atol=TOLERANCE)
    copied = pickle.loads(pickle.dumps(converted))
    for each in (converted, copied):
        reverted: Any = fused_bn.revert_sync_batchnorm(each)
        assert type(reverted[1].bn1) is type(ACTIVATED[kind]().get_submodule("1.bn1"))
        torch.testing.assert_close(reverted(images()), expected, rtol=0, atol=TOLERANCE)


class Unknown(nn.BatchNorm2d):
    """Nobody knows what it computes."""


@pytest.mark.parametrize("last", [Unknown, lambda _: fused_bn.LazyBatchNorm2d(activation="relu")])
def test_a_refused_sync_conversion_changes_no_norm(last: Callable[[int], nn.Module]) -> None:
    """torch's own converts one norm after the other, so an error halfway leaves half a model."""
    m: Any = nn.Sequential(nn.BatchNorm2d(3), fused_bn.BatchNorm2d(3, activation="relu"), last(3))
    before = [(each, type(each), vars(each).copy()) for each in m.modules()]
    for convert in (nn.SyncBatchNorm.convert_sync_batchnorm, fused_bn.convert_sync_batchnorm):
        with pytest.raises(ValueError, match=r"'2' is (a Unknown|lazy)"):
            convert(m)
        assert [(each, type(each), vars(each)) for each in m.modules()] == before


def test_torchs_conversion_that_was_imported_before_ours_drops_no_activation() -> None:
    """It converts the norms within a model as ours does, and refuses one that is the model itself."""
    tells_readers()
    early: Any = types.MethodType(_patches._torchs_conversion, nn.SyncBatchNorm)
    norm = fused_bn.BatchNorm2d(3, activation="relu")
    with pytest.raises(RuntimeError, match="applies relu"):
        early(norm)
    assert early(nn.Sequential(nn.BatchNorm2d(3), norm))[1].activation == "relu"


def convert_sync_batchnorm(norm: Any) -> float:
    """Has a telling name, and builds nothing."""
    return float(norm.eps)


def scaffold(norm: Any) -> nn.BatchNorm2d:
    """Builds a norm, and folds nothing."""
    return nn.BatchNorm2d(norm.num_features, norm.eps)


@pytest.mark.parametrize("function", [convert_sync_batchnorm, scaffold])
def test_a_name_alone_refuses_no_function(function: Callable[[Any], object]) -> None:
    tells_readers()
    with pytest.warns(UserWarning, match=f"{function.__name__} reads the eps"):
        function(fused_bn.BatchNorm2d(3, activation="relu"))


def test_opacus_replaces_the_norm_and_keeps_its_activation() -> None:
    validator = tool("opacus.validators").ModuleValidator
    fixed = validator.fix(nn.Sequential(fused_bn.BatchNorm2d(8, activation="relu"), fused_bn.BatchNorm2d(8)))
    kinds = [type(each).__name__ for each in fixed.modules()]
    assert kinds[1:] == ["Replaced", "GroupNorm", "ReLU", "Replaced", "GroupNorm", "Identity"]


def test_a_fused_model_is_taken_by_what_rebuilds_norms() -> None:
    """A model with activations beside its norms is converted as before."""
    m: Any = MODELS["fused"]()
    x = m[0](images())
    folded = torch.nn.utils.fusion.fuse_conv_bn_eval(m[1].conv1, m[1].bn1)
    torch.testing.assert_close(folded(x), m[1].bn1(m[1].conv1(x)), rtol=0, atol=TOLERANCE)
    assert_same(torch.utils.mkldnn.to_mkldnn(MODELS["fused"]())(images().to_mkldnn()).to_dense(), m)
    assert type(freeze_batch_norm_2d(MODELS["fused"]())[1].bn1) is nn.BatchNorm2d


def test_an_unfused_model_has_its_norms_folded_by_prepare_fx() -> None:
    from torch.ao.quantization import get_default_qconfig_mapping
    from torch.ao.quantization.quantize_fx import prepare_fx

    m = fused_bn.unfuse(MODELS["fused"]())
    prepared = prepare_fx(m, get_default_qconfig_mapping("x86"), (images(),))
    assert not [each for each in prepared.modules() if isinstance(each, nn.BatchNorm2d)]

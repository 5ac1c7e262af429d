"""Known models, converted to synchronised norms and back, and the module's constructor."""

import copy
from typing import Any

import pytest
import torch
from torch import Tensor, nn

import fused_bn
from fused_bn.modules import DROP_INS, SYNCHRONISED

pytestmark = pytest.mark.needs_extension


class Mixed(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.theirs = nn.BatchNorm2d(4, momentum=None)
        self.ours = fused_bn.BatchNorm2d(4, activation="elu", activation_param=0.5, bias=False)
        self.frozen = fused_bn.BatchNorm2d(4, frozen=True)
        self.flat = nn.BatchNorm1d(4, affine=False)
        self.torchs = nn.SyncBatchNorm(4)


def test_conversion_keeps_objects_keys_and_options() -> None:
    model = Mixed()
    model.flat.eval()
    before = {name: id(each) for name, each in model.named_modules()}
    tensors = {name: id(each) for name, each in [*model.named_parameters(), *model.named_buffers()]}
    kinds = {name: type(each) for name, each in model.named_modules()}
    state = {name: dict(vars(each)) for name, each in model.named_modules()}
    assert fused_bn.SyncBatchNorm.convert_sync_batchnorm(model) is model
    assert {name: id(each) for name, each in model.named_modules()} == before
    assert {name: id(e) for name, e in [*model.named_parameters(), *model.named_buffers()]} == tensors
    assert all(isinstance(each, fused_bn.SyncBatchNorm) for each in model.children())
    for name, each in model.named_children():
        assert type(each) is SYNCHRONISED[DROP_INS.get(kinds[name], kinds[name])]
    assert isinstance(model.theirs, nn.BatchNorm2d)
    assert "SyncBatchNorm(" in repr(model.ours)
    assert model.ours.activation == "elu"
    assert model.ours.activation_param == 0.5
    assert model.frozen.frozen
    assert not model.flat.training
    assert "activation=elu" in repr(model.ours)
    copy.deepcopy(model)
    fused_bn.revert_sync_batchnorm(model)
    assert {name: type(each) for name, each in model.named_modules()} == kinds
    assert {name: dict(vars(each)) for name, each in model.named_modules()} == state


def test_conversion_of_unknown_norms_is_refused_whole() -> None:
    """Otherwise their additions would be lost, or they would stay unsynchronised, without an error."""

    class Own(nn.BatchNorm2d):
        def forward(self, input: Tensor) -> Tensor:
            return torch.relu(super().forward(input))

    model = nn.Sequential(nn.BatchNorm2d(3), Own(3))
    with pytest.raises(ValueError, match="'1' is a Own"):
        fused_bn.convert_sync_batchnorm(model)
    assert type(model[0]) is nn.BatchNorm2d


def test_constructor_and_errors_are_torchs() -> None:
    ours, theirs = (
        fused_bn.SyncBatchNorm(5, 1e-3, None, True, False),
        nn.SyncBatchNorm(5, 1e-3, None, True, False),
    )
    assert repr(ours) == repr(theirs)
    assert ours.state_dict().keys() == theirs.state_dict().keys()
    for wrong, channels in ((torch.randn(5), 5), (torch.randn(2, 0, 3), 0)):
        texts = []
        for kind in (fused_bn.SyncBatchNorm, nn.SyncBatchNorm):
            with pytest.raises(ValueError) as error:  # noqa: PT011
                kind(channels)(wrong)
            texts.append(str(error.value))
        assert texts[0] == texts[1]


def test_fuse_takes_torchs_synchronised_norms() -> None:
    """In evaluation, because torch's own module does not train on the CPU."""
    model: Any = nn.Sequential(nn.Conv2d(3, 4, 1), nn.SyncBatchNorm(4), nn.ReLU()).eval()
    mean, variance = model[1].running_mean, model[1].running_var
    fused = fused_bn.fuse(model)
    assert type(fused[1]) is fused_bn.SyncBatchNorm
    assert fused.fusion_report["1"].fused == ("relu",)
    x = torch.randn(2, 3, 4, 4)
    z = fused[0](x)
    plain = torch.nn.functional.batch_norm(z, mean, variance)
    torch.testing.assert_close(fused(x), torch.relu(plain), rtol=0, atol=1e-6)
    assert type(fused_bn.unfuse(fused)[1]) is nn.SyncBatchNorm


def test_conversion_before_fuse_keeps_names_and_reverts_to_fused_norms() -> None:
    model: Any = nn.Sequential(nn.Conv2d(3, 4, 1), nn.BatchNorm2d(4), nn.ReLU())
    fused = fused_bn.fuse(fused_bn.convert_sync_batchnorm(model))
    assert fused[1].layer_name == "1"
    assert type(fused_bn.revert_sync_batchnorm(fused)[1]) is fused_bn.BatchNorm2d
    assert type(fused_bn.unfuse(fused)[1]) is nn.BatchNorm2d


class NormAct(nn.BatchNorm2d):
    """Works like timm's BatchNormAct2d."""

    def __init__(self, channels: int) -> None:
        super().__init__(channels)
        self.drop, self.act = nn.Identity(), nn.ReLU()

    def forward(self, input: Tensor) -> Tensor:
        return self.act(self.drop(super().forward(input)))


def test_norms_with_an_activation_of_their_own() -> None:
    """They are synchronised as they are. unfuse refuses to replace them by plain norms."""
    model: Any = fused_bn.convert_sync_batchnorm(fused_bn.fuse(nn.Sequential(NormAct(4))))
    assert model[0].synchronised
    with pytest.raises(RuntimeError, match="0 is synchronised over processes: revert_sync_batchnorm"):
        fused_bn.unfuse(model)
    assert not fused_bn.revert_sync_batchnorm(model)[0].synchronised
    assert type(fused_bn.unfuse(model)[0]) is NormAct


def test_lazy_norms_are_converted_after_their_first_input() -> None:
    with pytest.raises(ValueError, match="'0' is lazy: convert the model after its first input"):
        fused_bn.convert_sync_batchnorm(nn.Sequential(nn.LazyBatchNorm2d()))

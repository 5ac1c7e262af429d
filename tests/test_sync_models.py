"""Models that exist, converted to synchronised norms and back; the module's constructor."""

import copy
from typing import Any

import pytest
import torch
from torch import Tensor, nn

import fused_bn

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
    assert fused_bn.convert_sync_batchnorm(model) is model
    assert {name: id(each) for name, each in model.named_modules()} == before
    assert {name: id(e) for name, e in [*model.named_parameters(), *model.named_buffers()]} == tensors
    assert all(type(each) is fused_bn.SyncBatchNorm for each in model.children())
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
    """Silence would drop what they add, or leave them unsynchronised."""

    class Own(nn.BatchNorm2d):
        def forward(self, input: Tensor) -> Tensor:
            return torch.relu(super().forward(input))

    model = nn.Sequential(nn.BatchNorm2d(3), Own(3))
    with pytest.raises(ValueError, match="1 is a Own"):
        fused_bn.convert_sync_batchnorm(model)
    assert type(model[0]) is nn.BatchNorm2d


def test_constructor_and_errors_are_torchs() -> None:
    ours, theirs = (
        fused_bn.SyncBatchNorm(5, 1e-3, None, True, False),
        nn.SyncBatchNorm(5, 1e-3, None, True, False),
    )
    assert repr(ours) == repr(theirs)
    assert ours.state_dict().keys() == theirs.state_dict().keys()
    for wrong in (torch.randn(5), torch.randn(2, 0, 3)):
        with pytest.raises(ValueError) as mine:  # noqa: PT011
            fused_bn.SyncBatchNorm(0 if wrong.dim() == 3 else 5)(wrong)
        assert "expected at least 2D input" in str(mine.value) or "non-zero" in str(mine.value)


def test_fuse_takes_torchs_synchronised_norms() -> None:
    """In evaluation: in training torch's own computes nothing on the CPU that it could be compared with."""
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

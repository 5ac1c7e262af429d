"""What code that knows nn.BatchNorm* alone makes of our norms: an activation is never dropped in silence.

Such code builds something else from a norm's parameters: a folded convolution, a synchronised or frozen norm.
`nn.SyncBatchNorm.convert_sync_batchnorm` is replaced by ours where a model has more than it knows, and
`torch.utils.mkldnn.to_mkldnn` looks at the whole model before it changes anything. Other code is recognised
because it reads `eps`.
"""

import functools
import re
import sys
import warnings
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn
from torch.compiler import is_compiling
from torch.utils import mkldnn

from fused_bn._activations import module_of, param_of

REBUILDS = re.compile("convert|freeze|revert|fuse|fold")
"""In the names of functions that are refused, as timm's freeze_batch_norm_2d. Others are warned."""

EPS_TELLS_ITS_READERS = tuple(map(int, torch.__version__.split(".")[:2])) >= (2, 13)
"""torch.compile of 2.11 takes `vars(norm)["eps"]` for the property of that name, and never ends."""


class KeepsActivation:
    """A norm with an activation, which code from elsewhere may not know."""

    activation = "none"

    if EPS_TELLS_ITS_READERS:

        @property
        def eps(self) -> Any:
            """Raises or warns where the reader would drop the activation; `vars(norm)["eps"]` does not."""
            if "eps" not in self.__dict__:
                raise AttributeError("eps is not set yet")
            if self.activation != "none" and not is_compiling():
                _check_reader(self, sys._getframe(1))
            return self.__dict__["eps"]

        @eps.setter
        def eps(self, value: Any) -> None:
            self.__dict__["eps"] = value

    def __prepare_scriptable__(self) -> Any:
        remedy = (
            "fused_bn.unfuse(model) makes it PyTorch's again"
            if self.activation == "none" and not getattr(self, "frozen", False)
            else "put an nn.BatchNorm* and a module of the activation in its place"
        )
        raise RuntimeError(
            f"torch.jit.script cannot compile {self}: {remedy}; torch.jit.trace, torch.export and "
            "torch.compile take it as it is"
        )

    def parameters(self, recurse: bool = True) -> Any:
        _register_with_opacus(type(self))  # opacus calls parameters() before it looks the class up
        return super().parameters(recurse)  # type: ignore[misc]


def _check_reader(norm: KeepsActivation, reader: Any) -> None:
    home, name = str(reader.f_globals.get("__name__", "")), reader.f_code.co_name
    is_torchs = home.startswith(("torch.", "fused_bn."))
    rebuilds = home.startswith(("torch.ao.", "torch.nn.utils.", "torch.utils.mkldnn")) or (
        not is_torchs and REBUILDS.search(name) is not None
    )
    looks_only = is_torchs or home == "inspect" or name == "<module>" or reader.f_locals.get("self") is norm
    if looks_only and not rebuilds:
        return
    text = (
        f"{name} reads the eps of a {type(norm).__name__} that also applies {norm.activation}: what is built "
        "from its parameters alone lacks that activation"
    )
    if rebuilds:
        raise RuntimeError(f"fused_bn: {text}")
    warnings.warn(text, stacklevel=3)


def more_than_a_norm(model: nn.Module) -> str:
    """The first norm of ours that an nn.BatchNorm* cannot stand for; empty where there is none."""
    from fused_bn.fusion.runtime import NormAct

    for name, module in model.named_modules():
        if isinstance(module, NormAct):
            return f"'{name}', a {type(module).__name__} that applies its {type(module.act).__name__}"
        if isinstance(module, KeepsActivation):
            activation, frozen = module.activation, getattr(module, "frozen", False)
            if activation != "none" or frozen:
                what = " and ".join(
                    [*["is frozen"] * frozen, *[f"applies {activation}"] * (activation != "none")]
                )
                return f"'{name}', a {type(module).__name__} that {what}"
    return ""


class Replaced(nn.Module):
    """Another norm in the place of one of ours: act(norm(input) + residual)."""

    def __init__(self, norm: nn.Module, activation: nn.Module) -> None:
        super().__init__()
        self.norm, self.activation = norm, activation

    def forward(self, input: Tensor, residual: Tensor | None = None) -> Any:
        z = self.norm(input)
        return self.activation(z if residual is None else z + residual)


def _register_with_opacus(kind: Any) -> None:
    """Lets opacus refuse a norm of this class as it refuses nn.BatchNorm2d: batches mix samples."""
    opacus = sys.modules.get("opacus.validators.module_validator")
    if opacus is None or kind in opacus.ModuleValidator.VALIDATORS:
        return
    validators, fixers = opacus.ModuleValidator.VALIDATORS, opacus.ModuleValidator.FIXERS
    fix = fixers[nn.BatchNorm2d]

    def fix_and_activate(norm: Any, **options: Any) -> nn.Module:
        return Replaced(fix(norm, **options), module_of(norm.activation, param_of(norm)))

    validators[kind], fixers[kind] = validators[nn.BatchNorm2d], fix_and_activate


_torchs_conversion = nn.SyncBatchNorm.convert_sync_batchnorm.__func__  # type: ignore[attr-defined]


@functools.wraps(_torchs_conversion)
def _convert_sync_batchnorm(cls: Any, module: nn.Module, process_group: Any = None) -> nn.Module:
    if not more_than_a_norm(module):
        return _torchs_conversion(cls, module, process_group)
    from fused_bn.sync import convert_sync_batchnorm

    return convert_sync_batchnorm(module, process_group)


_to_mkldnn = mkldnn.to_mkldnn


@functools.wraps(_to_mkldnn)
def _to_mkldnn_if_nothing_is_lost(module: nn.Module, *args: Any, **kwargs: Any) -> Any:
    found = more_than_a_norm(module)
    if found:
        raise RuntimeError(f"to_mkldnn cannot do all that the model's norms do: {found}")
    return _to_mkldnn(module, *args, **kwargs)


def _fold_if_nothing_is_lost(fold: Callable[..., Any]) -> Callable[..., Any]:
    @functools.wraps(fold)
    def call(layer: nn.Module, norm: Any, *args: Any, **kwargs: Any) -> Any:
        if isinstance(norm, KeepsActivation) and norm.activation != "none":
            raise RuntimeError(f"{fold.__name__} would drop the {norm.activation} of {norm}")
        return fold(layer, norm, *args, **kwargs)

    return call


def install() -> None:
    """Puts these functions in the place of torch's."""
    if not EPS_TELLS_ITS_READERS:
        for name in ("fuse_conv_bn_eval", "fuse_linear_bn_eval"):
            for home in (nn.utils, nn.utils.fusion):
                setattr(home, name, _fold_if_nothing_is_lost(getattr(nn.utils.fusion, name)))
    nn.SyncBatchNorm.convert_sync_batchnorm = classmethod(_convert_sync_batchnorm)  # type: ignore[assignment,method-assign]
    mkldnn.to_mkldnn = _to_mkldnn_if_nothing_is_lost

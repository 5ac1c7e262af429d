"""Functions of torch that rebuild a model's norms, replaced by ones that look at the whole model first.

A model that has more than torch knows of is converted by our own convert_sync_batchnorm, and refused by the
others. A refused call changes nothing.
"""

import functools
from collections.abc import Callable
from typing import Any

from torch import nn
from torch.utils import mkldnn

from fused_bn._converters import EPS_TELLS_ITS_READERS, KeepsActivation
from fused_bn.fusion.runtime import NormAct
from fused_bn.sync.convert import convert_sync_batchnorm


def more_than_a_norm(model: nn.Module) -> str:
    """The first norm of ours that an nn.BatchNorm* cannot stand for; empty where there is none."""
    for name, module in model.named_modules():
        if isinstance(module, NormAct):
            return f"'{name}', a {type(module).__name__} that applies its {type(module.act).__name__}"
        if isinstance(module, KeepsActivation):
            found = ["is frozen"] if getattr(module, "frozen", False) else []
            if module.activation != "none":
                found.append(f"applies {module.activation}")
            if found:
                return f"'{name}', a {type(module).__name__} that {' and '.join(found)}"
    return ""


_torchs_conversion = nn.SyncBatchNorm.convert_sync_batchnorm.__func__  # type: ignore[attr-defined]


@functools.wraps(_torchs_conversion)
def _convert_sync_batchnorm(cls: Any, module: nn.Module, process_group: Any = None) -> nn.Module:
    if not more_than_a_norm(module):
        return _torchs_conversion(cls, module, process_group)
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

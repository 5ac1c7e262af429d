"""Lets eager quantization (torch.ao) fuse, prepare and convert our norms as it does nn.BatchNorm*.

torch.ao looks modules up by their exact classes, in tables. Each entry for an nn.BatchNorm* is repeated for
ours.
"""

import copy
from collections.abc import Callable
from typing import Any

from torch import nn

from fused_bn.fusion.norms import release
from fused_bn.modules import DROP_INS, OURS

Fuser = Callable[..., nn.Module]


def _fuser_of(table: dict[tuple[Any, ...], Any], kinds: tuple[Any, ...]) -> Fuser:
    """Returns the function that fuses modules of these classes where the nn.BatchNorm* is one of ours."""

    def fuse(is_qat: bool, *modules: Any) -> nn.Module:
        norm = next(module for module in modules if type(module) in OURS)
        plain = copy.copy(norm)  # a call that is refused leaves the norm as it is
        plain.__dict__["_parameters"] = dict(norm._parameters)
        plain.activation, plain.frozen = "none", False
        release(plain)
        method, parts = table[kinds], [plain if module is norm else module for module in modules]
        with_relu = (*kinds, nn.ReLU)
        if norm.activation == "relu" and with_relu in table:
            method = table[with_relu]
            parts.append(nn.ReLU().train(norm.training))
        elif norm.activation != "none":
            names = ", ".join(kind.__name__ for kind in kinds)
            raise RuntimeError(f"fuse_modules cannot fold the {norm.activation} of {norm} into {names}")
        if norm.frozen and is_qat:
            raise RuntimeError(f"fuse_modules_qat would train the frozen statistics of {norm}")
        fused: nn.Module = method(is_qat, *parts)
        return fused

    return fuse


def install() -> None:
    """Adds our norms to the tables of torch.ao, as long as torch has it."""
    try:
        from torch.ao.quantization import fuser_method_mappings, quantization_mappings
    except ImportError:
        return
    fusers = getattr(fuser_method_mappings, "_DEFAULT_OP_LIST_TO_FUSER_METHOD", {})
    for kinds in list(fusers):
        ours = tuple(DROP_INS.get(kind, kind) for kind in kinds)
        if ours != kinds:
            fusers[ours] = _fuser_of(fusers, kinds)
    for theirs, quantized in list(quantization_mappings.DEFAULT_STATIC_QUANT_MODULE_MAPPINGS.items()):
        if theirs in DROP_INS:
            quantization_mappings.DEFAULT_STATIC_QUANT_MODULE_MAPPINGS[DROP_INS[theirs]] = quantized

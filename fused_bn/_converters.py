"""What code that knows nn.BatchNorm* alone makes of our norms: an activation is never dropped in silence.

Such code builds something else from a norm's parameters: a folded convolution, a synchronised or frozen norm.
It is recognised because it reads `eps`. Functions of torch that walk over a model are replaced, in
`_patches.py`, so that they refuse a model before they change it.
"""

import re
import sys
import warnings
from typing import Any

import torch
from torch import Tensor, nn
from torch.compiler import is_compiling

from fused_bn._activations import module_of, param_of

REBUILDS = re.compile("(?:^|_)(?:convert|freeze|revert|fuse|fold)")
"""In the names of functions that are refused, as timm's freeze_batch_norm_2d. Others are warned."""

READS_MORE = {"num_features", "weight", "running_mean", "running_var"}
"""What such a function reads as well: one that reads `eps` alone builds nothing, and is warned too."""

EPS_TELLS_ITS_READERS = tuple(map(int, torch.__version__.split(".")[:2])) >= (2, 13)
"""torch.compile of 2.11 takes `vars(norm)["eps"]` for the property of that name, and never ends."""


class KeepsActivation:
    """A norm with an activation that other code may not know of."""

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
        _register_with_opacus(type(self))  # opacus calls this before it looks the class up
        return super().parameters(recurse)  # type: ignore[misc]


def _check_reader(norm: KeepsActivation, reader: Any) -> None:
    code, home = reader.f_code, str(reader.f_globals.get("__name__", ""))
    name = code.co_name
    is_torchs = home.startswith(("torch.", "fused_bn."))
    if is_torchs:
        # The second is torch's own conversion, kept by a caller from before fused_bn replaced it.
        rebuilds = (
            home.startswith(("torch.ao.", "torch.nn.utils.", "torch.utils.mkldnn"))
            or name == "convert_sync_batchnorm"
        )
    else:
        rebuilds = REBUILDS.search(name) is not None and not READS_MORE.isdisjoint(code.co_names)
    looks_only = is_torchs or home == "inspect" or name == "<module>" or reader.f_locals.get("self") is norm
    if looks_only and not rebuilds:
        return
    text = (
        f"{name} reads the eps of a {type(norm).__name__} that also applies {norm.activation}: what is built "
        "from its parameters alone lacks that activation"
    )
    if rebuilds:
        raise RuntimeError(f"fused_bn: {text}. If {name} replaced other norms before, build the model anew")
    warnings.warn(text, stacklevel=3)


class Replaced(nn.Module):
    """Computes act(norm(input) + residual) with a norm that replaces one of ours."""

    def __init__(self, norm: nn.Module, activation: nn.Module) -> None:
        super().__init__()
        self.norm, self.activation = norm, activation

    def forward(self, input: Tensor, residual: Tensor | None = None) -> Any:
        z = self.norm(input)
        return self.activation(z if residual is None else z + residual)


def _register_with_opacus(kind: Any) -> None:
    """Lets opacus refuse this class as it refuses nn.BatchNorm2d, which mixes the samples of a batch."""
    opacus = sys.modules.get("opacus.validators.module_validator")
    if opacus is None or kind in opacus.ModuleValidator.VALIDATORS:
        return
    validators, fixers = opacus.ModuleValidator.VALIDATORS, opacus.ModuleValidator.FIXERS
    fix = fixers[nn.BatchNorm2d]

    def fix_and_activate(norm: Any, **options: Any) -> nn.Module:
        return Replaced(fix(norm, **options), module_of(norm.activation, param_of(norm)))

    validators[kind], fixers[kind] = validators[nn.BatchNorm2d], fix_and_activate

"""What a rewritten forward calls instead of a pair: the same values, in one pass where that is right.

Every call checks what may change after the rewriting: the classes of norm and activation, hooks, shapes and
dtypes. If one pass would give something else than the pair, the pair's own calls run.
"""

import operator
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, fx, nn
from torch.nn.modules.module import _has_any_global_hook

from fused_bn._activations import NamedActivation, Param, apply_activation, of_module
from fused_bn._norm import apply
from fused_bn._tracing import wants_own_forward
from fused_bn.fusion.classes import Made
from fused_bn.modules import OURS

one_pass = apply  # tests count the calls by this name

Act = nn.Module | str
"""A module of the model, or the name in `ACTIVATIONS` of a function."""

ADDITIONS: dict[str, Callable[[Any, Any], Any]] = {
    "z + r": operator.add,
    "r + z": lambda z, residual: residual + z,
    "z += r": operator.iadd,  # unlike z + r, keeps the shape and dtype of z
}

Listener = Callable[[nn.Module, str], None]
listeners: list[Listener] = []
"""Called for every sum that was not computed in one pass, with the norm and the reason."""


class NormAct(Made):
    """A norm that applies its own child `act`, and computes both in one pass."""

    act: nn.Module
    drop: nn.Module
    _notes_outputs = synchronised = False

    def forward(self, input: Tensor) -> Tensor:
        named = _named(self.act, input)
        if named is None or not is_identity(self.drop) or wants_own_forward(input):
            return super().forward(input)  # type: ignore[misc]
        return one_pass(self, input, None, *named)


def norm_act(norm: nn.Module, input: Tensor, activation: Act, param: Param | None = None) -> Tensor:
    """activation(norm(input))."""
    named = _in_one_pass(norm, input, activation, param)
    if named is not None:
        return one_pass(norm, input, None, *named)
    return _apply(activation, param, norm(input))


def norm_add_act(
    norm: nn.Module,
    input: Tensor,
    residual: Tensor,
    addition: str,
    activation: Act,
    param: Param | None = None,
) -> Tensor:
    """activation(norm(input) + residual); `addition` is a key of ADDITIONS."""
    named = _in_one_pass(norm, input, activation, param)
    if named is not None:
        unlike = difference(input, residual)
        if unlike is None:
            return one_pass(norm, input, residual, *named)
        for listener in listeners:
            listener(norm, unlike)
    return _apply(activation, param, ADDITIONS[addition](norm(input), residual))


def difference(input: Tensor, residual: Tensor) -> str | None:
    """Returns why the kernels cannot add `residual` as PyTorch's addition does, or None if they can."""
    if not isinstance(residual, Tensor):
        return f"the residual is of type {type(residual).__name__}"
    if residual.shape != input.shape:
        return f"the residual has shape {tuple(residual.shape)}, the norm's input {tuple(input.shape)}"
    if residual.dtype != input.dtype:
        return f"the residual is of {residual.dtype}, the norm's input of {input.dtype}"
    if residual.device != input.device:
        return f"the residual is on {residual.device}, the norm's input on {input.device}"
    if residual.stride() != input.stride():  # of two layouts, an addition may choose either
        return f"the residual has strides {residual.stride()}, the norm's input {input.stride()}"
    return None


def normalises_only(module: nn.Module) -> bool:
    """Whether the module is a batch norm without an activation, so that its result can be fused."""
    if type(module) in OURS:
        return module.activation == "none"
    return isinstance(module, NormAct) and is_identity(module.act) and is_identity(module.drop)


def is_identity(module: nn.Module) -> bool:
    return type(module) is nn.Identity and unhooked(module)


def unhooked(module: nn.Module) -> bool:
    """Whether a call of the module runs its class's forward and nothing else."""
    return not (
        module._forward_hooks
        or module._forward_pre_hooks
        or module._backward_hooks
        or module._backward_pre_hooks
        or "forward" in module.__dict__
        or _has_any_global_hook()
    )


def _in_one_pass(
    norm: nn.Module, input: Tensor, activation: Act, param: Param | None
) -> NamedActivation | None:
    """Returns the activation if one call of ours computes what the pair's two calls do, or None."""
    if not normalises_only(norm) or not unhooked(norm) or isinstance(input, fx.Proxy):
        return None
    if isinstance(activation, str):
        return activation, param
    return _named(activation, input)


def _named(activation: nn.Module, input: Tensor) -> NamedActivation | None:
    """Returns what the module computes, or None if it does more, or if autocast casts prelu's input."""
    named = of_module(activation) if unhooked(activation) else None
    if named is not None and named[0] == "prelu":
        device = input.device.type
        if torch.is_autocast_enabled(device) and input.dtype != torch.get_autocast_dtype(device):
            return None
    return named


def _apply(activation: Act, param: Param | None, z: Tensor) -> Tensor:
    if isinstance(activation, nn.Module):
        return activation(z)
    return apply_activation(activation, param, z)

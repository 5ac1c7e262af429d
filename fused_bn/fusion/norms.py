"""Makes the norms of a model ours, and back. Only their class changes.

Each norm stays the same object, with its parameters, buffers, hooks and name.
"""

import copy
from functools import cache
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F
from torch.nn.modules.batchnorm import _BatchNorm
from torch.nn.modules.lazy import LazyModuleMixin
from torch.nn.utils import parametrize

from fused_bn._activations import apply_activation, of_module, param_of
from fused_bn._converters import KeepsActivation
from fused_bn.fusion.classes import Made, become, is_made, make_class
from fused_bn.fusion.runtime import NormAct, is_identity, unhooked
from fused_bn.modules import DROP_INS, OURS, SYNCHRONISED

PLAIN = {
    **{ours: theirs for theirs, ours in DROP_INS.items()},
    **dict.fromkeys(SYNCHRONISED.values(), nn.SyncBatchNorm),
}
OWN_ATTRIBUTES = ("activation", "activation_param", "weight_init", "bias_init", "frozen")
PROBE_SIZES: dict[type[nn.Module], tuple[int, ...]] = {
    nn.BatchNorm1d: (3,),
    nn.BatchNorm2d: (3, 2),
    nn.BatchNorm3d: (3, 2, 2),
}


def is_norm(module: nn.Module) -> bool:
    """Whether the report has a line for it."""
    return isinstance(module, _BatchNorm)


def why_left_alone(norm: nn.Module) -> str | None:
    """Returns why a norm is not replaced, or None if it can be or is one of ours."""
    if parametrize.is_parametrized(norm):
        return "it has parametrizations"
    if isinstance(norm, LazyModuleMixin):
        return "it is lazy: fuse the model after its first input"
    if not unhooked(norm):
        return "it has hooks"
    home = getattr(type(norm).forward, "__globals__", None)
    if type(norm) in DROP_INS and home is not vars(nn.modules.batchnorm):
        return f"the forward of {type(norm).__name__} was replaced"
    if type(norm) in DROP_INS or type(norm) in OURS or applies_its_activation(norm):
        return None
    return f"{type(norm).__name__} is an unknown subclass of {type(norm).__mro__[1].__name__}"


def adopt(norm: nn.Module) -> None:
    """Makes a norm ours. `why_left_alone` must have returned None for it."""
    if type(norm) in DROP_INS:
        become(norm, DROP_INS[type(norm)])
    elif type(norm) not in OURS:
        become(norm, _norm_act_class(type(norm)))  # type: ignore[arg-type]


def release(norm: nn.Module) -> None:
    """Makes a norm of ours a norm of PyTorch that computes the same."""
    if isinstance(norm, NormAct) and is_made(type(norm)):
        become(norm, norm._made_from)
    elif type(norm) in OURS and norm.activation == "none" and not norm.frozen:
        become(norm, PLAIN[type(norm)])
        for name in OWN_ATTRIBUTES:
            vars(norm).pop(name, None)
    elif type(norm) in OURS:
        become(norm, _unfused_class(type(norm)))  # type: ignore[arg-type]


def regain(norm: nn.Module) -> None:
    """Undoes `release` of a norm that was constructed as ours, with an activation."""
    if isinstance(norm, Unfused):
        become(norm, norm._ours)


def own_activation(norm: nn.Module) -> str:
    """Returns the activation that a norm of ours applies itself, or an empty string."""
    if isinstance(norm, NormAct):
        named = of_module(norm.act)
        name = named[0] if named else "none"
    else:
        name = str(norm.activation) if type(norm) in OURS else "none"
    return "" if name == "none" else name


def applies_its_activation(norm: nn.Module) -> bool:
    """Whether this is a norm with an activation, like timm's BatchNormAct2d.

    It is a subclass of nn.BatchNorm* with the children `act`, a known activation, and `drop`, an nn.Identity.
    A probe in training and in evaluation gives act(batch_norm(x)) and the same running statistics.
    """
    if isinstance(norm, NormAct):
        return True
    kind = next((each for each in type(norm).__mro__ if each in DROP_INS), None)
    children = dict(norm.named_children())
    if kind is None or isinstance(norm, Made) or set(children) != {"act", "drop"}:
        return False
    named = of_module(children["act"])
    if named is None or not is_identity(children["drop"]) or not unhooked(children["act"]):
        return False
    try:
        return all(_probe_agrees(norm, kind, training) for training in (True, False))
    except Exception:  # the forward may do anything with the probe
        return False


def _probe_agrees(norm: nn.Module, kind: type[nn.Module], training: bool) -> bool:
    ours: Any = copy.deepcopy(norm).to("cpu", torch.float64).train(training)
    plain: Any = copy.deepcopy(ours)
    sizes = (5, ours.num_features, *PROBE_SIZES[kind])
    values = torch.arange(torch.Size(sizes).numel(), dtype=torch.float64).sin().reshape(sizes)
    with torch.no_grad():
        given = ours(values.clone())
        expected = plain.act(kind.forward(plain, values))
    pairs = [(given, expected), *zip(ours.buffers(), plain.buffers(), strict=True)]
    return all(torch.allclose(left, right, rtol=1e-9, atol=1e-9) for left, right in pairs)


@cache
def _norm_act_class(base: type[nn.Module]) -> type[nn.Module]:
    return make_class(base, NormAct, (_norm_act_class, (base,)))


class Unfused(KeepsActivation, Made):
    """nn.BatchNorm* with the options of a norm of ours, computed by PyTorch's own functions."""

    _ours: type[nn.Module]

    def forward(self, input: Tensor, residual: Tensor | None = None) -> Tensor:
        norm: Any = self
        if norm.frozen:
            norm._check_input_dim(input)
            mean, variance = norm.running_mean, norm.running_var
            z = F.batch_norm(input, mean, variance, norm.weight, norm.bias, False, 0.0, norm.eps)
        else:
            z = super().forward(input)  # type: ignore[misc]
        if residual is not None:
            z = z + residual
        return apply_activation(norm.activation, param_of(norm), z)


@cache
def _unfused_class(ours: type[nn.Module]) -> type[nn.Module]:
    return make_class(PLAIN[ours], Unfused, (_unfused_class, (ours,)), _ours=ours)


_activated_class = _unfused_class  # the name in pickles of earlier versions

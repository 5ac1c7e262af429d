"""`fuse` and `unfuse`: batch norm, addition and activation in one pass throughout an existing model."""

import threading
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any, TypeVar

import torch
from torch import fx, nn

from fused_bn.fusion import runtime
from fused_bn.fusion.classes import base_of, become, is_made
from fused_bn.fusion.norms import adopt, is_norm, own_activation, regain, release, why_left_alone
from fused_bn.fusion.plan import Plan, plan_of
from fused_bn.fusion.recompute import switch_off, switch_on
from fused_bn.fusion.report import FusionReport, NormReport
from fused_bn.fusion.rewrite import Rewritten, rewrite
from fused_bn.fusion.trace import MODES
from fused_bn.modules import OURS

Model = TypeVar("Model", bound=nn.Module)

one_at_a_time = threading.RLock()
"""Held during a trace. The patches of nn.Module must be undone in the reverse order."""


def fuse(model: Model, example_inputs: object = None, *, recompute: bool = False) -> Model:
    """Makes a model compute each batch norm, and the addition and activation after it, in one pass.

    Every nn.BatchNorm1d, 2d and 3d becomes the module of the same name of this package. A norm is fused if
    its result goes only to an activation, to an addition, or to an addition and then an activation. These may
    be modules, functions, methods or operators. What the model computes does not change. A norm is not fused
    if the code around it cannot be traced, may depend on more than the model and its arguments, or needs the
    result between norm and activation. If the tensors do not fit at run time (a residual that is broadcast or
    has another dtype), norm, addition and activation are computed as your code writes them.

    The model is changed in place. All modules stay the same objects under the same names, with their
    parameters, buffers, hooks and modes, so `state_dict` and optimisers are not affected. Classes keep their
    names, and `isinstance` gives the same answers, except for nn.SyncBatchNorm: see `fused_bn.SyncBatchNorm`.
    The model can be copied, pickled, compiled and fused again. Hooks that are added later to a norm or an
    activation see the same values as before, because that pair is then no longer computed in one pass.
    `torch.jit.script` needs the model as `unfuse` returns it.

    Other threads may run and change other models meanwhile: only what this thread reads and writes counts.
    They run a little slower, because torch.fx replaces `nn.Module.__call__` while it traces. They should draw
    no random numbers then: each trace resets the generators, and refuses a forward if they were used.

    Args:
        model: any module, with parameters on any device.
        example_inputs: a tensor, a sequence of positional arguments or a mapping of keyword arguments. If it
            is given, the model runs once, in evaluation and without gradients, and the report says which
            residuals did not fit.
        recompute: True saves memory and costs time. Convolutions, pooling, and linear layers on inputs of
            two dimensions then do not keep large outputs of norms for backward; backward computes them again
            from the norm's input. The bits are the same, and the tensor is read and written once more. `fuse`
            adds a forward hook to these layers. Hooks on saved tensors (`torch.utils.checkpoint`) take
            precedence. Between the norm and such a layer, no code may write to the output in a way that
            autograd does not see (`.data`, NumPy).

    Returns:
        The model, with a new attribute `fusion_report`. This `FusionReport` says what was done with each
        norm, and why.

    Raises:
        TypeError: the model is not an nn.Module.
    """
    if not isinstance(model, nn.Module):
        raise TypeError(f"model must be an nn.Module, but got {type(model).__name__}")
    _release_all(model)
    norms = {path: module for path, module in model.named_modules() if is_norm(module)}
    kinds = {path: type(norm).__name__ for path, norm in norms.items()}
    left_alone: dict[nn.Module, str] = {}
    for norm in norms.values():
        regain(norm)
        reason = why_left_alone(norm)
        if reason is None:
            adopt(norm)
        else:
            left_alone[norm] = reason
    try:
        with one_at_a_time:
            plan = plan_of(model)
    except BaseException:
        _release_all(model)
        raise
    for module, (variants, summary) in plan.variants.items():
        rewrite(module, variants, summary)
    if recompute and norms:
        switch_on(model)
    misfits = {} if example_inputs is None else _misfits(model, example_inputs)
    lines = [
        _line(model, path, kinds[path], norm, plan, left_alone.get(norm) or misfits.get(norm, ""))
        for path, norm in norms.items()
    ]
    vars(model)["fusion_report"] = FusionReport(tuple(lines), "" if norms else _why_no_norm(model))
    return model


def unfuse(model: Model) -> Model:
    """Turns the norms of this package into norms of PyTorch, and restores the forward of every module.

    The model computes the same, and its `state_dict`, parameters and buffers do not change. Norms that were
    constructed with an activation or as frozen become subclasses of nn.BatchNorm* that do the same.

    Args:
        model: any module, fused or not; it is changed in place.

    Returns:
        The model, without `fusion_report`.

    Raises:
        RuntimeError: a norm whose original class has an activation (as timm's) is synchronised over
            processes. That class cannot be synchronised: call `revert_sync_batchnorm` first.
    """
    for name, module in model.named_modules():
        if isinstance(module, runtime.NormAct) and module.synchronised:
            raise RuntimeError(f"{name} is synchronised over processes: revert_sync_batchnorm(model) first")
    return _release_all(model)


def _release_all(model: Model) -> Model:
    switch_off(model)
    for module in model.modules():
        if isinstance(module, Rewritten) and is_made(type(module)):
            become(module, module._made_from)
        elif is_norm(module):
            release(module)
    vars(model).pop("fusion_report", None)
    return model


def _line(model: nn.Module, path: str, kind: str, norm: nn.Module, plan: Plan, obstacle: str) -> NormReport:
    """Returns what the report says of one norm."""
    found = plan.findings.get(norm)
    own = own_activation(norm)
    replaced = type(norm) in OURS or isinstance(norm, runtime.NormAct)
    if own or obstacle or not found or not found.fused:
        reason = "" if own else obstacle or _why_not(model, path, norm, plan)
        return NormReport(path, kind, (own,) if own else (), replaced, reason)
    labels = max(found.fused.values(), key=len)
    unseen = [mode for mode in MODES.values() if mode not in found.fused]
    _, refusals = _refused_around(model, path, plan)
    reasons = [f"not in {mode}: {refusals.get(mode, 'another path is taken')}" for mode in unseen]
    reasons += [reason for reason in found.reasons if reason != RETURNED]
    return NormReport(path, kind, labels, replaced, "; ".join(dict.fromkeys(reasons)))


def _why_no_norm(model: nn.Module) -> str:
    if any(isinstance(module, torch.jit.ScriptModule) for module in model.modules()):
        return "torch.jit has compiled the model: fuse it before torch.jit.trace, and do not script it"
    graphs = [module.graph for module in model.modules() if isinstance(module, fx.GraphModule)]
    if any("batch_norm" in str(node.target) for graph in graphs for node in graph.nodes):
        return "the model is a graph, which calls batch_norm as an operator: fuse it before it is exported"
    for name, module in model.named_modules():
        code = getattr(type(module).forward, "__code__", None)
        if code and "batch_norm" in code.co_names and not hasattr(module, "batch_norm"):
            return f"the forward of '{name}', a {type(module).__name__}, calls batch_norm as a function"
    return "no module of the model is an nn.BatchNorm*"


RETURNED = "its output is what the forward returns"


def _why_not(model: nn.Module, path: str, norm: nn.Module, plan: Plan) -> str:
    """Returns the reasons for the norm's calls, or that of the nearest refused module around it."""
    found = plan.findings.get(norm)
    reasons = list(dict.fromkeys(found.reasons)) if found else []
    if reasons:
        return "; ".join([reason for reason in reasons if reason != RETURNED] or reasons)
    name, refusals = _refused_around(model, path, plan)
    return (
        f"{name}: {'; '.join(dict.fromkeys(refusals.values()))}" if refusals else "no traced forward calls it"
    )


def _refused_around(model: nn.Module, path: str, plan: Plan) -> tuple[str, dict[str, str]]:
    """Returns the nearest refused module around a norm: its class, and the reasons by mode."""
    parts = path.split(".")
    for count in range(len(parts) - 1, -1, -1):
        around = model.get_submodule(".".join(parts[:count]))
        if around in plan.refusals:
            return base_of(around).__name__, plan.refusals[around]
    return "", {}


def _misfits(model: nn.Module, example_inputs: object) -> dict[nn.Module, str]:
    """Runs the model, and returns for each norm why its residual did not fit."""
    found: dict[nn.Module, str] = {}
    if isinstance(example_inputs, Mapping):
        positional: Sequence[Any] = ()
        named: Mapping[str, Any] = example_inputs
    else:
        positional = example_inputs if isinstance(example_inputs, (list, tuple)) else (example_inputs,)
        named = {}
    with _in_evaluation(model), torch.no_grad(), torch.random.fork_rng():
        runtime.listeners.append(found.setdefault)  # type: ignore[arg-type]
        try:
            model(*positional, **named)
        finally:
            runtime.listeners.pop()
    return found


@contextmanager
def _in_evaluation(model: nn.Module) -> Iterator[None]:
    modes = {module: module.training for module in model.modules()}
    try:
        for module in modes:
            module.training = False
        yield
    finally:
        for module, mode in modes.items():
            module.training = mode

"""Makes the batch norms of an existing model take their statistics over several processes, and back."""

from typing import Any, TypeVar

from torch import nn
from torch.nn.modules.lazy import LazyModuleMixin

from fused_bn.fusion.classes import become
from fused_bn.fusion.norms import Unfused, regain, release
from fused_bn.fusion.runtime import NormAct
from fused_bn.modules import DROP_INS, OURS, SYNCHRONISED, SyncBatchNorm

Model = TypeVar("Model", bound=nn.Module)


def convert_sync_batchnorm(model: Model, process_group: Any = None) -> Model:
    """Makes all batch norms of a model compute their statistics over the processes of a group.

    The model is changed in place. Modules, parameters and buffers stay the same objects under the same names,
    with their activations and all other options. Norms that are already synchronised keep their group. Call
    it before or after `fuse`, but before the model is wrapped for parallel training.

    Args:
        model: any module.
        process_group: a group of torch.distributed; None is the default group.

    Returns:
        The model. `revert_sync_batchnorm` undoes it.

    Raises:
        ValueError: a norm is lazy, or of an unknown subclass of nn.BatchNorm*; then nothing is changed.
    """
    named = {name: module for name, module in model.named_modules() if _is_norm(module)}
    for name, norm in named.items():
        if isinstance(norm, LazyModuleMixin):
            raise ValueError(f"'{name}' is lazy: convert the model after its first input")
        if not (type(norm) in OURS or type(norm) in DROP_INS or isinstance(norm, (NormAct, Unfused))):
            raise ValueError(
                f"'{name}' is a {type(norm).__name__}, and what that computes is not known to "
                "convert_sync_batchnorm: put a norm of fused_bn or torch.nn in its place, or convert the "
                "modules around it one by one; norms with children act and drop, as timm's, are known once "
                "fused_bn.fuse has made them ours"
            )
    for name, norm in named.items():
        own = vars(norm)
        if isinstance(norm, NormAct):
            own["synchronised"] = True
        elif not isinstance(norm, SyncBatchNorm):
            if isinstance(norm, Unfused):
                regain(norm)  # type: ignore[arg-type]
                own["was_unfused"] = True
            own["synchronised_from"] = type(norm)
            become(norm, SYNCHRONISED[DROP_INS.get(type(norm), type(norm))])
        own.setdefault("process_group", process_group)
        own["layer_name"] = name or type(norm).__name__
    return model


def revert_sync_batchnorm(model: Model) -> Model:
    """Undoes `convert_sync_batchnorm`, in place: every norm computes the statistics of its own batch again.

    A norm that was constructed as a `SyncBatchNorm`, of this package or of PyTorch, becomes that again.
    """
    fused = "fusion_report" in vars(model)
    for module in model.modules():
        own = vars(module)
        former = own.pop("synchronised_from", None)
        if former is not None:  # a fused model keeps our class, which can still be fused
            become(module, DROP_INS.get(former, former) if fused else former)
        elif not isinstance(module, NormAct):
            continue
        if own.pop("was_unfused", False):
            release(module)
        own.pop("synchronised", None)
        own.pop("layer_name", None)
        if former is not nn.SyncBatchNorm:
            own.pop("process_group", None)
    return model


def _is_norm(module: nn.Module) -> bool:
    return isinstance(module, nn.modules.batchnorm._BatchNorm)

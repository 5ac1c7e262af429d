"""Which modules of a model keep the recipe of a norm's output for backward, in the place of the output."""

from typing import Any

from torch import Tensor, nn

from fused_bn import _recompute
from fused_bn._extension import extension
from fused_bn.fusion.runtime import NormAct
from fused_bn.modules import OURS

KEEP_THEIR_INPUT = frozenset(
    {
        *(nn.Conv1d, nn.Conv2d, nn.Conv3d, nn.ConvTranspose1d, nn.ConvTranspose2d, nn.ConvTranspose3d),
        *(nn.MaxPool2d, nn.MaxPool3d, nn.AvgPool2d, nn.AvgPool3d),
        *(nn.AdaptiveAvgPool2d, nn.AdaptiveAvgPool3d, nn.Linear),
    }
)
"""Of just these classes: what subclasses do is unknown."""


def keep_recipe(_: nn.Module, args: tuple[Any, ...], *rest: Any) -> None:
    """The forward hook of a module that keeps its input.

    Quantization moves hooks to the module that it puts in the place of this one, and drops `with_kwargs`.
    """
    output = rest[-1][0] if isinstance(rest[-1], tuple) else rest[-1]
    input = args[0] if args else rest[0].get("input") if len(rest) > 1 else None
    if isinstance(output, Tensor) and isinstance(input, Tensor):
        _recompute.keep_recipe(output, input)


def switch_on(model: nn.Module) -> None:
    """Norms of ours note how they computed, and modules that keep their input keep those notes."""
    if extension is None:
        return
    for module in model.modules():
        if type(module) in OURS or isinstance(module, NormAct):
            vars(module)["_notes_outputs"] = True
        elif type(module) in KEEP_THEIR_INPUT:
            module.register_forward_hook(keep_recipe, prepend=True, with_kwargs=True)


def switch_off(model: nn.Module) -> None:
    """Undoes `switch_on`."""
    for module in model.modules():
        vars(module).pop("_notes_outputs", None)
        for number, hook in list(module._forward_hooks.items()):
            if hook is keep_recipe:
                del module._forward_hooks[number]
                module._forward_hooks_with_kwargs.pop(number, None)

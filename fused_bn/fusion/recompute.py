"""Which modules of a model keep the recipe of a norm's output for backward, in the place of the output."""

from functools import cache
from typing import Any

from torch import Tensor, nn

from fused_bn import _recompute
from fused_bn._extension import extension
from fused_bn.fusion.classes import Made, become, is_made, make_class
from fused_bn.fusion.runtime import OURS, NormAct

KEEP_THEIR_INPUT = frozenset(
    {
        *(nn.Conv1d, nn.Conv2d, nn.Conv3d, nn.ConvTranspose1d, nn.ConvTranspose2d, nn.ConvTranspose3d),
        *(nn.MaxPool2d, nn.MaxPool3d, nn.AvgPool2d, nn.AvgPool3d),
        *(nn.AdaptiveAvgPool2d, nn.AdaptiveAvgPool3d, nn.Linear),
    }
)
"""Of just these classes: what subclasses do is unknown."""


class KeepsRecipe(Made):
    """Computes what its class computes."""

    def forward(self, input: Tensor, *args: Any, **kwargs: Any) -> Any:
        result = super().forward(input, *args, **kwargs)  # type: ignore[misc]
        _recompute.keep_recipe(result if isinstance(result, Tensor) else result[0], input)
        return result


def switch_on(model: nn.Module) -> None:
    """Norms of ours note how they computed, and modules that keep their input keep those notes."""
    if extension is None:
        return
    for module in model.modules():
        if type(module) in OURS or isinstance(module, NormAct):
            vars(module)["_notes_outputs"] = True
        elif type(module) in KEEP_THEIR_INPUT:
            become(module, _keeping_class(type(module)))  # type: ignore[arg-type]


def switch_off(model: nn.Module) -> None:
    """Undoes `switch_on`."""
    for module in model.modules():
        vars(module).pop("_notes_outputs", None)
        if isinstance(module, KeepsRecipe) and is_made(type(module)):
            become(module, module._made_from)


@cache
def _keeping_class(base: type[nn.Module]) -> type[nn.Module]:
    return make_class(base, KeepsRecipe, (_keeping_class, (base,)))

"""Large outputs of norms that backward computes again, so that they need not be kept from forward.

A convolution saves its input for backward. If this input is a norm's output, the norm saves its own input as
well. Two tensors are then kept, although one is enough. With this module the consumer keeps x in place of y.
Values and gradients stay the same, bit for bit. Backward takes one more pass over memory for each such y.

The life of an output y = act(norm(x) + r), and of its recipe:

    forward     norm         y is computed                     `remember` notes the recipe of y, beside y:
                  |                                            weak references to x and r, the statistics
                  v                                            and copies of the parameters
                consumer     its node saves y                  `keep_recipe` finds the note, and puts a
                  |                                            recipe that keeps x and r in the place of y
                  v
                (the user's last reference goes)               y is freed, and its note with it
                  :
    backward    consumer     its node asks for its input       the recipe computes y again from x and r
                  |
                  v
                norm         reads x, as it always does        y is freed again; the recipe is freed with
                                                               the consumer's node

The consumer keeps y itself in these cases:

- y is smaller than `WORTH_BYTES`, or was written since;
- the consumer's node saves another tensor than y. A linear layer does so for more than two dimensions: it
  saves a view of y;
- hooks decide how tensors are saved;
- r is not kept by another consumer.
"""

from typing import Any

import torch
from torch import Tensor, nn
from torch.utils.weak import TensorWeakRef, WeakTensorKeyDictionary

from fused_bn._extension import extension

WORTH_BYTES = 1 << 20
"""Smaller outputs are kept: the notes take some 20 us a tensor."""

CONSUMERS = frozenset(
    {
        *(nn.Conv1d, nn.Conv2d, nn.Conv3d, nn.ConvTranspose1d, nn.ConvTranspose2d, nn.ConvTranspose3d),
        *(nn.MaxPool2d, nn.MaxPool3d, nn.AvgPool2d, nn.AvgPool3d),
        *(nn.AdaptiveAvgPool2d, nn.AdaptiveAvgPool3d, nn.Linear),
    }
)
"""The modules that can save a recipe in place of their input. Subclasses may do anything, so they do not."""

_SAVED = ("_raw_saved_input", "_raw_saved_self", "_raw_saved_mat1")
"""What the nodes of convolutions, of pooling and of linear layers call their input."""

_notes: Any = WeakTensorKeyDictionary()
"""Maps each living output to its recipe and to a weak reference to its residual, if it has one."""

_kept: Any = WeakTensorKeyDictionary()
"""The tensors that a consumer keeps as they are. A recipe needs its residual to be one of them."""


def switch_on(model: nn.Module) -> None:
    """Lets the model's norms note their outputs, and its consumers keep recipes."""
    if extension is None:
        return
    for module in model.modules():
        if hasattr(type(module), "_notes_outputs"):  # a norm that one pass of ours computes
            vars(module)["_notes_outputs"] = True
        elif type(module) in CONSUMERS:
            module.register_forward_hook(keep_recipe, prepend=True, with_kwargs=True)


def switch_off(model: nn.Module) -> None:
    """Undoes `switch_on`."""
    for module in model.modules():
        vars(module).pop("_notes_outputs", None)
        for number, hook in list(module._forward_hooks.items()):
            if hook is keep_recipe:
                del module._forward_hooks[number]
                module._forward_hooks_with_kwargs.pop(number, None)


def remember(output: Tensor, residual: Tensor | None) -> None:
    """Notes how `output`, which batch_norm has just returned, was computed. Keeps no large tensor alive."""
    if _is_recorded() or extension is None or not output.requires_grad or output.nbytes < WORTH_BYTES:
        return
    # Now: a sharded weight may be freed before the consumer is computed.
    recipe = torch.ops.fused_bn.recipe(output, residual)
    if recipe is not None:
        _notes[output] = recipe, None if residual is None else TensorWeakRef(residual)


def keep_recipe(_: nn.Module, args: tuple[Any, ...], *rest: Any) -> None:
    """The forward hook of a consumer.

    Quantization replaces the module. It moves this hook to the new module but drops `with_kwargs`, so the
    hook must work with and without keyword arguments.
    """
    output = rest[-1][0] if isinstance(rest[-1], tuple) else rest[-1]
    input = args[0] if args else rest[0].get("input") if len(rest) > 1 else None
    if isinstance(output, Tensor) and isinstance(input, Tensor):
        _keep_recipe(output, input)


def _keep_recipe(consumer: Tensor, input: Tensor) -> None:
    """Replaces `input`, as saved by the node of the output `consumer`, by its recipe, if it has one."""
    if _is_recorded() or not consumer.requires_grad or input.nbytes < WORTH_BYTES:
        return
    for name in _SAVED:
        saved: Any = getattr(consumer.grad_fn, name, None)
        if getattr(saved, "data", None) is input:
            recipe = _recipe_of(input)
            kept = None if recipe is None else recipe.keep()
            if kept is not None:
                saved.register_hooks(lambda _, kept=kept: kept, lambda kept: kept.compute())
            else:
                _kept[input] = True
            return


def _is_recorded() -> bool:
    """Returns whether a compiler or a tracer records the calls. Compilers decide themselves what to keep."""
    return torch.compiler.is_compiling() or torch.jit.is_tracing()  # type: ignore[attr-defined]


def _recipe_of(output: Tensor) -> Any:
    if output not in _notes or output._version != 0:
        return None
    recipe, reference = _notes[output]
    residual = None if reference is None else reference()
    if reference is not None and (residual is None or residual not in _kept):
        return None
    return recipe

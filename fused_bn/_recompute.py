"""Large outputs of norms that backward computes again, so that they need not be kept from forward.

A convolution keeps its input for backward. Where that is a norm's output, the norm's own input lies there as
well, and two tensors are kept where one is enough. `remember` notes how an output was computed, `keep_recipe`
lets the consumer's node keep a recipe in the place of the tensor. Values and gradients stay the same, bit for
bit; backward takes one more read and write of each such tensor.
"""

from typing import Any

import torch
from torch import Tensor
from torch.utils.weak import TensorWeakRef, WeakTensorKeyDictionary

from fused_bn._extension import extension

WORTH_BYTES = 1 << 20
"""Of an output, from which on it is computed again: the notes take some 20 us a tensor."""

_SAVED = ("_raw_saved_input", "_raw_saved_self", "_raw_saved_mat1")
"""What the nodes of convolutions, of pooling and of linear layers call their input."""

_notes: Any = WeakTensorKeyDictionary()
"""By output, as long as that lives: its recipe, and a weak reference to its residual if it has one."""

_kept: Any = WeakTensorKeyDictionary()
"""The tensors that a consumer keeps as they are: a residual among them may be relied on in backward."""


def remember(output: Tensor, residual: Tensor | None) -> None:
    """Notes how `output`, which batch_norm has just returned, was computed. Keeps no large tensor alive."""
    if _is_recorded() or extension is None or not output.requires_grad or output.nbytes < WORTH_BYTES:
        return
    # Now: a sharded weight may be freed before the consumer is computed.
    recipe = torch.ops.fused_bn.recipe(output, residual)
    if recipe is not None:
        _notes[output] = recipe, None if residual is None else TensorWeakRef(residual)


def keep_recipe(consumer: Tensor, input: Tensor) -> None:
    """Lets the node behind `consumer` keep a recipe of its `input` rather than the input, if there is one.

    Nothing happens where the node does not keep just this tensor, hooks decide how it is kept, it was written
    in between, or its residual is kept by nobody else.
    """
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
    """Whether a compiler or tracer looks on, which has memory plans of its own."""
    return torch.compiler.is_compiling() or torch.jit.is_tracing()  # type: ignore[attr-defined]


def _recipe_of(output: Tensor) -> Any:
    if output not in _notes or output._version != 0:
        return None
    recipe, reference = _notes[output]
    residual = None if reference is None else reference()
    if reference is not None and (residual is None or residual not in _kept):
        return None
    return recipe

"""Large outputs of norms that backward computes again, so that they need not be kept from forward.

A convolution keeps its input for backward. Where that is a norm's output, the norm's own input lies there as
well, and two tensors are kept where one is enough. `remember` notes how an output was computed, `keep_recipe`
lets the consumer's node keep that note in the place of the tensor. Values and gradients stay the same, bit
for bit; backward takes one more read and write of each such tensor.
"""

from typing import Any

import torch
from torch import Tensor
from torch.utils.weak import WeakTensorKeyDictionary

WORTH_BYTES = 1 << 20
"""Of an output, from which on it is computed again: the notes take some 20 us a tensor."""

_SAVED = ("_raw_saved_input", "_raw_saved_self", "_raw_saved_mat1")
"""What the nodes of convolutions, of pooling and of linear layers call their input."""

_recipes: Any = WeakTensorKeyDictionary()
"""By output, as long as that lives."""


def remember(output: Tensor, residual: Tensor | None) -> None:
    """Notes how `output`, which batch_norm has just returned, was computed. Keeps nothing large alive."""
    if torch.compiler.is_compiling() or not output.requires_grad or output.nbytes < WORTH_BYTES:
        return
    recipe = torch.ops.fused_bn.recipe(output, residual)
    if recipe is not None:
        _recipes[output] = recipe


def keep_recipe(consumer: Tensor, input: Tensor) -> None:
    """Lets the node behind `consumer` keep the recipe of its `input` rather than the input, if there is one.

    Nothing happens where the node does not keep just this tensor, hooks decide how it is kept, or it was
    written in between.
    """
    if torch.compiler.is_compiling() or not consumer.requires_grad or input not in _recipes:
        return
    if input._version != 0:
        return
    for name in _SAVED:
        saved: Any = getattr(consumer.grad_fn, name, None)
        if getattr(saved, "data", None) is input and _recipes[input].keep():
            recipe = _recipes[input]
            saved.register_hooks(lambda _, recipe=recipe: recipe, lambda recipe: recipe.compute())
            return

"""Attempts at the operators with arguments that are wrong, or right in an unusual way.

A call either raises what an operator may raise and changes nothing, or it is right. What only lies in memory
in another way, or beside a forbidden page, must give the same bits.
"""

import random
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor
from torch.autograd.graph import saved_tensors_hooks

from fused_bn._activations import ACTIVATIONS
from tests.cases import DTYPES, Case, layouts, make_tensors, run_fused, same_bits
from tests.ops import test_operator as operators
from tests.ops.guard_pages import guarded
from tests.reference import DEMANDS, errors, precision
from tests.sync import test_pieces as pieces

Arguments = dict[str, Any]
SHAPES = (
    (2, 3),
    (9, 33),
    (3, 5, 7),
    (2, 3, 5, 7),
    (4, 16, 8, 8),
    (2, 6, 7, 7),
    (1, 1, 9, 9),
    (2, 3, 2, 3, 4),
    (0, 3, 4, 4),
)
REFUSALS = (RuntimeError, ValueError, TypeError, NotImplementedError, IndexError)
"""What PyTorch's operators raise."""

NAMES: dict[str, tuple[str, ...]] = {
    "batch_norm": operators.USER_ARGUMENTS,
    "batch_norm_forward": operators.FORWARD_ARGUMENTS,
    "batch_norm_elementwise": operators.ELEMENTWISE_ARGUMENTS,
    "batch_norm_backward": operators.BACKWARD_ARGUMENTS,
    "batch_norm_moments": ("input",),
    "batch_norm_merge": pieces.MERGE,
    "batch_norm_backward_sums": (*pieces.SUMS[:-1], "sums_mask"),
    "batch_norm_backward_elementwise": (*pieces.ELEMENTWISE[:-1], "elementwise_mask"),
}
"""The arguments of each operator, in the order of its schema."""


def random_case(rng: random.Random) -> Case:
    shape = rng.choice(SHAPES)
    dtype, parameter_dtype = rng.choice(DTYPES)
    options: dict[str, bool] = {
        name: rng.random() < 0.8 for name in ("weight", "bias", "buffers", "training")
    }
    if not options["buffers"]:
        options["training"] = True
    return Case(
        shape,
        rng.choice(layouts(shape)),
        dtype,
        parameter_dtype,
        momentum=rng.choice((0.1, None, 1.0)),
        activation=rng.choice(list(ACTIVATIONS)),
        residual=rng.random() < 0.4,
        **options,
    )


def right_arguments(case: Case) -> Arguments:
    """Of all operators, by name."""
    channels = case.channels
    moments = torch.rand(2, 2 * channels + 1, dtype=torch.float64)
    return {
        **operators.forward_arguments(case),
        **operators.backward_arguments(case),
        "moments": moments,
        "sums": torch.rand(2 * channels, dtype=torch.float64),
        "count": torch.tensor(8.0, dtype=torch.float64),
        "sums_mask": [True] * 3,
        "elementwise_mask": [True] * 2,
    }


def call(operator: str, arguments: Arguments) -> list[Tensor]:
    found = getattr(torch.ops.fused_bn, operator)(*(arguments[name] for name in NAMES[operator]))
    return [each for each in ([found] if isinstance(found, Tensor) else found) if each is not None]


# ---- in other memory: the same bits must come of it


def spread_out(tensor: Tensor, _: random.Random) -> Tensor:
    """Every second element of memory twice as large, in the same order."""
    strides = [2 * stride for stride in tensor.stride()]
    return torch.empty_strided(tensor.shape, strides, dtype=tensor.dtype).copy_(tensor)


def one_element_on(tensor: Tensor, _: random.Random) -> Tensor:
    """Aligned to an element only."""
    flat = torch.empty(tensor.numel() + 1, dtype=tensor.dtype)
    return flat[1:].as_strided(tensor.shape, tensor.stride(), 1).copy_(tensor)


def beside_a_guard_page(tensor: Tensor, rng: random.Random) -> Tensor:
    dense = tensor.numel() > 0 and tensor.is_contiguous()
    return guarded(tensor, rng.random() < 0.5) if dense else tensor


# ---- wrong, or not always right


def of_another_shape(tensor: Tensor, rng: random.Random) -> Tensor:
    changes: list[Callable[[], Tensor]] = [
        lambda: tensor.unsqueeze(0),
        lambda: tensor.flatten(),
        lambda: tensor.new_empty(0),
        lambda: torch.cat([tensor, tensor]) if tensor.dim() > 0 else tensor[None],
        lambda: tensor[1:] if tensor.dim() > 0 else tensor[None],
        lambda: tensor.transpose(0, -1) if tensor.dim() > 0 else tensor[None],
    ]
    return rng.choice(changes)()


def of_another_type(tensor: Tensor, rng: random.Random) -> Tensor:
    types = (
        torch.float32,
        torch.float64,
        torch.bfloat16,
        torch.float16,
        torch.int64,
        torch.complex64,
        torch.uint8,
    )
    return tensor.to(rng.choice(types))


def freed(tensor: Tensor, _: random.Random) -> Tensor:
    tensor = tensor.clone()
    tensor.untyped_storage().resize_(0)
    return tensor


def of_one_element(tensor: Tensor, _: random.Random) -> Tensor:
    """All elements are the same memory."""
    return tensor.flatten()[:1].expand(tensor.numel()).view(tensor.shape) if tensor.numel() > 0 else tensor


def in_inference_mode(tensor: Tensor) -> Tensor:
    with torch.inference_mode():
        return tensor.clone()


MOVES = (spread_out, one_element_on, beside_a_guard_page)
WRONGS: tuple[Callable[[Tensor, random.Random], Any], ...] = (
    of_another_shape,
    of_another_type,
    freed,
    of_one_element,
    lambda *_: None,
    lambda tensor, _: tensor.to("meta"),
    lambda tensor, _: tensor.to_sparse() if tensor.is_floating_point() else tensor,
    lambda tensor, _: tensor._neg_view() if tensor.is_floating_point() else tensor,
    lambda tensor, _: in_inference_mode(tensor),
    lambda tensor, _: tensor.requires_grad_() if tensor.is_floating_point() else tensor,
)
NUMBERS = {
    "eps": (0.0, -1.0, float("nan"), float("inf"), 1e-300),
    "momentum": (None, float("nan"), 2.0),
    "activation": ("RELU", "", "softmax"),
    "activation_param": (float("nan"), float("inf"), 1e39, -1.0, 0.0),
    "training": (True, False),
}


def attempt(seed: int) -> str | None:
    """What is wrong with one call; None where nothing is."""
    rng = random.Random(seed)
    torch.manual_seed(seed)
    case = random_case(rng)
    operator = rng.choice(list(NAMES))
    names = NAMES[operator]
    plain = right_arguments(case)
    tensors = [name for name in names if isinstance(plain[name], Tensor)]
    if case.shape[0] > 0 and rng.random() < 0.2:
        return under_hooks(case, rng)
    own = {name: value.clone() if name in tensors else value for name, value in plain.items()}
    for name in ("weight", "bias"):
        if operator == "batch_norm" and name in tensors and rng.random() < 0.5:
            own[name].requires_grad_()
    told = f"{operator} {case}"
    if rng.random() < 0.5:
        for name in rng.sample(tensors, min(len(tensors), 2)):
            move = rng.choice(MOVES)
            own[name] = move(own[name], rng)
            told += f", {name} {move.__name__}"
        return differs(operator, plain, own, told)
    for name in rng.sample(names, min(len(names), rng.choice((1, 1, 2)))):
        if name in tensors:
            change = rng.choice(WRONGS)
            own[name] = change(own[name], rng)
            told += f", {name} {change.__name__}"
        elif name in NUMBERS:
            own[name] = rng.choice(NUMBERS[name])
            told += f", {name} {own[name]}"
    return misbehaves(operator, own, told)


def differs(operator: str, plain: Arguments, own: Arguments, told: str) -> str | None:
    expected, found = (outcome(operator, arguments) for arguments in (plain, own))
    if isinstance(expected, str) or isinstance(found, str):
        return None if expected == found else f"{told}: {found}, but as it was {expected}"
    written = ("running_mean", "running_var", "num_batches_tracked")
    pairs = [*zip(expected, found, strict=True), *((plain[name], own[name]) for name in written)]
    same = all(left is right or same_bits(left.nan_to_num(), right.nan_to_num()) for left, right in pairs)
    return None if same else f"{told}: other bits"


def misbehaves(operator: str, arguments: Arguments, told: str) -> str | None:
    lying = {name: value for name, value in arguments.items() if isinstance(value, Tensor)}
    before = {name: copy_of(value) for name, value in lying.items()}
    versions = {name: version_of(value) for name, value in lying.items()}
    refusal = outcome(operator, arguments)
    empty = [name for name in NAMES[operator] if name in lying and is_freed(lying[name])]
    if not isinstance(refusal, str):
        return f"{told}: accepts {empty[0]} without memory" if empty else None
    if "INTERNAL ASSERT" in refusal:
        return f"{told}: {refusal}"
    for name, value in lying.items():
        if version_of(value) != versions[name] or not is_copy(value, before[name]):
            return f"{told}: {name} was written by a call that raised {refusal}"
    return None


def under_hooks(case: Case, rng: random.Random) -> str | None:
    """Hooks that bring back what was saved in other memory leave the gradients right."""
    tensors = make_tensors(case)

    def re_lay(tensor: Tensor) -> Tensor:
        if tensor.dim() == 4 and rng.random() < 0.7:
            return tensor.contiguous(memory_format=rng.choice((torch.channels_last, torch.contiguous_format)))
        return spread_out(tensor, rng)

    with saved_tensors_hooks(re_lay, lambda tensor: tensor):
        result = run_fused(case, tensors)
    found = errors(case, tensors, result)
    wrong = [name for name, error in found.items() if not error <= DEMANDS[name] * precision(case.dtype)]
    return f"{case}: {', '.join(wrong)} wrong under hooks that re-lay" if wrong else None


def outcome(operator: str, arguments: Arguments) -> list[Tensor] | str:
    """What the call returns, or what it says where it refuses."""
    try:
        return call(operator, arguments)
    except REFUSALS as refusal:
        return f"{type(refusal).__name__}: {str(refusal).partition(chr(10))[0]}"


def is_freed(tensor: Tensor) -> bool:
    strided = tensor.layout == torch.strided and tensor.device.type == "cpu"
    return strided and tensor.numel() > 0 and tensor.untyped_storage().nbytes() == 0


def version_of(tensor: Tensor) -> int:
    return -1 if tensor.is_inference() else tensor._version


def copy_of(tensor: Tensor) -> Tensor | None:
    has_values = tensor.layout == torch.strided and tensor.device.type == "cpu" and not is_freed(tensor)
    return tensor.clone() if has_values else None


def is_copy(tensor: Tensor, copy: Tensor | None) -> bool:
    return copy is None or torch.allclose(tensor, copy, rtol=0, atol=0, equal_nan=True)

"""The counted calls. They are so tiny that their cost is Python, autograd and the dispatcher."""

import gc
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import partial

import torch
from torch import Tensor, nn

import fused_bn

Call = Callable[[], object]

SHAPE = (2, 4, 2, 2)
GATED = ("forward", "forward+backward", "evaluation", "functional")
"""Ours. Eager's calls are beside them."""
COUNTED = (*GATED, "eager forward", "eager forward+backward", "eager evaluation")
BLOCKS = 4 * COUNTED
"""Each call is counted four times, after `renew_types`. The least count has no cache conflicts."""
WARM_UP = 20
"""Calls in a turn of the warm-up. Python specialises its bytecode in the first dozens of calls."""

_MARK = "_fused_bn_renewed"


def calls() -> dict[str, Call]:
    """All calls by name, including those of COUNTED."""
    input = torch.randn(SHAPE, generator=torch.Generator().manual_seed(0)).requires_grad_()
    ours = partial(fused_bn.BatchNorm2d, SHAPE[1], activation="relu")
    found: dict[str, Call] = {
        "forward": partial(ours(), input),
        "forward+backward": partial(step, ours(), input, torch.ones(SHAPE)),
        "evaluation": partial(evaluate, ours().eval(), input),
        "functional": functional(ours(), input),
    }
    found |= {
        "eager forward": partial(eager(), input),
        "eager forward+backward": partial(step, eager(), input, torch.ones(SHAPE)),
        "eager evaluation": partial(evaluate, eager().eval(), input),
    }
    return found


def eager() -> nn.Module:
    return nn.Sequential(nn.BatchNorm2d(SHAPE[1]), nn.ReLU())


def step(module: nn.Module, input: Tensor, grad_output: Tensor) -> None:
    """Forward and backward. Gradients of input and parameters are new, as in a training step."""
    input.grad = None
    for parameter in module.parameters():
        parameter.grad = None
    module(input).backward(grad_output)


def evaluate(module: nn.Module, input: Tensor) -> None:
    """Evaluation without autograd."""
    with torch.no_grad():
        module(input)


def functional(norm: nn.BatchNorm2d, input: Tensor) -> Call:
    """The function in training, with `norm`'s parameters and buffers."""
    return partial(
        fused_bn.functional.batch_norm,
        input,
        norm.running_mean,
        norm.running_var,
        norm.weight,
        norm.bias,
        training=True,
        activation="relu",
    )


def turns(warm_up: int, number: int) -> Iterator[Call]:
    """The sequence of calls: `warm_up` rounds of everything, then each of BLOCKS `number` times.

    Turns Python's garbage collector off, because its runs depend on all earlier allocations.
    """
    gc.disable()
    found = calls()

    def everything() -> None:
        for call in found.values():
            repeat(call)

    for _ in range(warm_up):
        yield everything
    for name in BLOCKS:
        with uncounted():
            renew_types()
            repeat(found[name])
        for _ in range(number):
            yield found[name]


def repeat(call: Call) -> None:
    for _ in range(WARM_UP):
        call()


@contextmanager
def uncounted() -> Iterator[None]:
    """Callgrind does not count the calls in the `with` block. Without callgrind this does nothing."""
    torch._C._valgrind_toggle()
    try:
        yield
    finally:
        torch._C._valgrind_toggle()


def renew_types() -> None:
    """Moves modules and tensors to other places in Python's attribute cache.

    A place depends on the type's version, which changes with the type, and on the address of the attribute's
    name. Two attributes in one place evict each other, and each access then searches all base classes. Such a
    conflict is chance and costs up to two percent.
    """
    kinds: tuple[type, ...] = (nn.Module, Tensor)
    for kind in kinds:
        setattr(kind, _MARK, True)
        delattr(kind, _MARK)

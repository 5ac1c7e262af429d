"""The calls counted: so tiny that what they cost is the way through Python, autograd and the dispatcher."""

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
"""Ours. Those of eager stand beside them."""
COUNTED = (*GATED, "eager forward", "eager forward+backward", "eager evaluation")
BLOCKS = 4 * COUNTED
"""Each several times, with `renew_types` between them: the least is the count without accidents."""
WARM_UP = 20
"""Of each call in a turn of the warm-up; Python rewrites its code in the first dozens of calls."""

_MARK = "_fused_bn_renewed"


def calls() -> dict[str, Call]:
    """The calls by name, those of COUNTED."""
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
    """Forward and backward; the gradients of input and parameters are fresh, as in a training step."""
    input.grad = None
    for parameter in module.parameters():
        parameter.grad = None
    module(input).backward(grad_output)


def evaluate(module: nn.Module, input: Tensor) -> None:
    """Without autograd."""
    with torch.no_grad():
        module(input)


def functional(norm: nn.BatchNorm2d, input: Tensor) -> Call:
    """In training, on the parameters and buffers of `norm`."""
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
    """What to call, one after the other: `warm_up` rounds of everything, then each of BLOCKS `number` times.

    Python's garbage collector is off from here on: how often it runs depends on all that was made before.
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
    """Callgrind, which counts, does not count what is done within; elsewhere these calls do nothing."""
    torch._C._valgrind_toggle()
    try:
        yield
    finally:
        torch._C._valgrind_toggle()


def renew_types() -> None:
    """Gives modules and tensors other places in Python's cache of attributes.

    A place depends on a number that the type gets anew when it is changed, and on the address of the
    attribute's name. Two attributes in one place drive each other out, and each looks through all base
    classes then: whether that happens is chance, and costs up to two percent.
    """
    kinds: tuple[type, ...] = (nn.Module, Tensor)
    for kind in kinds:
        setattr(kind, _MARK, True)
        delattr(kind, _MARK)

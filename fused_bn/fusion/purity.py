"""Refuses forwards that do what a graph cannot hold: state outside the model, contexts."""

import builtins
import dis
import gc
import random
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from types import CodeType, FrameType, FunctionType, ModuleType
from typing import Any

import torch

from fused_bn.fusion.watch import RefusedError, is_users

PURE_MODULES = {
    *("math", "operator", "_operator", "functools", "_functools"),
    *("itertools", "collections", "typing", "builtins"),
}
"""Modules of the standard library whose functions depend only on their arguments."""
UNTRACEABLE_BUILTINS = frozenset(
    {"print", "type", "id", "hash", "vars", "globals", "locals", "eval", "exec", "open", "input", "setattr"}
)
AMBIENT = {
    *("is_grad_enabled", "is_inference_mode_enabled", "is_autocast_enabled", "is_autocast_cpu_enabled"),
    *("get_autocast_dtype", "get_default_dtype", "is_compiling", "is_dynamo_compiling", "is_exporting"),
    *("is_tracing", "is_tensor", "checkpoint"),
}
"""Functions whose answer may differ between trace and call, or that do more than compute."""


@contextmanager
def only_pure_code() -> Iterator[None]:
    """Refuses, at the end, a forward whose own code did more than compute on tensors."""
    seen: dict[CodeType, dict[str, Any]] = {}

    def called(frame: FrameType, event: str, _: Any) -> None:
        if event == "call" and is_users(frame):
            seen[frame.f_code] = frame.f_globals

    def random_states() -> tuple[object, bytes]:
        return random.getstate(), torch.get_rng_state().numpy().tobytes()

    before, profiler = random.getstate(), sys.getprofile()
    torch_before = torch.get_rng_state()
    states = random_states()
    collects = gc.isenabled()
    gc.disable()  # finalisers are not part of the forward
    sys.setprofile(called)
    try:
        yield
    finally:
        sys.setprofile(profiler)
        if collects:
            gc.enable()
        drawn = random_states() != states
        random.setstate(before)
        torch.set_rng_state(torch_before)
    if drawn:
        raise RefusedError("its forward draws random numbers in Python")
    for code, names in seen.items():
        check_code(code, names)


def check_code(code: CodeType, global_names: dict[str, Any]) -> None:
    """Raises RefusedError unless a function only computes on its arguments and the model."""
    instructions = list(dis.get_instructions(code))
    stored = {name for each in instructions if each.opname.startswith("STORE_FAST") for name in _names(each)}
    for index, instruction in enumerate(instructions):
        name = instruction.opname
        if name == "WITH_EXCEPT_START":
            raise RefusedError("its forward has a `with` statement")
        if name in ("STORE_GLOBAL", "STORE_NAME"):
            raise RefusedError(f"its forward sets the global {instruction.argval}")
        if name in ("LOAD_GLOBAL", "LOAD_NAME"):
            _check_global(instruction.argval, global_names)
        if "_IF_NONE" in name or "_IF_NOT_NONE" in name:
            _check_none_test(instructions[:index], code, stored)
        if name == "IS_OP":
            _check_none_test(instructions[: index - 1], code, stored)
    for name in AMBIENT.intersection(code.co_names):
        raise RefusedError(f"its forward asks for {name}")


def check_closure(function: FunctionType) -> None:
    """Raises RefusedError if a function's closure holds anything but code."""
    for name, cell in zip(function.__code__.co_freevars, function.__closure__ or (), strict=True):
        if not isinstance(cell.cell_contents, ModuleType) and not callable(cell.cell_contents):
            raise RefusedError(f"its forward reads {name} from around its class")


def _check_none_test(before: list[dis.Instruction], code: CodeType, stored: set[str]) -> None:
    """`x is None` may be asked only of attributes of `self` and of unchanged arguments."""
    attributes = 0
    while before[-1 - attributes].opname == "LOAD_ATTR":
        attributes += 1
    operand = before[-1 - attributes]
    arguments = code.co_varnames[: 1 if attributes else code.co_argcount + code.co_kwonlyargcount]
    argument = operand.opname.startswith("LOAD_FAST") and operand.argval in arguments
    if operand.opname != "LOAD_GLOBAL" and not (argument and operand.argval not in stored):
        raise RefusedError("its forward tests whether a computed value is None")


def _names(instruction: dis.Instruction) -> tuple[str, ...]:
    """Returns the local variables. In Python 3.13 and later, one instruction may handle two."""
    return instruction.argval if isinstance(instruction.argval, tuple) else (instruction.argval,)


def _check_global(name: str, global_names: dict[str, Any]) -> None:
    value = global_names.get(name, getattr(builtins, name, None))
    home = value.__name__ if isinstance(value, ModuleType) else getattr(value, "__module__", None) or "torch"
    outside = home.partition(".")[0] in {"numpy", *sys.stdlib_module_names} - PURE_MODULES
    if outside or name in UNTRACEABLE_BUILTINS or not (callable(value) or isinstance(value, ModuleType)):
        raise RefusedError(f"its forward uses the global {name}")

"""Notes what a forward reads of the model while it is traced, as conditions on the traced graph.

A graph depends on the values that Python code saw: `self.training`, `self.downsample is None`,
`self.config.padding`. The rewritten forward compares them on every call.
"""

import enum
import inspect
import keyword
import os
import sys
import sysconfig
import threading
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from functools import cache
from types import FrameType
from typing import Any, NoReturn

import torch
from torch import nn


class RefusedError(Exception):
    """A forward must stay as it is. The text says why."""


# With a separator at the end, because torchvision lies beside torch.
PYTHON = os.path.join(sysconfig.get_path("stdlib"), "")
TORCH = os.path.join(os.path.dirname(torch.__file__), "")
HERE = os.path.join(os.path.dirname(__file__), "")

INTERNAL = frozenset(vars(nn.Module())) - {"training"}
BY_IDENTITY = (torch.dtype, torch.device, torch.layout, torch.memory_format, enum.Enum, type)


def is_users(frame: FrameType) -> bool:
    """Whether the code that runs is the model's own."""
    return is_users_file(frame.f_code.co_filename)


@cache
def is_users_file(name: str) -> bool:
    """Whether the file belongs neither to Python nor to PyTorch nor to this package."""
    if "site-packages" in name or "dist-packages" in name:
        return not name.startswith((TORCH, HERE))
    return not name.startswith((TORCH, HERE, PYTHON, "<frozen"))


def is_of(name: str, *packages: str) -> bool:
    """Whether the module with this dotted name is one of the packages, or lies in one."""
    return any(name == package or name.startswith(f"{package}.") for package in packages)


def expression_of(path: str) -> str:
    """Returns a Python expression for the module at a dotted path below `self`."""
    text = "self"
    for part in filter(None, path.split(".")):
        attribute = part.isidentifier() and not keyword.iskeyword(part)
        text = f"{text}.{part}" if attribute else f"getattr({text}, {part!r})"
    return text


class Guards:
    """The conditions under which a traced graph is what the forward does.

    conditions: Python expressions over `self` and the constants, in the order of the reads.
    constants: the objects in them that are no literals, by name.
    """

    def __init__(self) -> None:
        self.conditions: dict[str, None] = {}
        self.constants: dict[str, Any] = {}

    def note(self, expression: str, value: Any) -> Any:
        """Adds the condition that `expression` is `value`, and returns what the code may see of it."""
        kind = type(value)  # not isinstance, which asks the object
        if value is None or kind is bool:
            self.conditions[f"{expression} is {value}"] = None
        elif _is_literal(value):
            self.conditions[f"{expression} == {value!r}"] = None
        elif issubclass(kind, BY_IDENTITY) or callable(value):
            self.conditions[f"{expression} is {self.constant(value)}"] = None
        elif issubclass(kind, (list, dict, set, torch.Tensor)):
            raise RefusedError(f"its forward reads {expression}, a {kind.__name__}")
        else:
            return View(self, expression, value)
        return value

    def constant(self, value: Any) -> str:
        for name, constant in self.constants.items():
            if constant is value:
                return name
        name = f"_constant_{len(self.constants)}"
        self.constants[name] = value
        return name


def _is_literal(value: Any) -> bool:
    if type(value) is tuple:
        return all(_is_literal(item) for item in value)
    return type(value) in (int, str) or (type(value) is float and abs(value) < float("inf"))


def _presence(expression: str, kind: str, name: str, members: Mapping[str, Any]) -> str:
    """Returns the condition that a child or tensor is None, or is not None, as now."""
    if members[name] is None:
        return f"{expression}.{name} is None"
    if kind == "_modules" and None not in members.values():
        return f"None not in {expression}._modules.values()"  # one quick condition for all children
    return f"{expression}.{name} is not None"


def _is_literal_of_class(kind: type[Any], name: str) -> bool:
    """Whether an attribute is a literal of the class, which an instance may replace."""
    value = inspect.getattr_static(kind, name, ...)
    return value is None or isinstance(value, bool) or _is_literal(value)


class View:
    """Replaces an object of a module, such as a configuration, and notes what is read of it."""

    def __init__(self, guards: Guards, expression: str, value: Any) -> None:
        vars(self).update(_guards=guards, _expression=expression, _value=value)

    def __getattr__(self, name: str) -> Any:
        profiler = sys.getprofile()
        sys.setprofile(None)  # how the object finds the value is not part of the forward
        try:
            value = getattr(self._value, name)
        finally:
            sys.setprofile(profiler)
        if callable(value):
            self._refuse()
        return self._guards.note(f"{self._expression}.{name}", value)

    def _refuse(self, *_: Any, **__: Any) -> NoReturn:
        raise RefusedError(f"its forward uses {self._expression}, a {type(self._value).__name__}")

    __call__ = __iter__ = __len__ = __bool__ = __contains__ = __getitem__ = __setattr__ = __hash__ = _refuse
    __eq__ = __ne__ = __lt__ = __gt__ = __le__ = __ge__ = _refuse


def _in_this_thread(function: Callable[..., Any], elsewhere: Callable[..., Any]) -> Callable[..., Any]:
    own = threading.get_ident()

    def call(*arguments: Any) -> Any:
        return (function if threading.get_ident() == own else elsewhere)(*arguments)

    return call


@contextmanager
def watching(paths: Mapping[nn.Module, str], guards: Guards, training: bool) -> Iterator[None]:
    """Notes what the model's own code reads of modules, and refuses what it writes, in this thread only.

    Args:
        paths: the modules that may be read, with their names.
        guards: takes the notes.
        training: the value of `training` that the code sees, whatever the modules' mode is.
    """

    def expression(module: nn.Module) -> str:
        if module not in paths:
            raise RefusedError(f"its forward reads a {type(module).__name__} from elsewhere in the model")
        return expression_of(paths[module])

    def read(module: nn.Module, name: str) -> Any:
        caller = sys._getframe(2)
        if name == "_modules" and caller.f_globals.get("__name__") == "torch.nn.modules.container":
            children = tuple(object.__getattribute__(module, name))
            guards.conditions[f"tuple({expression(module)}._modules) == {children!r}"] = None
        if not is_users(caller) or name in INTERNAL or name.startswith("__"):
            return object.__getattribute__(module, name)
        state = object.__getattribute__(module, "__dict__")
        for kind in ("_modules", "_parameters", "_buffers"):
            if name in state[kind]:
                guards.conditions[_presence(expression(module), kind, name, state[kind])] = None
        value = object.__getattribute__(module, name)
        if name not in state and not _is_literal_of_class(type(module), name):
            return value
        return guards.note(f"{expression(module)}.{name}", training if name == "training" else value)

    def write(module: nn.Module, name: str, _: Any) -> NoReturn:
        raise RefusedError(f"its forward sets {expression(module)}.{name}")

    original = nn.Module.__setattr__
    nn.Module.__getattribute__ = _in_this_thread(read, object.__getattribute__)  # type: ignore[method-assign]
    nn.Module.__setattr__ = _in_this_thread(write, original)  # type: ignore[method-assign]
    try:
        yield
    finally:
        nn.Module.__setattr__ = original  # type: ignore[method-assign]
        del nn.Module.__getattribute__

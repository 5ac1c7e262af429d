"""Makes subclasses at run time for single modules. Copies and pickles of the modules keep them."""

import copyreg
from collections.abc import Callable
from typing import Any

from torch import nn


class Made:
    """The base of such a class, which has the name of the class that it extends."""

    _made_from: type[nn.Module]
    _made_by: tuple[Callable[..., type[nn.Module]], tuple[Any, ...]]

    def __reduce_ex__(self, protocol: Any) -> Any:
        if not is_made(type(self)):  # a subclass of one, made by other code
            return super().__reduce_ex__(protocol)
        reduced: Any = super().__reduce_ex__(max(int(protocol), 2))
        make, arguments, *rest = reduced
        if make is not copyreg.__newobj__:  # type: ignore[attr-defined]
            raise TypeError(f"a fused {type(self).__name__} with a __reduce__ of its own: unfuse it first")
        return _new, (self._made_by, *arguments[1:]), *rest


def make_class(
    base: type[nn.Module],
    mixin: type[Made],
    by: tuple[Callable[..., type[nn.Module]], tuple[Any, ...]],
    **attributes: Any,
) -> type[nn.Module]:
    """A subclass of `base` with the mixin before it.

    Args:
        by: the function and arguments that make it again where a pickle is loaded.
        attributes: of the class.
    """
    names = {name: getattr(base, name) for name in ("__module__", "__qualname__", "__doc__")}
    return type(base.__name__, (mixin, base), {**names, "_made_from": base, "_made_by": by, **attributes})


def become(module: nn.Module, kind: type[nn.Module]) -> None:
    """Changes only the module's class."""
    module.__class__ = kind


def is_made(kind: type[Any]) -> bool:
    """Whether `make_class` made it."""
    return "_made_from" in vars(kind)


def base_of(module: nn.Module) -> type[nn.Module]:
    """Returns the module's class, or the class that it had before `become`."""
    base: type[nn.Module] = vars(type(module)).get("_made_from", type(module))
    return base


def _new(by: tuple[Callable[..., type[nn.Module]], tuple[Any, ...]], *arguments: Any) -> nn.Module:
    maker, of = by
    made = maker(*of)
    return made.__new__(made, *arguments)

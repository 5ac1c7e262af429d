"""Traces the forward of one module with torch.fx, its children as single calls, or refuses it."""

import inspect
import operator
import sys
import threading
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from itertools import product
from typing import Any

import torch
from torch import Tensor, fx, nn
from torch.fx.proxy import Proxy

from fused_bn.fusion.alias import IN_PLACE_OPERATORS
from fused_bn.fusion.purity import check_closure, only_pure_code
from fused_bn.fusion.runtime import unhooked
from fused_bn.fusion.watch import Guards, RefusedError, is_users, is_users_file, watching

MOST_ITEMS = 64
MODES = {True: "training", False: "evaluation"}


@dataclass(frozen=True)
class Trace:
    """What a forward does in one mode, for one kind of arguments.

    graph: as torch.fx has it; one placeholder for each of `arguments`.
    arguments: their names, each with the Python condition that it must meet.
    guards: what must hold of the model for the graph to hold.
    training: the mode that was assumed.
    asked: whether the forward asked for an argument's type, on which its graph may depend.
    """

    graph: fx.Graph
    arguments: dict[str, str]
    guards: Guards
    training: bool
    asked: bool


def traces_of(
    module: nn.Module, inlined: frozenset[nn.Module] = frozenset()
) -> tuple[list[Trace], dict[str, str]]:
    """Traces the module's forward in each mode, and for each way to call it that may change the graph.

    Args:
        module: the module, which is not changed.
        inlined: modules below it whose calls are traced too. All others are single calls.

    Returns:
        The traces, and for each mode without one the reason: {"training": reason, ...}.
    """
    traces: list[Trace] = []
    refusals: dict[str, str] = {}
    for training, mode in MODES.items():
        try:
            traces.extend(_in_one_mode(module, inlined, training))
        except RefusedError as refusal:
            refusals[mode] = str(refusal)
    return traces, refusals


def parameters_of(kind: type[nn.Module]) -> dict[str, inspect.Parameter]:
    """Returns the parameters of the class's forward, without `self`."""
    parameters = dict(inspect.signature(kind.forward).parameters)
    parameters.pop(next(iter(parameters)))
    return parameters


def _in_one_mode(module: nn.Module, inlined: frozenset[nn.Module], training: bool) -> Iterator[Trace]:
    _check_forward(module)
    required = [name for name, each in parameters_of(type(module)).items() if _is_required(each)]
    optional = [name for name, each in parameters_of(type(module)).items() if each.default is None]
    calls = [required, required + optional] if optional else [required]
    for names, kind in product(calls, (Tensor, list)):
        try:
            trace = _Tracer(module, inlined, names, kind).run(training)
        except RefusedError:
            helpers = _helpers({module, *inlined})
            if not helpers:
                raise
            trace = _Tracer(module, inlined, names, kind, helpers).run(training)
        yield trace
        if not trace.asked:
            break


def _helpers(modules: Iterable[nn.Module]) -> tuple[Callable[..., Any], ...]:
    """Returns the functions that the forwards call by a global name. Their calls may stay single calls."""
    forwards = {type(module).forward for module in modules}
    named = [each.__globals__.get(name) for each in forwards for name in each.__code__.co_names]
    functions = (each for each in named if inspect.isfunction(each))
    return tuple({each for each in functions if is_users_file(each.__code__.co_filename)})


def _is_required(parameter: inspect.Parameter) -> bool:
    variadic = parameter.kind in (inspect.Parameter.VAR_POSITIONAL, inspect.Parameter.VAR_KEYWORD)
    return parameter.default is inspect.Parameter.empty and not variadic


def _check_forward(module: nn.Module) -> None:
    forward = inspect.getattr_static(type(module), "forward")
    if not inspect.isfunction(forward) or forward is nn.Module.forward:
        raise RefusedError("it has no forward in Python")
    if hasattr(forward, "__wrapped__"):
        raise RefusedError("its forward has a decorator")
    if "forward" in vars(module):
        raise RefusedError("its forward was replaced on the instance")
    check_closure(forward)
    if any(each.kind is inspect.Parameter.POSITIONAL_ONLY for each in parameters_of(type(module)).values()):
        raise RefusedError("its forward takes arguments by position only")


class _Tracer(fx.Tracer):
    proxy_buffer_attributes = True  # otherwise operations on buffers would run now, once

    def __init__(
        self,
        module: nn.Module,
        inlined: frozenset[nn.Module],
        names: list[str],
        kind: type[Any],
        helpers: tuple[Callable[..., Any], ...] = (),
    ) -> None:
        super().__init__(autowrap_modules=(), autowrap_functions=helpers)  # type: ignore[arg-type]
        self.module, self.inlined, self.names, self.kind = module, inlined, names, kind
        self.asked = False
        self.guards = Guards()
        self.drawn: dict[fx.Node, list[fx.Node]] = {}
        self.thread = threading.get_ident()

    # torch.fx replaces calls and attributes of all modules, in all threads, while it traces. In other threads
    # these two do what they did before.

    def call_module(
        self, m: nn.Module, forward: Callable[..., Any], args: tuple[Any, ...], kwargs: dict[str, Any]
    ) -> Any:
        if threading.get_ident() != self.thread:
            return forward(*args, **kwargs)
        return super().call_module(m, forward, args, kwargs)

    def getattr(self, attr: str, attr_val: Any, parameter_proxy_cache: dict[str, Any]) -> Any:
        if threading.get_ident() != self.thread:
            return attr_val
        return super().getattr(attr, attr_val, parameter_proxy_cache)

    def run(self, training: bool) -> Trace:
        self.training = training
        self.state = _autograd_state()
        try:
            graph = self.trace(self.module)
        except RefusedError:
            raise
        except Exception as error:  # code may do anything with a tensor without values
            first = str(error).strip().partition("\n")[0]
            raise RefusedError(f"it cannot be traced: {first}") from error
        for node in graph.nodes:
            node.meta.pop("is_wrapped", None)  # otherwise the code would register the function
        for argument, items in self.drawn.items():
            if not items[-1].users:  # `zip` draws one more before it finds the end of the other
                self.graph.erase_node(items.pop())
            self.guards.conditions[f"len({argument.target}) >= {len(items)}"] = None
        kind = f"isinstance({{}}, {self.guards.constant(self.kind)})" if self.asked else "{} is not None"
        given = {name: kind.format(name) for name in self.names}
        return Trace(graph, given, self.guards, training, self.asked)

    def create_args_for_root(
        self, root_fn: Callable[..., Any], *_: Any
    ) -> tuple[Callable[..., Any], list[Any]]:
        """Makes placeholders for the chosen arguments. The others keep their defaults."""
        paths = {each: path for path, each in self.module.named_modules()}
        proxies = [self.create_proxy("placeholder", name, (), {}) for name in self.names]

        def call(root: nn.Module, *given: Proxy) -> Any:
            with only_pure_code(), watching(paths, self.guards, self.training):
                return root_fn(root, **dict(zip(self.names, given, strict=True)))

        return call, [self.root, *proxies]

    def is_leaf_module(self, m: nn.Module, _: str) -> bool:
        if m in self.inlined and not unhooked(m):
            raise RefusedError("a module to look into has hooks")
        if type(m).__call__ is not nn.Module.__call__:
            raise RefusedError(f"{type(m).__name__} has a __call__ of its own")
        return m not in self.inlined

    def create_node(self, *args: Any, **kwargs: Any) -> fx.Node:
        if _autograd_state() != self.state:
            raise RefusedError("its forward switches gradients or autocast")
        return super().create_node(*args, **kwargs)

    def proxy(self, node: fx.Node) -> Proxy:
        return _Value(node, self)

    def iter(self, obj: Proxy) -> Iterator[Proxy]:
        """Yields the items of an argument of unknown length, for `zip` with something that ends."""
        if obj.node.op != "placeholder":
            raise RefusedError("its forward iterates over a computed value")
        for index in range(MOST_ITEMS):
            item = obj[index]  # type: ignore[index]
            self.drawn.setdefault(obj.node, []).append(item.node)
            yield item
        raise RefusedError("its forward iterates over an argument of unknown length")


def _autograd_state() -> tuple[bool, ...]:
    return (
        torch.is_grad_enabled(),
        torch.is_inference_mode_enabled(),
        torch.is_autocast_enabled("cpu"),
        torch.is_autocast_enabled("cuda"),
    )


class _Value(Proxy):
    """A value of the graph that records in-place operators, and has the type of an argument."""

    @property  # type: ignore[misc]
    def __class__(self) -> type[Any]:
        if not is_users(sys._getframe(1)):
            return _Value
        if self.node.op != "placeholder":
            raise RefusedError("its forward asks for the type of a computed value")
        assert isinstance(self.tracer, _Tracer)
        self.tracer.asked = True
        return self.tracer.kind


def _in_place(name: str) -> Callable[[Proxy, Any], Proxy]:
    function = getattr(operator, name)
    return lambda value, other: value.tracer.create_proxy("call_function", function, (value, other), {})


for _name in IN_PLACE_OPERATORS:
    setattr(_Value, f"__{_name}__", _in_place(_name))

"""Finds norm -> [addition] -> [activation] in a traced graph."""

import operator
from dataclasses import dataclass
from typing import Any

import torch
from torch import fx, nn

from fused_bn._activations import FUNCTIONS, of_module
from fused_bn.fusion import activations
from fused_bn.fusion.alias import moving_changes
from fused_bn.fusion.runtime import is_identity, normalises_only, unhooked

ADD_FUNCTIONS: dict[Any, str] = {operator.add: "z + r", torch.add: "z + r", operator.iadd: "z += r"}
ADD_METHODS: dict[Any, str] = {"add": "z + r", "add_": "z += r"}


@dataclass(frozen=True)
class Addition:
    """node: the sum; place: of the residual in its arguments; kind: a key of `runtime.ADDITIONS`."""

    node: fx.Node
    place: int | str
    kind: str

    @property
    def residual(self) -> fx.Node:
        """Read from the call, because another pair may have replaced it since the search."""
        value = self.node.args[self.place] if isinstance(self.place, int) else self.node.kwargs[self.place]
        assert isinstance(value, fx.Node)
        return value


@dataclass(frozen=True)
class Pair:
    """A norm and what follows it.

    norm: the call of the norm.
    addition: of a residual to its result, where there is one.
    activation: the call of the activation, where there is one.
    skipped: calls of nn.Identity in between.
    label: "relu", "add", "add, relu", ...; the module's class where the activation is a module.
    """

    norm: fx.Node
    addition: Addition | None
    activation: fx.Node | None
    skipped: tuple[fx.Node, ...]
    label: str

    @property
    def input(self) -> fx.Node:
        value = self.norm.args[0]
        assert isinstance(value, fx.Node)
        return value

    @property
    def last(self) -> fx.Node:
        node = self.activation or (self.addition and self.addition.node)
        assert node
        return node


def norm_calls(graph: fx.Graph, module: nn.Module) -> list[fx.Node]:
    """Returns the calls of norms without an activation of their own."""
    calls = (node for node in graph.nodes if node.op == "call_module")
    return [node for node in calls if normalises_only(called(node, module))]


def called(node: fx.Node, module: nn.Module) -> nn.Module:
    return module.get_submodule(str(node.target))


def pairs_of(graph: fx.Graph, module: nn.Module) -> tuple[list[Pair], dict[fx.Node, str]]:
    """Returns every pair that one pass may compute, and the reasons for the other norms.

    Of two norms whose results are added, the later is fused, and the earlier is its residual.
    """
    rename_in_place(graph, module)
    pairs: list[Pair] = []
    reasons: dict[fx.Node, str] = {}
    taken: set[fx.Node] = set()
    for norm in reversed(norm_calls(graph, module)):
        found = _pair_from(norm, module, taken)
        if isinstance(found, str):
            reasons[norm] = found
        else:
            pairs.insert(0, found)
            taken.add(found.last)
            if found.addition:
                taken.add(found.addition.node)
    return pairs, reasons


def rename_in_place(graph: fx.Graph, module: nn.Module) -> None:
    """Makes the in-place changes of a norm's result, or of a sum with it, visible in the graph.

    Later readers of the tensor then read what the call returns: `out = norm(x); out.relu_(); return out`
    becomes `out = norm(x).relu_(); return out`.
    """
    tensors = set(norm_calls(graph, module))
    for node in graph.nodes:
        if tensors.isdisjoint(node.all_input_nodes) or not (is_in_place(node) or is_addition(node)):
            continue
        tensors.add(node)
        if is_in_place(node) and node.args and node.args[0] in tensors:
            for later in list(node.args[0].users):
                if node < later:
                    later.replace_input_with(node.args[0], node)


def is_addition(node: fx.Node) -> bool:
    kinds: dict[Any, str] = {"call_function": ADD_FUNCTIONS, "call_method": ADD_METHODS}.get(node.op, {})
    return node.target in kinds


def is_in_place(node: fx.Node) -> bool:
    """Whether a call of PyTorch writes to its first argument and returns it."""
    if node.op == "call_method":
        name = str(node.target)
        return name.endswith("_") and not name.endswith("__")
    named = node.op == "call_function" and node.target in FUNCTIONS
    return node.target in activations.IN_PLACE_FUNCTIONS or (named and node.kwargs.get("inplace") is True)


def _pair_from(norm: fx.Node, module: nn.Module, taken: set[fx.Node]) -> Pair | str:
    """Returns the pair that begins with this call, or the reason that there is none."""
    if not unhooked(called(norm, module)):
        return "it has hooks"
    if len(norm.args) != 1 or norm.kwargs or not isinstance(norm.args[0], fx.Node):
        return "it is not called with one tensor"
    skipped: list[fx.Node] = []
    value, user = _only_user(norm, module, skipped)
    if isinstance(user, str):
        return user
    addition = _addition(value, user)
    if isinstance(addition, str):
        return addition
    if addition:
        if addition.node in taken:
            return "it is the residual of another norm"
        why_not = moving_changes(norm, addition.node, module)
        if why_not:
            return why_not
        behind: list[fx.Node] = []
        value, user = _only_user(addition.node, module, behind)
        if isinstance(user, fx.Node) and _activation(user, value, module) is user:
            skipped += behind
    activation = None if isinstance(user, str) else _activation(user, value, module)
    if isinstance(activation, str) and not addition:
        return activation
    label = _label(user, module) if isinstance(user, fx.Node) and activation is user else ""
    names = [name for name in ("add" if addition else "", label) if name]
    call = activation if isinstance(activation, fx.Node) else None
    return Pair(norm, addition, call, tuple(skipped), ", ".join(names))


def _only_user(node: fx.Node, module: nn.Module, skipped: list[fx.Node]) -> tuple[fx.Node, fx.Node | str]:
    """What alone reads a value, behind any nn.Identity, and the value as read; or why there is none."""
    passed: list[fx.Node] = []
    while True:
        if len(node.users) != 1:
            return (
                node,
                f"its output is used {len(node.users)} times" if node.users else "its output is not used",
            )
        user = next(iter(node.users))
        if user.all_input_nodes.count(node) != 1 or sum(each is node for each in user.args) > 1:
            return node, "its output is used twice"
        if user.op != "call_module" or user.args != (node,) or not is_identity(called(user, module)):
            skipped += passed
            return node, user
        passed.append(user)
        node = user


def _addition(value: fx.Node, user: fx.Node) -> Addition | str | None:
    """The user as an addition to the value; a reason where it is one that is left alone."""
    kinds: dict[Any, str] = {"call_function": ADD_FUNCTIONS, "call_method": ADD_METHODS}.get(user.op, {})
    kind = kinds.get(user.target)
    if kind is None:
        return None
    if user.kwargs.get("alpha", 1) != 1 or len(user.args) > 2:
        return "the addition has an alpha"
    operands: dict[int | str, Any] = dict(enumerate(user.args))
    operands.update(user.kwargs)
    operands.pop("alpha", None)
    if len(operands) != 2 or not set(operands) <= {0, 1, "input", "other"}:
        return "the addition has further arguments"
    if not all(isinstance(each, fx.Node) for each in operands.values()):
        return "a number is added, not a tensor"
    first, second = operands
    if operands[first] is value:
        return Addition(user, second, kind)
    if kind == "z += r":
        return "it is added to another tensor in place"
    return Addition(user, first, "r + z")


def _activation(user: fx.Node, value: fx.Node, module: nn.Module) -> fx.Node | str:
    """Returns the user if it is an activation of the value alone, or the reason that it is not."""
    if user.op == "output":
        return "its output is what the forward returns"
    if user.op == "call_module":
        child = called(user, module)
        if of_module(child) is None:
            return f"{user.target} follows, a {type(child).__name__}"
        if not unhooked(child):
            return f"the activation {user.target} has hooks"
        return (
            user if user.args == (value,) and not user.kwargs else f"{user.target} takes more than one value"
        )
    if activations.of_call(user) is None or user.args[0] is not value:
        return f"{_name_of(user)} follows"
    return user


def _label(activation: fx.Node, module: nn.Module) -> str:
    named = (
        of_module(called(activation, module))
        if activation.op == "call_module"
        else activations.of_call(activation)
    )
    assert named
    return named[0]


def _name_of(node: fx.Node) -> str:
    return node.target if isinstance(node.target, str) else getattr(node.target, "__name__", str(node.target))


def end_of(graph: fx.Graph, module: nn.Module) -> fx.Node | None:
    """Returns the call of a module whose result is all that the forward returns, ignoring nn.Identity."""
    output = next(iter(reversed(graph.nodes)))
    node = output.args[0]
    while isinstance(node, fx.Node) and node.op == "call_module" and len(node.users) == 1:
        if not is_identity(called(node, module)):
            return node
        node = node.args[0] if node.args else None
    return None

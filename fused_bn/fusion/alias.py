"""Whether a norm may be computed at the addition, later than its call, behind what makes the residual."""

import operator

import torch
from torch import fx, nn
from torch.nn import functional as F

from fused_bn.fusion import activations
from fused_bn.fusion.watch import is_of

FRESH_MODULES = (
    *(nn.modules.conv._ConvNd, nn.Linear, nn.Bilinear),
    *(nn.modules.batchnorm._BatchNorm, nn.GroupNorm, nn.LayerNorm),
)
FRESH_FUNCTIONS = {
    *(operator.add, operator.sub, operator.mul, operator.truediv, operator.matmul, operator.neg),
    *(torch.add, torch.sub, torch.mul, torch.matmul, torch.cat, torch.stack),
    *(F.conv1d, F.conv2d, F.conv3d, F.linear),
}
"""These return new memory, never their input's."""

OUTSIDE = "outside"
"""The memory of arguments and of the model, which may overlap."""


def moving_changes(norm: fx.Node, destination: fx.Node, module: nn.Module) -> str | None:
    """Returns why a norm computed at `destination` could give other values, or None.

    Nothing in between may write to the norm's input, or read or update the norm.
    """
    memory: dict[fx.Node, frozenset[object]] = {}
    for node in norm.graph.nodes:
        memory[node] = _memory_of(node, memory, module)
    name = str(norm.target)
    itself = module.get_submodule(name)
    moved = memory[norm.args[0]]  # type: ignore[index]
    node = norm.next
    while node is not destination:
        if node.op == "get_attr" and str(node.target).startswith(f"{name}."):
            return "its parameters or statistics are read before the addition"
        if node.op == "call_module" and itself in set(module.get_submodule(str(node.target)).modules()):
            return "it is called again before the addition"
        if any(memory[each] & moved for each in _written(node, module)):
            return "its input may change before the addition"
        node = node.next
    return None


def _memory_of(
    node: fx.Node, memory: dict[fx.Node, frozenset[object]], module: nn.Module
) -> frozenset[object]:
    """Returns the allocations that a value may lie in."""
    if node.op in ("placeholder", "get_attr"):
        return frozenset({OUTSIDE})
    if node.op == "call_module":
        child = module.get_submodule(str(node.target))
        if isinstance(child, FRESH_MODULES) and is_of(type(child).__module__, "torch.nn", "fused_bn"):
            return frozenset({node})
    if node.op == "call_function" and node.target in FRESH_FUNCTIONS and "out" not in node.kwargs:
        return frozenset({node})
    return frozenset({node}).union(*(memory[each] for each in node.all_input_nodes))


def _written(node: fx.Node, module: nn.Module) -> list[fx.Node]:
    """Returns the arguments that a call may write to."""
    if node.op == "call_module":
        child = module.get_submodule(str(node.target))
        of_torch = all(is_of(type(each).__module__, "torch.nn", "fused_bn") for each in child.modules())
        harmless = of_torch and not any(getattr(each, "inplace", False) for each in child.modules())
        return [] if harmless else node.all_input_nodes
    if node.op == "call_method":
        return node.all_input_nodes if str(node.target).endswith("_") else []
    if node.op == "call_function":
        home = str(getattr(node.target, "__module__", None) or "torch")
        torchs = is_of(home, "torch", "_operator", "builtins")
        name = getattr(node.target, "__name__", "")
        in_place = node.target in activations.IN_PLACE_FUNCTIONS or (
            name.endswith("_") or name in IN_PLACE_NAMES or node.kwargs.get("inplace") or "out" in node.kwargs
        )
        # inplace may be given by position
        by_position = any(argument is True for argument in node.args)
        return node.all_input_nodes if not torchs or in_place or by_position else []
    return []


IN_PLACE_OPERATORS = tuple(
    f"i{name}" for name in ("add", "sub", "mul", "truediv", "floordiv", "mod", "pow", "matmul", "and", "or")
)
IN_PLACE_NAMES = {*IN_PLACE_OPERATORS, "setitem"}

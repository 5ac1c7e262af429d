"""Gives a module a forward that computes its pairs in one pass, by a subclass that is made for it.

That forward runs a traced graph if everything that the trace read is unchanged. Otherwise it runs the forward
of the module's own class.
"""

import importlib
from dataclasses import dataclass
from functools import cache
from inspect import Parameter
from types import ModuleType
from typing import Any

from torch import fx, nn

from fused_bn._tracing import wants_own_forward
from fused_bn.fusion import activations
from fused_bn.fusion.classes import Made, base_of, become, make_class
from fused_bn.fusion.match import Pair, called
from fused_bn.fusion.runtime import norm_act, norm_add_act, unhooked
from fused_bn.fusion.trace import Trace, parameters_of
from fused_bn.fusion.watch import expression_of


@dataclass(frozen=True)
class Variant:
    """A traced forward.

    source: `def forward(self, ...)`, as torch.fx writes it.
    arguments: those it takes, in order.
    condition: a Python expression over `self` and the arguments; the variant holds where it is true.
    modules, constants: the Python modules, by name, and other objects that source and condition use.
    """

    source: str
    arguments: tuple[str, ...]
    condition: str
    modules: tuple[tuple[str, str], ...]
    constants: tuple[tuple[str, Any], ...]


@dataclass(frozen=True)
class Rewriting:
    """variants: tried in order. summary: for the module's repr."""

    variants: tuple[Variant, ...]
    summary: str


Recipe = Rewriting  # the name in pickles of earlier versions


class Rewritten(Made):
    """The base of classes with a rewritten forward."""

    _summary: str

    def extra_repr(self) -> str:
        text = super().extra_repr()  # type: ignore[misc]
        return f"{text}, fused: {self._summary}" if text else f"fused: {self._summary}"


def rewrite(module: nn.Module, variants: tuple[Variant, ...], summary: str) -> None:
    """Makes the module run the first variant that holds, or else its own forward."""
    become(module, rewritten_class(type(module), Rewriting(variants, summary)))  # type: ignore[arg-type]


def variant_of(trace: Trace, pairs: list[Pair], module: nn.Module, inlined: frozenset[nn.Module]) -> Variant:
    """Returns the trace with its pairs in one pass. Changes the trace's graph."""
    guards = dict(trace.guards.conditions)
    for each, path in _looked_into(pairs, module, inlined):
        kind = trace.guards.constant(type(each))
        guards[f"is_plain({expression_of(path)}, {kind})"] = None
    for pair in pairs:
        _replace(trace.graph, pair)
    for node in trace.graph.nodes:
        node.type = None
    code = trace.graph.python_code("self")
    values = {name: value for name, value in code.globals.items() if name not in BUILTINS}
    modules = {name: value.__name__ for name, value in values.items() if isinstance(value, ModuleType)}
    constants = {name: value for name, value in values.items() if name not in modules}
    constants.update(trace.guards.constants, is_plain=is_plain)
    left_out = _left_out(trace, parameters_of(type(module)))
    condition = " and ".join([*trace.arguments.values(), *left_out, *guards]) or "True"
    return Variant(
        code.src.strip(),
        tuple(trace.arguments),
        condition,
        tuple(modules.items()),
        tuple(constants.items()),
    )


BUILTINS = fx.Graph().python_code("self").globals
"""The names that torch.fx gives every graph."""


def is_plain(module: nn.Module, kind: type[nn.Module]) -> bool:
    """Whether a call of the module still does what the trace recorded."""
    return base_of(module) is kind and unhooked(module)


@cache
def rewritten_class(base: type[nn.Module], rewriting: Rewriting) -> type[nn.Module]:
    """The subclass of `base` with the new forward; modules with the same rewriting share it."""
    by = (rewritten_class, (base, rewriting))
    return make_class(base, Rewritten, by, _summary=rewriting.summary, forward=_forward(base, rewriting))


def _forward(base: type[nn.Module], rewriting: Rewriting) -> Any:
    """Compiles the forward that chooses a variant. It has the signature of the base's forward."""
    parameters = parameters_of(base)
    defaults = {f"_default_{name}": each.default for name, each in parameters.items()}
    scope: dict[str, Any] = {**defaults, "_base_forward": base.forward, "_recorded": wants_own_forward}
    given = ", ".join(["self", *parameters])
    base_call = f"_base_forward({', '.join(['self', *_passed(parameters)])})"
    lines = [
        f"def forward({', '.join(['self', *_declared(parameters)])}):",
        f"    if _recorded({', '.join(parameters)}):",
        f"        return {base_call}",
    ]
    for index, variant in enumerate(rewriting.variants):
        own: dict[str, Any] = {**BUILTINS, **defaults, **dict(variant.constants)}
        own.update({name: importlib.import_module(path) for name, path in variant.modules})
        _define(variant.source, own)
        _define(HOLDS.format(given=given, condition=variant.condition), own)
        scope[f"_holds_{index}"], scope[f"_variant_{index}"] = own["holds"], own["forward"]
        lines.append(f"    if _holds_{index}({given}):")
        lines.append(f"        return _variant_{index}({', '.join(['self', *variant.arguments])})")
    lines.append(f"    return {base_call}")
    _define("\n".join(lines), scope)
    forward = scope["forward"]
    forward.__qualname__, forward.__module__ = base.forward.__qualname__, base.forward.__module__
    forward.__doc__, forward.__annotations__ = base.forward.__doc__, dict(base.forward.__annotations__)
    return forward


HOLDS = """
def holds({given}):
    try:
        return {condition}
    except (AttributeError, LookupError, TypeError):  # what was read is no longer there
        return False
"""


def _define(source: str, scope: dict[str, Any]) -> None:
    exec(compile(source, "<fused_bn.fuse>", "exec"), scope)


STARS: dict[object, str] = {Parameter.VAR_POSITIONAL: "*", Parameter.VAR_KEYWORD: "**"}


def _declared(parameters: dict[str, Parameter]) -> list[str]:
    """Returns the parameters as the `def` of the base's forward lists them."""
    texts: list[str] = []
    for name, each in parameters.items():
        if each.kind is Parameter.KEYWORD_ONLY and not any(text.startswith("*") for text in texts):
            texts.append("*")
        default = "" if each.default is Parameter.empty else f"=_default_{name}"
        texts.append(f"{STARS.get(each.kind, '')}{name}{default}")
    return texts


def _passed(parameters: dict[str, Parameter]) -> list[str]:
    """Returns the arguments of a call of the base's forward."""
    keyword_only = {name for name, each in parameters.items() if each.kind is Parameter.KEYWORD_ONLY}
    return [
        f"{name}={name}" if name in keyword_only else f"{STARS.get(each.kind, '')}{name}"
        for name, each in parameters.items()
    ]


def _left_out(trace: Trace, parameters: dict[str, Parameter]) -> list[str]:
    """Returns conditions: arguments that the trace does not take were not given."""
    return [
        f"not {name}" if each.kind in STARS else f"{name} is _default_{name}"
        for name, each in parameters.items()
        if name not in trace.arguments
    ]


def _looked_into(
    pairs: list[Pair], module: nn.Module, inlined: frozenset[nn.Module]
) -> list[tuple[nn.Module, str]]:
    """Returns the modules whose calls the rewritten graph does not show, with their names."""
    skipped = {called(node, module) for pair in pairs for node in pair.skipped}
    return [(each, path) for path, each in module.named_modules() if each in skipped | inlined]


def _replace(graph: fx.Graph, pair: Pair) -> None:
    """Replaces the pair by one call, at the addition, or at the norm if there is none."""
    with graph.inserting_before(pair.addition.node if pair.addition else pair.norm):
        arguments: list[Any] = [graph.get_attr(str(pair.norm.target)), pair.input]
        if pair.addition:
            arguments += [pair.addition.residual, pair.addition.kind]
        if pair.activation is None:
            arguments.append("none")
        elif pair.activation.op == "call_module":
            arguments.append(graph.get_attr(str(pair.activation.target)))
        else:
            named = activations.of_call(pair.activation)
            assert named
            arguments += [each for each in named if each is not None]
        call = graph.call_function(norm_add_act if pair.addition else norm_act, tuple(arguments))
    pair.last.replace_all_uses_with(call)
    parts = {pair.norm, *pair.skipped, pair.addition and pair.addition.node, pair.activation}
    for node in reversed(graph.nodes):
        if node in parts:
            graph.erase_node(node)

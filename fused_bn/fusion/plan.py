"""Decides which pairs of each module's forward one pass computes. Changes nothing."""

from dataclasses import dataclass, field

from torch import fx, nn

from fused_bn._activations import of_module
from fused_bn.fusion import activations
from fused_bn.fusion.match import called, end_of, is_addition, pairs_of
from fused_bn.fusion.norms import is_norm
from fused_bn.fusion.rewrite import Variant, variant_of
from fused_bn.fusion.runtime import is_identity, normalises_only
from fused_bn.fusion.trace import MODES, Trace, traces_of
from fused_bn.fusion.watch import is_of

Inlined = frozenset[nn.Module]


@dataclass
class Findings:
    """What is known of one norm.

    fused: by mode, what follows each of its calls that is fused.
    reasons: why other calls are not fused.
    """

    fused: dict[str, tuple[str, ...]] = field(default_factory=dict)
    reasons: list[str] = field(default_factory=list)


@dataclass
class Plan:
    """For a whole model.

    variants: by module, the traced forwards with pairs in one pass, and their labels.
    findings: by norm.
    refusals: by module, why its forward stays as it is.
    """

    variants: dict[nn.Module, tuple[tuple[Variant, ...], str]] = field(default_factory=dict)
    findings: dict[nn.Module, Findings] = field(default_factory=dict)
    refusals: dict[nn.Module, dict[str, str]] = field(default_factory=dict)


def plan_of(model: nn.Module) -> Plan:
    """Looks at each module that has norms below it, inner modules first."""
    plan = Plan()
    tails: dict[nn.Module, Inlined] = {}
    for block in reversed(list(model.modules())):
        if not is_norm(block) and any(is_norm(each) for each in block.modules()):
            _look_at(block, plan, tails)
    return plan


def _look_at(block: nn.Module, plan: Plan, tails: dict[nn.Module, Inlined]) -> None:
    """Adds what is found in the forward of one module.

    tails: for each module whose result is a norm's, the modules to inline to find that norm. Gets an entry.
    """
    traces, refusals = traces_of(block)
    if refusals:
        plan.refusals[block] = refusals
    tails[block] = _tail_of(block, traces, tails)
    inlined: Inlined = frozenset().union(*(_worth_a_look(trace.graph, block, tails) for trace in traces))
    deeper, refused = traces_of(block, inlined) if inlined else (traces, refusals)
    traces, inlined = (deeper, inlined) if refused == refusals else (traces, frozenset())
    variants: dict[Variant, None] = {}
    labels: dict[str, None] = {}
    for trace in traces:
        pairs, reasons = pairs_of(trace.graph, block)
        found: dict[nn.Module, tuple[str, ...]] = {}
        for pair in pairs:
            norm = called(pair.norm, block)
            found[norm] = (*found.get(norm, ()), pair.label)
            labels[f"{pair.norm.target}+{pair.label.replace(', ', '+')}"] = None
        for norm, names in found.items():
            plan.findings.setdefault(norm, Findings()).fused[MODES[trace.training]] = names
        for node, reason in reasons.items():
            plan.findings.setdefault(called(node, block), Findings()).reasons.append(reason)
        if pairs:
            variants[variant_of(trace, pairs, block, inlined)] = None
    if variants:
        plan.variants[block] = tuple(variants), ", ".join(labels)


def _tail_of(block: nn.Module, traces: list[Trace], tails: dict[nn.Module, Inlined]) -> Inlined:
    """Returns the modules to inline for the norm whose result the forward returns; none if modes differ."""
    found: set[Inlined] = set()
    for trace in traces:
        end = end_of(trace.graph, block)
        if end is None:
            found.add(frozenset())
        elif normalises_only(called(end, block)):
            found.add(frozenset({block}))
        else:
            below = tails.get(called(end, block))
            found.add(below | {block} if below else frozenset())
    return found.pop() if len(found) == 1 else frozenset()


def _worth_a_look(graph: fx.Graph, block: nn.Module, tails: dict[nn.Module, Inlined]) -> Inlined:
    """Returns the modules whose calls hide half of a pair: a norm at the end, or an activation."""
    inlined: set[nn.Module] = set()
    results = {
        node for node in graph.nodes if node.op == "call_module" and normalises_only(called(node, block))
    }
    for node in graph.nodes:
        child = called(node, block) if node.op == "call_module" else None
        given = {_behind_identities(each, block) for each in node.all_input_nodes}
        tails_given = {each for each in given if each.op == "call_module" and tails.get(called(each, block))}
        if child is not None and given & results and _is_function_in_a_module(child):
            inlined.add(child)
        if is_addition(node) or activations.of_call(node) or of_module(child):
            for each in tails_given:
                inlined |= tails[called(each, block)]
            if given & results or tails_given:
                results.add(node)
    return frozenset(inlined)


def _behind_identities(node: fx.Node, block: nn.Module) -> fx.Node:
    while node.op == "call_module" and is_identity(called(node, block)) and len(node.all_input_nodes) == 1:
        node = node.all_input_nodes[0]
    return node


def _is_function_in_a_module(child: nn.Module) -> bool:
    """Whether a module outside PyTorch has no state, like transformers' GELUActivation."""
    own = not is_of(type(child).__module__, "torch", "fused_bn")
    return own and next(child.children(), None) is None and not child.state_dict()

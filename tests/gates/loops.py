"""Loops in a kernel's code, and the instructions that a thread executes in them."""

import re
from collections.abc import Callable, Collection, Iterator
from typing import NamedTuple

from tests.gates.reports import Code

# A branch with a condition or a predicate may not be taken. Excludes branches of diverged warps (BRA.DIV)
# and calls of subroutines, whose labels contain $. ptxas also leaves loops by calls.
BRANCH = re.compile(r"\b(?:BRA(?!\.DIV)[\w.]*|CALL\.REL\.NOINC)\s+(.*?)`\((\.L\w+)\)")
END = re.compile(r"EXIT|RET|BRX")

Moved = tuple[int, int]  # loads and stores of 16 bytes


class Way(NamedTuple):
    """A path from an instruction to the end."""

    length: int
    instruction: str
    rest: "Way | None"


def successors(code: Code, at: int) -> list[int]:
    instruction = code.instructions[at]
    branch = BRANCH.search(instruction)
    if branch is None:
        return [] if END.match(instruction) else [at + 1]
    passes = [at + 1] if branch[1] or instruction.startswith("@") else []
    return [code.labels[branch[2]], *passes]


def loops(code: Code) -> Iterator[tuple[int, int]]:
    """The first and last instruction of each loop."""
    for last in range(len(code.instructions)):
        yield from ((first, last) for first in successors(code, last) if first < last)


def straight_loops(code: Code) -> Iterator[list[str]]:
    """The bodies of the loops without a branch."""
    for first, last in loops(code):
        body = code.instructions[first : last + 1]
        if not any(re.search(r"\b(?:BRA|CALL|EXIT)\b", each) for each in body[:-1]):
            yield body


def wide(instruction: str, name: str) -> bool:
    """Whether this accesses 16 bytes of elements. Excludes an exchange's words, and accesses with a
    predicate, which belong to chunks that are not full.
    """
    return re.match(rf"{name}\b(?!.*\.STRONG).*\.128\b", instruction) is not None


def way_through(
    code: Code, first: int, ends: Collection[int], moved: Moved, better: Callable[[int, int], int] = max
) -> list[str]:
    """The longest (or with min, shortest) forward path from first to one of the ends that has these numbers
    of loads and stores; empty if there is none.
    """
    ways: dict[int, dict[Moved, Way]] = {}
    for at in range(max(ends), first - 1, -1):
        instruction = code.instructions[at]
        loads, stores = wide(instruction, "LDG"), wide(instruction, "STG")
        found = ways[at] = {}
        if at in ends:
            found[loads, stores] = Way(1, instruction, None)
        for rest in (ways[each] for each in successors(code, at) if at < each and each in ways):
            for (later_loads, later_stores), way in rest.items():
                key = loads + later_loads, stores + later_stores
                length = way.length + 1
                if key[0] > moved[0] or key[1] > moved[1]:
                    continue
                if key not in found or better(length, found[key].length) != found[key].length:
                    found[key] = Way(length, instruction, way)
    step = ways[first].get(moved)
    steps = []
    while step is not None:
        steps.append(step.instruction)
        step = step.rest
    return steps


def in_flight(way: list[str]) -> int:
    """The most 16-byte loads that are issued before the result of one is used."""
    most, count = 0, 0
    loaded: set[int] = set()
    for instruction in way:
        used = [int(each) for each in re.findall(r"\bR(\d+)", instruction)]
        if not loaded.isdisjoint(used):
            loaded, count = set(), 0
        if wide(instruction, "LDG"):
            loaded.update(range(used[0], used[0] + 4))
            count += 1
            most = max(most, count)
    return most

"""Reads what ptxas reports of each kernel (-Xptxas -v), and the instructions that nvdisasm lists."""

import re
from collections import Counter
from collections.abc import Iterable, Mapping
from typing import NamedTuple

from tests.cuda.kernels import Kernel, kernel_of


class Usage(NamedTuple):
    """What one kernel takes: registers of a thread, and bytes."""

    registers: int
    barriers: int
    stack: int
    spill_stores: int
    spill_loads: int
    static_shared: int


# How often each instruction stands in a kernel, by its full name: "LDG.E.64", "BAR.SYNC".
Instructions = Mapping[str, int]


def number_before(text: str, unit: str) -> int | None:
    found = re.search(rf"(\d+) {unit}", text)
    return None if found is None else int(found[1])


def read_usage(report: str) -> dict[Kernel, Usage]:
    """The report of one compilation. ValueError where it lacks a number that it must hold."""
    _, *parts = re.split(r"Compiling entry function '(\w+)'", report)
    found: dict[Kernel, Usage] = {}
    for entry, text in zip(parts[::2], parts[1::2], strict=True):
        registers = number_before(text, "registers")
        stack = number_before(text, "bytes stack frame")
        stores = number_before(text, "bytes spill stores")
        loads = number_before(text, "bytes spill loads")
        if registers is None or stack is None or stores is None or loads is None:
            raise ValueError(f"ptxas reports too little of {entry}:{text}")
        barriers = number_before(text, "barriers") or 0
        found[kernel_of(entry)] = Usage(
            registers, barriers, stack, stores, loads, number_before(text, "bytes smem") or 0
        )
    return found


SECTION = re.compile(r"\s*\.section\s+\.text\.(\w+)")
INSTRUCTION = re.compile(r"\s*/\*[0-9a-f]{4,}\*/\s+(?:@!?U?P[T\d]+\s+)?([A-Z][A-Z0-9_.]*)")


def read_instructions(listing: Iterable[str]) -> dict[Kernel, Counter[str]]:
    """The lines of `nvdisasm -c`. What a kernel calls stands in its own section, and counts as its own."""
    found: dict[Kernel, Counter[str]] = {}
    current: Counter[str] | None = None
    for line in listing:
        if section := SECTION.match(line):
            current = found.setdefault(kernel_of(section[1]), Counter())
        elif instruction := INSTRUCTION.match(line):
            if current is None:
                raise ValueError(f"an instruction outside of any kernel: {line}")
            current[instruction[1]] += 1
    return found


def bits_of(instruction: str) -> int:
    """That one thread loads or stores with it."""
    for modifier in instruction.split(".")[1:]:
        if found := re.fullmatch(r"[US]?(8|16|64|128|256)", modifier):
            return int(found[1])
    return 32


def count_by_bits(instructions: Instructions, *operations: str) -> Counter[int]:
    """How many loads or stores of each width are among these operations ("LDG")."""
    found: Counter[int] = Counter()
    for instruction, count in instructions.items():
        if instruction.split(".")[0] in operations:
            found[bits_of(instruction)] += count
    return found

"""Reads what ptxas reports of each kernel (-Xptxas -v), and the code that nvdisasm lists."""

import re
from collections import Counter
from collections.abc import Iterable
from typing import NamedTuple

from tests.cuda.kernels import Kernel, kernel_of


class Usage(NamedTuple):
    """What one kernel takes: registers of a thread, and bytes."""

    registers: int
    stack: int
    spill_stores: int
    spill_loads: int
    static_shared: int


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
        found[kernel_of(entry)] = Usage(
            registers, stack, stores, loads, number_before(text, "bytes smem") or 0
        )
    return found


class Code(NamedTuple):
    """A kernel's instructions, and before which of them each label stands."""

    instructions: list[str]  # "@!P0 LDG.E.128 R4, desc[UR6][R2.64]"
    labels: dict[str, int]

    def counts(self) -> Counter[str]:
        return Counter(map(operation, self.instructions))


def operation(instruction: str) -> str:
    """Its full name: "LDG.E.128"."""
    return re.sub(r"^@\S+\s+", "", instruction).split(maxsplit=1)[0]


SECTION = re.compile(r"\s*\.section\s+\.text\.(\w+)")
LABEL = re.compile(r"(\.L\w+):")
INSTRUCTION = re.compile(r"\s*/\*[0-9a-f]{4,}\*/\s+(.*?)\s*(?:\(\*.*\*\))?\s*;")  # with a remark (*"..."*)


def read_code(listing: Iterable[str]) -> dict[Kernel, Code]:
    """The lines of `nvdisasm -c`. What a kernel calls stands in its own section, and counts as its own."""
    found: dict[Kernel, Code] = {}
    current: Code | None = None
    for line in listing:
        if section := SECTION.match(line):
            current = found.setdefault(kernel_of(section[1]), Code([], {}))
        elif instruction := INSTRUCTION.match(line):
            if current is None:
                raise ValueError(f"an instruction outside of any kernel: {line}")
            current.instructions.append(instruction[1])
        elif current is not None and (label := LABEL.match(line)):
            current.labels[label[1]] = len(current.instructions)
    return found

"""Parses the reports of ptxas (-Xptxas -v) and the output of nvdisasm."""

import re
from collections import Counter
from collections.abc import Iterable
from typing import NamedTuple

from tests.gates.kernels import Kernel, kernel_of


class Usage(NamedTuple):
    """The resources of a kernel: registers per thread, and bytes."""

    registers: int
    stack: int
    spill_stores: int
    spill_loads: int
    static_shared: int


def number_before(text: str, unit: str) -> int | None:
    found = re.search(rf"(\d+) {unit}", text)
    return None if found is None else int(found[1])


def read_usage(report: str) -> dict[Kernel, Usage]:
    """Parses the report of one compilation. Raises ValueError if a number is missing."""
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
    """A kernel's instructions, and the position of each label."""

    instructions: list[str]  # "@!P0 LDG.E.128 R4, desc[UR6][R2.64]"
    labels: dict[str, int]

    def counts(self) -> Counter[str]:
        return Counter(map(operation, self.instructions))


def operation(instruction: str) -> str:
    """The instruction's full name: "LDG.E.128"."""
    return re.sub(r"^@\S+\s+", "", instruction).split(maxsplit=1)[0]


SECTION = re.compile(r"\s*\.section\s+\.text\.(\w+)")
LABEL = re.compile(r"(\.L\w+):")
INSTRUCTION = re.compile(r"\s*/\*[0-9a-f]{4,}\*/\s+(.*?)\s*(?:\(\*.*\*\))?\s*;")  # with a remark (*"..."*)


def read_code(listing: Iterable[str]) -> dict[Kernel, Code]:
    """Parses the lines of `nvdisasm -c`. A kernel's section also contains the functions that it calls."""
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

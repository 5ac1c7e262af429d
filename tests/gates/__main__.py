"""Prints what the kernels for an architecture take: `python -m tests.gates 90`."""

import sys

from tests.gates import compile as build
from tests.gates.gates import blocks_by_registers
from tests.gates.hot import AHEAD, least_in_flight, phases, whole_way
from tests.gates.kernels import Kernel
from tests.gates.reports import Code


def counts_of(kernel: Kernel, code: Code) -> str:
    """Instructions per element of each hot loop. Empty if the loops have inner loops."""
    if kernel.vector == 1 or kernel.kind == "other":
        return ""
    found = {name: phase.per_element() for name, phase in phases(kernel, code).items()}
    text = " + ".join(f"{name} {count:.2f}" for name, count in found.items())
    text += f" = {sum(found.values()):.2f}"
    if kernel.name in AHEAD:
        text += f", {least_in_flight(kernel, code)} in flight"
    if kernel.name == "apply_forward":
        text += f", {len(whole_way(kernel, code))} in all"
    return text


def main(architecture: int) -> None:
    codes = dict(build.codes(architecture))
    usages = dict(build.usages(architecture))
    print(f"{'sm_' + str(architecture):38} registers  blocks  code  instructions an element")
    for kernel, usage in sorted(usages.items()):
        blocks = blocks_by_registers(usage.registers)
        code = codes[kernel]
        counts = counts_of(kernel, code)
        print(f"{kernel!s:38} {usage.registers:9} {blocks:7} {len(code.instructions):5}  {counts}".rstrip())
    print(f"{len(usages)} kernels")


if __name__ == "__main__":
    main(int(sys.argv[1]) if len(sys.argv) > 1 else 90)

"""What compiled kernels must be like. Each gate returns one line for each fault that it finds."""

import re
from collections import Counter
from collections.abc import Callable, Iterable
from typing import NamedTuple

from tests.gates.hot import AHEAD, is_apply, least_in_flight, phases, tensors_of, whole_way
from tests.gates.kernels import EXPECTED, Kernel
from tests.gates.reports import Code, Usage, operation

REGISTERS = 65536  # of a multiprocessor, from sm_75 to sm_120; a warp gets them by 8 for each thread
MOST_REGISTERS = 255  # of a thread
THREADS, MERGE_THREADS = 256, 512  # kThreads and kMergeThreads in csrc/cuda/params.h


def faults_of_presence(found: Iterable[Kernel]) -> list[str]:
    """Exactly the combinations of template arguments that can be launched are compiled."""
    counts = Counter(found)
    missing = [f"missing: {kernel}" for kernel in sorted(EXPECTED - set(counts))]
    extra = [f"not in dispatch.h: {kernel}" for kernel in sorted(set(counts) - EXPECTED)]
    return missing + extra + [f"twice: {kernel}" for kernel, count in counts.items() if count > 1]


# ---- registers and memory per block


def blocks_by_registers(registers: int) -> int:
    """Blocks that fit a multiprocessor."""
    return REGISTERS // (THREADS * 8 * -(-registers // 8))


def most_registers(kernel: Kernel, architecture: int) -> int:
    if kernel.name == "merge":
        return REGISTERS // MERGE_THREADS
    # Must match blocks_by_registers() in csrc/cuda/params.h.
    if is_resident(kernel):
        backward = kernel.name.endswith("backward")
        fewer = (backward and (kernel.mixed or architecture >= 100)) or architecture >= 120
        blocks = (3 if fewer else 4) - (kernel.kind == "other")
    else:
        blocks = 1 if kernel.kind == "other" else 2 if kernel.mixed else 3
    return min(REGISTERS // (THREADS * blocks) // 8 * 8, MOST_REGISTERS)


def faults_of_usage(kernel: Kernel, architecture: int, usage: Usage) -> list[str]:
    """Nothing spills, and the registers suffice for all blocks of a multiprocessor."""
    sizes = {
        "stack frame": usage.stack,
        "spill stores": usage.spill_stores,
        "spill loads": usage.spill_loads,
        "static shared memory": usage.static_shared,  # the planner counts dynamic shared memory only
    }
    faults = [f"{kernel}: {size} bytes of {what}" for what, size in sizes.items() if size != 0]
    most = most_registers(kernel, architecture)
    if usage.registers > most:
        faults.append(f"{kernel}: {usage.registers} registers, of at most {most}")
    return faults


# ---- instructions that the design relies on


def is_resident(kernel: Kernel) -> bool:
    return kernel.name.startswith("resident")


def is_relu(kernel: Kernel, *elements: str) -> bool:
    """Whether the kernel is compiled for the results of forward with ReLU."""
    writes = kernel.name in ("resident_forward", "apply_forward")
    return writes and kernel.kind == "relu" and kernel.element in elements


class Instruction(NamedTuple):
    name: str  # a pattern of the whole name
    since: int  # the first architecture with it
    kernels: Callable[[Kernel], bool]  # those with it; all others must not have it


INSTRUCTIONS = {
    "access to local memory": Instruction(r"(LDL|STL)\b.*", 75, lambda _: False),
    "asynchronous copy of 16 bytes": Instruction(r"LDGSTS\b.*\.128\b.*", 80, is_resident),
    "asynchronous copy of less": Instruction(r"LDGSTS\b(?!.*\.128\b).*", 80, lambda _: False),
    "arrival at a cluster's barrier": Instruction("UCGABAR_ARV", 90, is_resident),
    "wait at a cluster's barrier": Instruction("UCGABAR_WAIT", 90, is_resident),
    "push to another block": Instruction(r"STAS\.128", 90, is_resident),
    "barrier that counts bytes": Instruction(r"SYNCS\b.*", 90, is_resident),
    "store of a word, 16 bytes at once": Instruction(r"STG\b.*\.128\.STRONG\.GPU", 75, is_resident),
    "start of a dependent kernel": Instruction("PREEXIT", 90, lambda k: k.name.startswith("reduce")),
    "wait for the kernel before": Instruction("ACQBULK", 90, is_apply),
    "ReLU by the rounding to a half type": Instruction(
        r"F2FP\b.*\.RELU\b.*", 80, lambda k: is_relu(k, "bf16", "f16")
    ),
}


def faults_of_instructions(kernel: Kernel, architecture: int, code: Code) -> list[str]:
    counts = code.counts()
    faults = []
    for what, instruction in INSTRUCTIONS.items():
        expected = architecture >= instruction.since and instruction.kernels(kernel)
        count = sum(n for name, n in counts.items() if re.fullmatch(instruction.name, name))
        if expected != (count > 0):
            faults.append(f"{kernel}: {what}: {count}, {'but it needs one' if expected else 'of none'}")
    return faults


# ---- vectors in flight


def faults_of_flight(kernel: Kernel, code: Code) -> list[str]:
    """A thread of the streamed kernels loads all vectors of a chunk before it uses the first."""
    if kernel.name not in AHEAD or kernel.vector == 1:
        return []
    needed, found = AHEAD[kernel.name] * tensors_of(kernel), least_in_flight(kernel, code)
    return [f"{kernel}: {found} vectors in flight, of {needed}"] if found < needed else []


# ---- instructions per element

# 15% more than the prototypes, which were timed on an H200 and are counted in the same way. In addition:
# - Forward of half types subtracts the mean. The prototypes had it in the shift, which loses all digits if
#   the mean is much larger than the deviation.
# - Backward multiplies by the scale. The prototypes had it in the slope, which is 0 for values near 1e30.
CENTRED, SCALED = 1.0, 1.0
MOST_AN_ELEMENT = {
    "resident_forward f32": 1.15 * 9.5,
    "resident_forward f32 mixed": 1.15 * 10,
    "resident_forward half": 1.15 * 8.5 + CENTRED,
    # 1.15 * 6.7 + CENTRED is 8.71. The prototype has a copy of its code for each number of vectors, so that
    # an address takes one instruction; in a loop it takes two, when loading and when storing.
    "resident_forward half mixed": 8.85,
    "resident_backward f32": 1.15 * 17.7 + SCALED,
    "resident_backward f32 mixed": 1.15 * 17.7 + SCALED,  # has no prototype
    "resident_backward half": 1.15 * 19.5 + SCALED,
    "resident_backward half mixed": 1.15 * 15 + SCALED,
    "reduce_forward half mixed": 1.15 * 6,
    "apply_forward half mixed": 1.15 * 4.7 + CENTRED,
    "reduce_backward half mixed": 1.15 * 12,
    "apply_backward half mixed": 1.15 * 11 + SCALED,
    # These have no prototypes: as they are, rounded up. Vectors of four elements share an address and the
    # test for the tensor's end among fewer; a row's number takes four instructions a vector.
    "reduce_forward f32": 7.5,
    "reduce_forward f32 mixed": 7.25,
    "reduce_forward half": 6.5,
    "apply_forward f32": 11.25,
    "apply_forward f32 mixed": 8.25,
    "apply_forward half": 7.75,
    "reduce_backward f32": 13.0,
    "reduce_backward f32 mixed": 11.5,
    "reduce_backward half": 11.75,
    "apply_backward f32": 16.5,
    "apply_backward f32 mixed": 13.5,
    "apply_backward half": 14.25,
}
MOST_OF_EVALUATION = {"apply_forward f32": int(1.15 * 275)}  # of a thread with four vectors, in all


def kind_of(kernel: Kernel) -> str:
    element = "f32" if kernel.element == "f32" else "half"
    return f"{kernel.name} {element}{' mixed' if kernel.mixed else ''}"


def faults_of_counts(kernel: Kernel, code: Code) -> list[str]:
    """Instructions per element on the plain path of ReLU and of evaluation, for whole vectors."""
    if kernel.vector == 1 or kernel.kind not in ("relu", ""):
        return []
    found, kind, faults = phases(kernel, code), kind_of(kernel), []
    names = ("load", "sum", "apply") if is_resident(kernel) else (kernel.name.split("_")[0],)
    faults += [f"no loop is found that could be its {name}" for name in names if name not in found]
    for name, phase in found.items():
        accesses = {each for each in map(operation, phase.instructions) if re.match(r"(LDG|STG)\b", each)}
        faults += [f"{each} in the {name} loop" for each in sorted(accesses) if "128" not in each.split(".")]
    total = sum(phase.per_element() for phase in found.values())
    if total > MOST_AN_ELEMENT[kind]:
        faults.append(f"{total:.2f} instructions an element, of at most {MOST_AN_ELEMENT[kind]:.2f}")
    evaluation = len(whole_way(kernel, code)) if kind in MOST_OF_EVALUATION else 0
    if evaluation > MOST_OF_EVALUATION.get(kind, 0):
        faults.append(f"{evaluation} instructions of an evaluation, of at most {MOST_OF_EVALUATION[kind]}")
    return [f"{kernel}: {fault}" for fault in faults]

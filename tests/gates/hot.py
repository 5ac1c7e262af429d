"""The loops over elements, on their plain path: without a mask, a residual or scaled sums.

Instructions an element are those of a loop's body over the elements that it handles; in backward, for one
element of x and of dy together. So they lack what a block pays once.
"""

from typing import NamedTuple

from tests.gates.kernels import Kernel
from tests.gates.loops import Moved, in_flight, loops, straight_loops, way_through, wide
from tests.gates.reports import Code, operation

# As in csrc/cuda/kernels: vectors of a tensor that a thread of the streamed kernels loads before it uses one
# (kSumAhead, kApplyAhead), and that a thread of the resident kernel copies in an iteration of its loop.
AHEAD = {"reduce_forward": 8, "reduce_backward": 4, "apply_forward": 4, "apply_backward": 4}
COPIED = 8
SMALLER = "8.27180612553"  # kSmaller = 2^-80, of sums that overflow


class Phase(NamedTuple):
    instructions: list[str]
    elements: int

    def per_element(self) -> float:
        return len(self.instructions) / self.elements


def tensors_of(kernel: Kernel) -> int:
    return 1 if kernel.name.endswith("forward") else 2


def is_apply(kernel: Kernel) -> bool:
    return kernel.name.startswith("apply")


def moved_of(kernel: Kernel) -> Moved:
    """Vectors that a streamed kernel loads for one chunk."""
    vectors = AHEAD[kernel.name]
    return vectors * tensors_of(kernel), vectors if is_apply(kernel) else 0


def is_plain(way: list[str]) -> bool:
    return not any(".U8" in operation(instruction) or SMALLER in instruction for instruction in way)


def resident_phases(kernel: Kernel, code: Code) -> dict[str, Phase]:
    """The longest loop of each kind. The other ones handle the vectors that are left."""
    tensors, found = tensors_of(kernel), dict[str, Phase]()
    for body in filter(is_plain, straight_loops(code)):
        copies, loads, stores = (sum(wide(each, name) for each in body) for name in ("LDGSTS", "LDS", "STG"))
        kinds = {
            "load": copies if copies == COPIED * tensors and not stores else 0,
            "sum": loads if not copies and not stores else 0,
            "apply": loads if not copies and loads == stores * tensors else 0,
        }
        for name, moved in kinds.items():
            elements = moved // tensors * kernel.vector
            if elements and (name not in found or elements > found[name].elements):
                found[name] = Phase(body, elements)
    return found


def full_chunks(kernel: Kernel, code: Code) -> list[list[str]]:
    """The paths of a streamed kernel's loops on which all of a chunk's vectors exist."""
    ways = [way_through(code, first, [last], moved_of(kernel)) for first, last in loops(code)]
    return [way for way in ways if way]


def phases(kernel: Kernel, code: Code) -> dict[str, Phase]:
    if kernel.name.startswith("resident"):
        return resident_phases(kernel, code)
    plain = min(filter(is_plain, full_chunks(kernel, code)), key=len, default=None)
    name, elements = kernel.name.split("_")[0], AHEAD[kernel.name] * kernel.vector
    return {} if plain is None else {name: Phase(plain, elements)}


def whole_way(kernel: Kernel, code: Code) -> list[str]:
    """The shortest path through an apply pass: one chunk, and no channel to prepare. Evaluation takes it."""
    ends = [i for i, instruction in enumerate(code.instructions) if operation(instruction) == "EXIT"]
    return way_through(code, 0, ends, moved_of(kernel), min)


def least_in_flight(kernel: Kernel, code: Code) -> int:
    """The fewest vectors in flight on a streamed kernel's paths; 0 if a path is missing."""
    ways = [*full_chunks(kernel, code), *([whole_way(kernel, code)] if is_apply(kernel) else [])]
    return min(map(in_flight, ways), default=0)

"""The kernels that csrc/cuda/dispatch.h instantiates, and how their names come out of the compiler."""

import itertools
import re
from typing import NamedTuple

DIRECTIONS = ("forward", "backward")
ELEMENTS = ("f32", "f64", "bf16", "f16")
MAPPINGS = ("rows", "columns")
CURVES = ("relu", "leaky_relu", "other")  # no activation runs as the second

ELEMENT_BITS = {"f32": 32, "f64": 64, "bf16": 16, "f16": 16}
COMPUTE_BITS = {"f32": 32, "f64": 64, "bf16": 32, "f16": 32}
# threads_of() in csrc/cuda/params.h
THREADS = {"f32": 512, "f64": 256, "bf16": 512, "f16": 512}


class Kernel(NamedTuple):
    direction: str
    element: str
    mapping: str
    whole: bool
    curve: str

    def __str__(self) -> str:
        vectors = "whole" if self.whole else "partial"
        return f"{self.direction} {self.element} {self.mapping} {vectors} {self.curve}"


EXPECTED = frozenset(
    Kernel(*choice) for choice in itertools.product(DIRECTIONS, ELEMENTS, MAPPINGS, (True, False), CURVES)
)

# As the C++ ABI writes types, and the values of the enumerations.
MANGLED_ELEMENTS = {"f": "f32", "d": "f64", "BFloat16": "bf16", "Float16": "f16"}
MANGLED_MAPPINGS = {"0": "rows", "1": "columns"}
MANGLED_CURVES = {"0": "relu", "1": "leaky_relu", "2": "other"}

ENTRY = re.compile(
    r"batch_norm_(?P<direction>forward|backward)"
    r"I(?:NS\w*?_\d+(?P<struct>B?Float16)E|(?P<scalar>[fd]))"
    r"LNS\w*?7MappingE(?P<mapping>\d)E"
    r"Lb(?P<whole>[01])E"
    r"LNS\w*?5CurveE(?P<curve>\d)E"
)


def kernel_of(entry: str) -> Kernel:
    """The kernel whose mangled name this is; ValueError for any other function."""
    found = ENTRY.search(entry)
    if found is None or found["curve"] not in MANGLED_CURVES:
        raise ValueError(f"{entry} is no kernel of csrc/cuda/launch_one_type.cuh")
    return Kernel(
        found["direction"],
        MANGLED_ELEMENTS[found["struct"] or found["scalar"]],
        MANGLED_MAPPINGS[found["mapping"]],
        found["whole"] == "1",
        MANGLED_CURVES[found["curve"]],
    )

"""The kernels that csrc/cuda/kernels/dispatch.h instantiates, and their mangled names."""

import itertools
import re
from collections.abc import Iterator
from typing import NamedTuple

# Elements of a 16-byte vector. Double precision and unaligned tensors use single elements.
WIDE = {"f32": 4, "bf16": 8, "f16": 8}
KINDS = ("relu", "leaky_relu", "other")  # as they are numbered; no activation runs as the second


class Kernel(NamedTuple):
    name: str  # "reduce_forward"
    element: str
    vector: int = 1
    mixed: bool = False
    kind: str = ""

    def __str__(self) -> str:
        parts = (self.name, self.element, f"x{self.vector}", "mixed" if self.mixed else "", self.kind)
        return " ".join(part for part in parts if part)


def kernels_of(element: str) -> Iterator[Kernel]:
    vectors = [(1, False, "other")]
    if element in WIDE:
        vectors += itertools.product((WIDE[element],), (False, True), KINDS)
    for vector, mixed, kind in vectors:
        yield Kernel("reduce_forward", element, vector, mixed)
        passes = ("resident", "reduce", "apply") if vector > 1 else ("reduce", "apply")
        for name in (f"{each}_{direction}" for each in passes for direction in ("forward", "backward")):
            if name != "reduce_forward":
                yield Kernel(name, element, vector, mixed, kind)


EXPECTED = frozenset(
    itertools.chain(
        *(kernels_of(element) for element in ("f32", "f64", "bf16", "f16")),
        (Kernel("merge", "f32"), Kernel("merge", "f64")),
    )
)

# As the C++ ABI writes types and values.
MANGLED_ELEMENTS = {"f": "f32", "d": "f64", "BFloat16": "bf16", "Float16": "f16"}
ELEMENT = r"(?:NS\w*?_\d+(?P<struct>B?Float16)E|(?P<scalar>[fd]))"
PASS = (
    r"\d+batch_normINS\w*?_\d+(?P<kernel>Resident|Reduce|Apply)INS\w*?_\d+(?P<direction>Forward|Backward)I"
    + ELEMENT
    + r"Li(?P<vector>\d)ELb(?P<mixed>[01])ELNS\w*?14ActivationKindE(?P<kind>[0-2])E"
    + r"(?:Lb[01]E)?E+vNT_6ParamsE$"
)
MERGE = r"\d+batch_norm_mergeI(?P<merged>[fd])EEv"


def kernel_of(entry: str) -> Kernel:
    """The kernel whose mangled name this is; ValueError for any other function."""
    if merge := re.search(MERGE, entry):
        return Kernel("merge", MANGLED_ELEMENTS[merge["merged"]])
    found = re.search(PASS, entry)
    if found is None:
        raise ValueError(f"{entry} is no kernel of csrc/cuda/host")
    name = f"{found['kernel']}_{found['direction']}".lower()
    return Kernel(
        name,
        MANGLED_ELEMENTS[found["struct"] or found["scalar"]],
        int(found["vector"]),
        found["mixed"] == "1",
        "" if name == "reduce_forward" else KINDS[int(found["kind"])],
    )

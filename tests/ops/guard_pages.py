"""Runs the raw operators on tensors that end, or begin, at a page without access rights.

`python -m tests.ops.guard_pages` prints how many calls succeeded. A read or write outside a tensor kills the
process. The operators allocate their outputs themselves, so the sanitizers look for writes outside those.
"""

import ctypes
import mmap
import sys
from dataclasses import replace
from itertools import product
from typing import Any

import torch
from torch import Tensor

from tests.cases import DTYPES, Case, layouts, make_tensors
from tests.ops.test_operator import backward, backward_arguments, forward, forward_arguments

SHAPES = (
    (2, 1),
    (5, 3),
    (6, 9),
    (3, 65),
    (1000, 1),
    (101, 7),
    (3, 1500),
    (4, 10, 29),
    (2, 6, 257),
    (1, 1, 4099),
    (2, 4, 2, 2),
    (3, 3, 5, 7),
    (2, 5, 9, 3),
    (8, 1, 13, 17),
    (7, 24, 1, 1),
    (2, 8, 1, 33),
    (1, 4, 33, 31),
    (2, 15, 3, 11),
    (2, 17, 4, 4),
    (2, 33, 5, 13),
    (1, 65, 10, 10),
    (3, 1030, 2, 2),
    (16, 6, 28, 28),
    (2, 64, 7, 7),
    (2, 3, 4, 4, 4),
    (2, 16, 3, 5, 2),
)
"""Tails of every length after vectors of 4 to 32 elements, in rows and in columns."""

OPTIONS: tuple[dict[str, Any], ...] = (
    {},
    {"training": False, "activation": "none"},
    {"residual": True},
    {"residual": True, "activation": "silu"},
)
"""With a residual: writes and reads the mask, or reads the residual again."""

_kept: list[mmap.mmap] = []


def guarded(tensor: Tensor, at_end: bool) -> Tensor:
    """A copy with the same strides that ends just before, or begins just after, a forbidden page."""
    size, page = tensor.numel() * tensor.element_size(), mmap.PAGESIZE
    room = -(-size // page) * page
    memory = mmap.mmap(-1, room + 2 * page)
    _kept.append(memory)  # stays alive as long as the tensor may
    begin = ctypes.addressof(ctypes.c_char.from_buffer(memory))
    for guard in (begin, begin + page + room):
        if ctypes.CDLL(None).mprotect(ctypes.c_void_p(guard), ctypes.c_size_t(page), 0) != 0:
            raise OSError("mprotect failed")
    start = begin + page + (room - size if at_end else 0)
    buffer = (ctypes.c_char * size).from_address(start)
    flat = torch.frombuffer(buffer, dtype=tensor.dtype, count=tensor.numel())
    return flat.as_strided(tensor.size(), tensor.stride()).copy_(tensor)


def check(case: Case, at_end: bool) -> None:
    """Runs forward and backward, and compares bits with those of ordinary tensors."""
    plain, own = forward_arguments(case), forward_arguments(case)
    own = {k: guarded(v, at_end) if isinstance(v, Tensor) else v for k, v in own.items()}
    same = all(map(torch.equal, forward(own), forward(plain)))
    for name in ("running_mean", "running_var", "num_batches_tracked"):
        same &= torch.equal(own[name], plain[name])
    plain = backward_arguments(case)
    own = {k: guarded(v, at_end) if isinstance(v, Tensor) else v for k, v in plain.items()}
    same &= all(map(torch.equal, backward(own), backward(plain)))
    if not same:
        raise AssertionError(f"{case}: other bits beside a guard page")
    _kept.clear()


def main() -> None:
    calls = 0
    for shape in SHAPES:
        for layout, (dtype, parameter_dtype) in product(layouts(shape), DTYPES):
            case = Case(shape, layout, dtype, parameter_dtype)
            for options, at_end in product(OPTIONS, (True, False)):
                check(replace(case, **options), at_end)
                calls += 1
    print(calls)


def overstep(by: int) -> None:
    """Reads an element outside the tensor, to test that the guard pages work."""
    tensor = guarded(make_tensors(Case((3, 5))).input, at_end=by >= 0)
    place = by if by < 0 else tensor.numel() - 1 + by
    print(ctypes.c_float.from_address(tensor.data_ptr() + place * tensor.element_size()).value)


if __name__ == "__main__":
    if len(sys.argv) > 1:
        overstep(int(sys.argv[1]))
    else:
        main()

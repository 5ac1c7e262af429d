"""The elements that a launch's threads touch, by csrc/cuda/tiling.h itself: tilings.cpp in build/tilings."""

import ctypes
import functools
import hashlib
import os
import subprocess
from pathlib import Path

import torch
from torch import Tensor

from tests.planner.planner import Launch

HERE = Path(__file__).resolve().parent
ROOT = HERE.parent.parent
CSRC = ROOT / "csrc"
FIELDS = (
    *("N", "C", "S", "elements", "channels_last", "vector", "mixed", "fold", "rows", "row_vectors"),
    *("tile_vectors", "tile_channels", "tiles", "channel_length", "threads"),
    *("group", "groups", "interleaved"),
)


@functools.cache
def library() -> ctypes.CDLL:
    sources = (HERE / "tilings.cpp", CSRC / "cuda" / "tiling.h", CSRC / "common" / "portable.h")
    name = hashlib.sha256(b"".join(path.read_bytes() for path in sources)).hexdigest()[:16]
    built = ROOT / "build" / "tilings" / f"{name}.so"
    if not built.exists():
        built.parent.mkdir(parents=True, exist_ok=True)
        own = built.with_suffix(f".{os.getpid()}")
        flags = ("-std=c++17", "-O2", "-fPIC", "-shared", f"-I{CSRC}")
        subprocess.run((os.environ.get("CXX", "g++"), *flags, str(sources[0]), "-o", str(own)), check=True)
        own.replace(built)
    loaded = ctypes.CDLL(str(built))
    for function in (loaded.tiling_visits, loaded.tiling_block_values, loaded.tiling_last_end):
        function.restype = ctypes.c_int64
    loaded.tiling_quotient.restype = ctypes.c_uint64
    loaded.tiling_row_of.restype = ctypes.c_uint32
    return loaded


def fields_of(launch: Launch) -> ctypes.Array[ctypes.c_int64]:
    values = [*(int(getattr(launch, name)) for name in FIELDS), launch.walk == "down_columns"]
    return (ctypes.c_int64 * len(values))(*values)


def visits(launch: Launch) -> Tensor:
    """[elements, 3]: the block within its group, the element's offset, its channel by the tiling."""
    out = torch.full((launch.elements, 3), -1, dtype=torch.int64)
    room = ctypes.c_int64(launch.elements)
    count = library().tiling_visits(fields_of(launch), room, ctypes.c_void_p(out.data_ptr()))
    assert count == launch.elements, "elements that are touched twice, or by nobody"
    return out


def block_values(launch: Launch) -> list[int]:
    """How many values of each channel the tiling assigns to each block of a group."""
    fields = fields_of(launch)
    return [library().tiling_block_values(fields, block) for block in range(launch.group)]


def last_end(launch: Launch) -> int:
    """The end of the thread that has the tensor's last vector, in elements, step by step."""
    end: int = library().tiling_last_end(fields_of(launch))
    return end


def quotient(divisor: int, dividend: int) -> int:
    value: int = library().tiling_quotient(ctypes.c_uint64(divisor), ctypes.c_uint64(dividend))
    return value


def row_of(tile_vectors: int, place: int) -> int:
    value: int = library().tiling_row_of(ctypes.c_int32(tile_vectors), ctypes.c_uint32(place))
    return value

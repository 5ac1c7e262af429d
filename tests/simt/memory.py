"""Tensors for a launch, each in memory of its own: full of NaN, and with a guard page behind."""

from types import ModuleType
from typing import Any

import torch
from torch import Tensor

BITS = {1: torch.uint8, 2: torch.int16, 4: torch.int32, 8: torch.int64}


def extent(tensor: Tensor) -> int:
    """The number of elements from the first to the last, including gaps."""
    steps = zip(tensor.shape, tensor.stride(), strict=True)
    return 1 + sum((size - 1) * stride for size, stride in steps)


def in_memory_order(tensor: Tensor) -> Tensor:
    return tensor.as_strided((extent(tensor),), (1,))


def is_written(tensor: Tensor) -> bool:
    """Whether every element was written. Memory starts with all bits 1, a NaN that no arithmetic gives."""
    return bool((tensor.flatten().view(BITS[tensor.element_size()]) != -1).all())


class Memory:
    def __init__(self, module: ModuleType, alignment: int) -> None:
        self._module, self._alignment = module, alignment
        self._buffers: list[Any] = []
        self._gaps: list[Tensor] = []

    def empty(self, size: int, dtype: torch.dtype) -> tuple[int, Tensor]:
        """The address of `size` elements, and a tensor over them. Aligned to 16 bytes only on request."""
        alignment = max(self._alignment, dtype.itemsize)
        # The memory ends at a page: it is aligned to 16 bytes if its size is a multiple of 16.
        to_end = -(-size * dtype.itemsize // alignment) * alignment
        gap = alignment // dtype.itemsize if alignment < 16 and to_end % 16 == 0 else 0
        buffer = self._module.GuardedBuffer(max(1, (size + gap) * dtype.itemsize), alignment)
        assert (buffer.address % 16 == 0) == (alignment >= 16)
        self._buffers.append(buffer)
        everything = torch.frombuffer(buffer, dtype=dtype)
        if gap:
            self._gaps.append(everything[size:])
        return buffer.address, everything[:size]

    def like(self, tensor: Tensor) -> tuple[int, Tensor]:
        """Room for a tensor of these strides."""
        address, flat = self.empty(extent(tensor), tensor.dtype)
        return address, flat.as_strided(tensor.shape, tensor.stride())

    def aligned(self, count: int) -> tuple[int, Tensor]:
        """The address of internal memory, which is always aligned. The size may be 0."""
        buffer = self._module.GuardedBuffer(max(1, count), 16)
        self._buffers.append(buffer)
        return buffer.address, torch.frombuffer(buffer, dtype=torch.uint8)

    def copy(self, tensor: Tensor | None) -> tuple[int, Tensor | None]:
        """A copy with the same strides; address 0 for None."""
        if tensor is None:
            return 0, None
        address, copy = self.like(tensor)
        copy.copy_(tensor)
        return address, copy

    def check(self) -> None:
        untouched = all(buffer.intact() for buffer in self._buffers)
        untouched &= not any(map(is_written, self._gaps))
        assert untouched, "something was written beside a tensor"

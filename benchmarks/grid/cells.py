"""The cells of the grid: inputs with their layouts, dtypes and directions."""

from collections.abc import Iterator
from dataclasses import dataclass

from benchmarks.comparison import ALL_DIRECTIONS, LAYOUTS, Case

Shape = tuple[int, ...]

FAMILIES: dict[str, tuple[Shape, ...]] = {
    "lenet": ((64, 6, 28, 28), (64, 16, 10, 10)),
    "resnet50": (
        (32, 64, 112, 112),
        (32, 64, 56, 56),
        (32, 256, 56, 56),
        (32, 512, 28, 28),
        (32, 1024, 14, 14),
        (32, 2048, 7, 7),
    ),
    "mobilenet": ((32, 16, 112, 112), (32, 24, 56, 56), (32, 96, 14, 14)),  # thin layers
    "slow elsewhere": (
        (125000, 50),  # a tall matrix
        (32, 4096),  # a wide matrix: few values in each of many channels
        (20, 6, 65536),  # few channels, long rows
        (8, 512, 7, 7),  # rows that are shorter than a vector's alignment
        (16, 65, 33, 33),  # an odd number of channels and of pixels
        (16, 257, 14, 14),
        (48, 256, 54, 54),  # 140,000 rows of 256 channels
    ),
}
"""Shapes by family: layers of networks at a usual batch, and shapes on which other implementations are slow.
"""

STEPS = "steps"
"""The family of whole training steps. Their mandatory traffic is not counted."""

QUICK = ((64, 6, 28, 28), (64, 16, 10, 10), (8, 512, 7, 7), (32, 96, 14, 14), (32, 4096))
"""Small shapes for both kinds of kernels: long rows and matrices."""


@dataclass(frozen=True)
class Cell:
    """A case and a direction: one group of the table. The device is chosen elsewhere."""

    family: str
    case: Case
    direction: str

    @property
    def id(self) -> str:
        return f"{self.case.id} {self.direction}"

    @property
    def quick(self) -> bool:
        return self.case.shape in QUICK and self.case.dtype == "float32"

    @property
    def bytes(self) -> int:
        """The mandatory traffic, without per-channel values: each tensor once.

        Forward reads the input and writes the output. Backward reads the input and the output's gradient and
        writes the input's gradient. 0 for training steps.
        """
        if self.family == STEPS:
            return 0
        forward, backward = 2, 3
        tensors = {"backward": backward, "forward+backward": forward + backward}.get(self.direction, forward)
        return tensors * self.case.tensor_bytes


def cases() -> Iterator[tuple[str, Case]]:
    """The cases with their families. Images also come in bfloat16 and both layouts; some in float16."""
    for family, shapes in FAMILIES.items():
        for shape in shapes:
            yield family, Case(shape, "contiguous", "float32")
            if len(shape) == 4:
                yield family, Case(shape, "channels_last", "float32")
                yield family, Case(shape, "contiguous", "bfloat16")
                yield family, Case(shape, "channels_last", "bfloat16")
    for layout in LAYOUTS:
        yield "slow elsewhere", Case((16, 64, 56, 56), layout, "float16")


def cells() -> list[Cell]:
    """The whole grid. A case's directions follow each other."""
    return [Cell(family, case, direction) for family, case in cases() for direction in ALL_DIRECTIONS]

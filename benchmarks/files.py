"""Files for the jobs: written whole or not at all, read up to a limit, locked with a time limit."""

import errno
import os
import sys
import time
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path
from typing import IO

Content = str | bytes | Callable[[IO[bytes]], object]
"""A file's content: text in UTF-8, or a function that writes into a file."""

POLL_SECONDS = 0.1


def write_whole(path: Path, content: Content) -> None:
    """Creates or replaces a file, and its directory if that is missing.

    After an interruption the path holds either the old content or all of `content`. Raises OSError, which
    names the path. If only the last step failed, the error also names the temporary file with the whole
    content.
    """
    if path.exists() and not (path.is_file() or path.is_dir()):
        return _write_through(path, content)
    target = Path(os.path.realpath(path))  # a link stays a link
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
    """Writes to a device or pipe. A pipe without a reader is an error; opening it would block otherwise."""
    with open(os.open(path, os.O_WRONLY | os.O_NONBLOCK), "wb") as file:
        os.set_blocking(file.fileno(), True)
        _write(content, file)


def _write(content: Content, file: IO[bytes]) -> None:
    if callable(content):
        content(file)
    else:
        file.write(content.encode() if isinstance(content, str) else content)


def refuse_special(path: Path) -> None:
    """Raises OSError if the path exists and is no regular file. A pipe could block for ever."""
    if path.exists() and not path.is_file():
        raise OSError(errno.EINVAL, "Not a regular file", str(path))


def read_at_most(path: Path, limit: int) -> bytes:
    """Reads a regular file. Raises OSError for anything else, and for more than `limit` bytes."""
    refuse_special(path)
    with path.open("rb") as file:
        content = file.read(limit + 1)
    if len(content) > limit:
        raise OSError(errno.EFBIG, f"Larger than the {limit:,} bytes that it can have", str(path))
    return content


def lock(file: IO[bytes], seconds: float) -> None:
    """Waits until no other process has locked the file. Closing the file unlocks it. Raises TimeoutError."""
    import fcntl  # Windows lacks it

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
    """The process that holds the lock, if Linux reports it."""
    with suppress(OSError):
        status = os.fstat(file.fileno())
        place = f"{os.major(status.st_dev):02x}:{os.minor(status.st_dev):02x}:{status.st_ino}"
        for line in Path("/proc/locks").read_text().splitlines():
            _, kind, _, _, process, locked, *_ = line.split()
            if kind == "FLOCK" and locked == place:
                return f"process {process}"
    return "another process"

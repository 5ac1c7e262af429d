"""Ends every job on the console: with its exit code, or with one sentence if the system refuses something."""

import errno
import io
import os
import sys
from collections.abc import Callable
from typing import Any, NoReturn, TextIO

EXIT_FAILED = 1
EXIT_INTERRUPTED = 130  # as shells report SIGINT

NO_MEMORY = ("can't allocate memory", "out of memory", "Storage size calculation overflowed")
"""Marks out-of-memory errors in texts, because torch's errors have no type for them."""


class _Stream(io.FileIO):
    """A standard stream that remembers a write error and goes on: results matter more than messages."""

    failure: OSError | None = None

    def write(self, data: Any, /) -> int:
        try:
            written: int | None = super().write(data)
        except OSError as error:
            self.failure, written = error, None
        if written is None:  # otherwise it would block
            self.failure = self.failure or BlockingIOError(errno.EAGAIN, os.strerror(errno.EAGAIN))
            return memoryview(data).nbytes
        return written


def run(main: Callable[[], int], failed: int = EXIT_FAILED) -> NoReturn:
    """Runs a job's `main` and exits with its code, or with `failed`.

    Its printed text may be lost, if the device is full or the reader has left. Its results are not.
    """
    streams = [_replaced("stdout"), _replaced("stderr")]
    try:
        code: Any = main()
    except SystemExit as error:
        code = error.code
    except KeyboardInterrupt:
        code = EXIT_INTERRUPTED
    except Exception as error:
        said = str(error).strip() or type(error).__name__
        if not isinstance(error, OSError | MemoryError) and not any(text in said for text in NO_MEMORY):
            raise
        print(f"The job ended early: {said.splitlines()[-1]}", file=sys.stderr)
        code = failed
    sys.stdout.flush()
    if lost := streams[0].failure:
        print(f"Not all output could be written: {lost}", file=sys.stderr)
    sys.exit(code or (failed if any(stream.failure for stream in streams) else 0))


def _replaced(name: str) -> _Stream:
    """Replaces sys.stdout or sys.stderr. Prints a question mark for a character that the encoding lacks."""
    given: TextIO | None = getattr(sys, name)  # None if it is closed
    raw = _Stream(given.fileno(), "w", closefd=False) if given else _Stream(os.devnull, "w")
    encoding = given.encoding if given else "utf-8"
    setattr(sys, name, io.TextIOWrapper(io.BufferedWriter(raw), encoding, "replace", line_buffering=True))
    return raw

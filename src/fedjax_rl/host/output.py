"""The two doors to people: `inform`, which can end nothing, and `result`, whose failure is said.

What a person reads is one line a thought: control characters, and characters that are none, are shown as escapes.
"""

import codecs
import errno
import io
import json
import math
import os
import sys
from collections.abc import Mapping
from typing import Any

from fedjax_rl.host.exits import CannotWrite

ASCII = {"±": "+-", "→": "->", "…": "...", "─": "-", "│": "|", "╭": "+", "╮": "+", "╰": "+", "╯": "+", "’": "'"}


class _Stderr(io.TextIOBase):
    """Standard error as a stream that never raises: a reader who is gone, or was never there, ends nothing."""

    encoding = property(lambda self: getattr(sys.stderr, "encoding", None) or "ascii")

    def write(self, text: str) -> int:
        try:
            sys.stderr.write(text)
        except UnicodeEncodeError:
            self.write(text.encode("ascii", "backslashreplace").decode())
        except (AttributeError, OSError, ValueError):  # there is none, it fails, or it is closed
            pass
        return len(text)

    def flush(self) -> None:
        try:
            sys.stderr.flush()
        except (AttributeError, OSError, ValueError):
            pass

    def isatty(self) -> bool:
        try:
            return sys.stderr.isatty()
        except (AttributeError, ValueError):
            return False

    def fileno(self) -> int:
        return 2 if sys.stderr is None else sys.stderr.fileno()


class _Closed(io.TextIOBase):
    """Standard output where there is none: to print there fails as it fails on a full disk."""

    def write(self, text: str) -> int:
        raise OSError(errno.EBADF, "standard output is closed")


stderr = _Stderr()


def inform(line: str) -> None:
    """Say one line on stderr. What only informs never ends what matters: where it cannot be said, it is dropped."""
    stderr.write(printable(line) + "\n")
    stderr.flush()


def result(text: str, kept: str = "") -> None:
    """Print what a command was asked for on stdout.

    Raises:
      BrokenPipeError: nobody reads it any more, and nothing says where else it is.
      CannotWrite: it cannot be printed; `kept` says where else it is.
    """
    try:
        try:
            print(text, flush=True)
        except UnicodeEncodeError:
            print("".join(ASCII.get(c, c) for c in text).encode("ascii", "backslashreplace").decode(), flush=True)
    except (OSError, ValueError) as error:
        if isinstance(error, BrokenPipeError) and not kept:
            raise
        reason = getattr(error, "strerror", None) or str(error)
        raise CannotWrite(f"the result cannot be printed: {reason}" + (f"; {kept}" if kept else "")) from None


def printable(line: str) -> str:
    """A line as it may be shown: one line, with what a terminal would obey, or cannot encode, as an escape."""
    return "".join(c if c.isprintable() or c == "\u00a0" else repr(c)[1:-1] for c in line)


def prepare() -> None:
    """Before a command of its own process: no stream is missing, and none stumbles over a sign that it lacks.

    A closed descriptor 0, 1 or 2 would be given to the next file that is opened, and whoever still writes there would
    write into that file.
    """
    for number in range(3):
        try:
            os.fstat(number)
        except OSError:
            os.open(os.devnull, os.O_RDWR)  # takes the lowest number that is free
    if sys.stdout is None:
        sys.stdout = _Closed()
    if sys.stderr is None:  # what is printed to no file at all goes to standard output
        sys.stderr = open(os.devnull, "w")
    codecs.register_error("fedjax_rl", _in_ascii)
    for stream in (sys.stdout, sys.stderr):
        if isinstance(stream, io.TextIOWrapper):
            stream.reconfigure(errors="fedjax_rl")


def settle() -> None:
    """After it: what cannot be flushed is given up here, lest the interpreter end with a code of its own."""
    for number, stream in ((1, sys.stdout), (2, sys.stderr)):
        try:
            stream.flush()
        except (OSError, ValueError):
            os.dup2(os.open(os.devnull, os.O_WRONLY), number)


def _in_ascii(error: UnicodeError) -> tuple[str, int]:
    if not isinstance(error, UnicodeEncodeError):
        raise error
    bad = error.object[error.start : error.end]
    return "".join(ASCII.get(c, c.encode("ascii", "backslashreplace").decode()) for c in bad), error.end


def as_json(value: Any) -> str:
    """One line of JSON, which knows no NaN and no infinity: they are null."""
    return json.dumps(for_json(value), allow_nan=False)


def for_json(value: Any) -> Any:
    """The value with None for the numbers that are not finite, in mappings, lists and tuples."""
    if isinstance(value, Mapping):
        return {key: for_json(part) for key, part in value.items()}
    if isinstance(value, list | tuple):
        return [for_json(part) for part in value]
    return None if isinstance(value, float) and not math.isfinite(value) else value

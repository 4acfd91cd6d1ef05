"""Who writes a run's directory: one process at a time, each under a name of its own where none is given."""

import errno
import fcntl
import itertools
import os
import re
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import IO

from fedjax_rl.config import Config, ConfigError
from fedjax_rl.host import output
from fedjax_rl.host.files import explain
from fedjax_rl.runs import rundir


@contextmanager
def directory(out: Path | None, config: Config, kind: str = "") -> Iterator[Path]:
    """The directory that was asked for, or a new one: runs/<env>-<algorithm>-<seed<k> or kind>-<timestamp>.

    A new one is made here, so that no other process takes its name; -2, -3, ... is added to one that is taken. What is
    empty at the end is not left behind.

    Raises:
      ConfigError: it cannot be made.
    """
    if out is not None:
        yield out
        return
    stamp, plain = time.strftime("%Y%m%d-%H%M%S"), lambda name: re.sub(r"[/:?=&]", "_", name)
    name = f"{plain(config.env)}-{plain(config.algorithm)}-{kind or f'seed{config.seed}'}-{stamp}"
    with _tidied(Path("runs")):
        path = _first_free(Path("runs"), name)
        try:
            yield path
        finally:
            with suppress(OSError):
                path.rmdir()


@contextmanager
def writer(path: Path) -> Iterator[None]:
    """Make the directory and hold it for one writer at a time; it is not left behind where nothing was written.

    Raises:
      ConfigError: another process holds it, or it cannot be made.
    """
    if rundir.is_reader():
        yield
        return
    with _tidied(path), _opened(path) as file:
        _lock(file, path)
        try:
            yield
        finally:
            if not rundir.holds_something(path) and not os.fstat(file.fileno()).st_size:
                with suppress(OSError):
                    os.unlink(file.name)


def _lock(file: IO, path: Path) -> None:
    refusal = ConfigError(f"{path} is being written by another process; wait for it to end")
    try:
        fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except OSError as error:
        if error.errno in (errno.EWOULDBLOCK, errno.EACCES):
            raise refusal from error
        # some network file systems have no locks
        output.inform(f"{path} cannot be locked ({error.strerror}): see that no other process writes there")
    try:
        is_there = os.path.samestat(os.fstat(file.fileno()), os.stat(file.name))
    except FileNotFoundError:
        is_there = False
    if not is_there:  # its holder took it away since it was opened: whoever comes next would lock another file
        raise refusal


def _opened(path: Path) -> IO:
    try:
        path.mkdir(parents=True, exist_ok=True)
        return open(path / rundir.LOCK, "a")
    except (OSError, ValueError) as error:
        if (path / rundir.CONFIG).exists():
            raise
        raise _refusal(path, error) from None


def _first_free(parent: Path, name: str) -> Path:
    """The first of name, name-2, ... that can be made."""
    for number in itertools.count(1):
        path = parent / (name if number == 1 else f"{name}-{number}")
        try:
            path.mkdir(parents=True)
            return path
        except FileExistsError:
            continue
        except OSError as error:
            raise _refusal(path, error) from None
    raise AssertionError("numbers do not end")


def _refusal(path: Path, error: Exception) -> ConfigError:
    reason = explain(error) if isinstance(error, OSError) else error
    return ConfigError(f"--out {path}: it cannot be written: {reason}; choose another place")


@contextmanager
def _tidied(path: Path) -> Iterator[None]:
    """Around the making of a directory: it and its parents are taken away again where they are new and stay empty."""
    new = [item for item in (path, *path.parents) if not os.path.lexists(item)]
    try:
        yield
    finally:
        with suppress(OSError):  # one that is not empty is somebody's by now, and what leads there stays ('a/../b')
            for item in new:
                item.rmdir()

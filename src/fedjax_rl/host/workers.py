"""Other processes of this machine that call functions for this one, so that Python works on several cores.

They are new interpreters, not forks: a fork has none of JAX's threads and all of their locks, and a fresh import of the
user's script would run it again. Functions and arguments are sent by pickle, and imported from where this process does.
A worker ends with its pipe, whatever this process died of. What goes wrong ends those that were asked, since nobody
knows what they hold, and whoever asks next gets new ones. Imports no jax.
"""

import atexit
import contextlib
import ctypes
import functools
import os
import pickle
import signal
import subprocess
import sys
import threading
import traceback
from collections.abc import Callable, Iterator, Sequence
from typing import Any

from fedjax_rl.host.signals import ENDING

START = "import sys; sys.path[:] = {!r}; from fedjax_rl.host.workers import serve; serve()"
FENV_BYTES = 64  # a C library's fenv_t has up to 32
ENDING_S = 1.0  # for a process whose pipe has ended to say how

_workers: list["Worker"] = []
_lock = threading.Lock()


class Worker:
    """One other process, which does what it is asked, one thing at a time."""

    def __init__(self) -> None:
        words = [sys.executable, "-W", "ignore", "-c", START.format(sys.path)]  # this process warns of the same things
        quiet = None if sys.__stderr__ else subprocess.DEVNULL
        self.process = subprocess.Popen(
            words, stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=quiet, process_group=0
        )
        self.owner = os.getpid()

    def is_there(self) -> bool:
        """Can it be asked? Those of the process that this one was forked from cannot."""
        return self.owner == os.getpid() and self.process.poll() is None

    def send(self, message: Any) -> None:
        with self.telling():
            self.process.stdin.write(pickle.dumps(message))  # type: ignore[union-attr]
            self.process.stdin.flush()  # type: ignore[union-attr]

    def receive(self) -> Any:
        """What it answers; an error there is a RuntimeError here, whose text is the traceback."""
        with self.telling():
            is_error, answer = pickle.load(self.process.stdout)  # type: ignore[arg-type]
        if is_error:
            raise RuntimeError(answer)
        return answer

    @contextlib.contextmanager
    def telling(self) -> Iterator[None]:
        try:
            yield
        except (OSError, EOFError, ValueError, pickle.UnpicklingError) as error:  # ValueError: it was ended before
            with contextlib.suppress(subprocess.TimeoutExpired):
                self.process.wait(ENDING_S)
            code = self.process.returncode
            raise RuntimeError(f"a process that works for this one has ended (exit code {code})") from error

    def end(self) -> None:
        with contextlib.suppress(OSError), self.process:
            self.process.kill()


def workers(n: int) -> list[Worker]:
    """n of them, started if they are not there; none where there can be none."""
    with _lock:
        _workers[:] = filter(Worker.is_there, _workers)
        try:
            _rounding()
            while len(_workers) < n:
                _workers.append(Worker())
        except (OSError, TypeError, AttributeError):
            return []
        return _workers[:n]


def ask(asked: Sequence[Worker], calls: Sequence[tuple], meanwhile: Callable[[], Any]) -> tuple[Any, list[Any]]:
    """One call (function, *arguments) for each worker, while this process does what is left to it.

    Returns:
      (what `meanwhile` returns, what each call returns). Floating-point numbers are rounded, and flushed to zero, as
      they are in the thread that asks: XLA's threads know no denormal ones.

    Raises:
      RuntimeError: a call raised, or a worker ended.
    """
    is_done = False
    with _lock:
        try:
            for worker, call in zip(asked, calls, strict=True):
                worker.send((_rounding(), *call))
            mine = meanwhile()
            answers = [worker.receive() for worker in asked]
            is_done = True
        finally:
            for worker in () if is_done else asked:
                worker.end()
    return mine, answers


@atexit.register
def _end_all() -> None:
    for worker in filter(Worker.is_there, _workers):
        worker.end()


@functools.cache
def _libm() -> ctypes.CDLL:
    return ctypes.CDLL(None)


def _rounding() -> bytes:
    """This thread's floating-point environment."""
    room = ctypes.create_string_buffer(FENV_BYTES)
    _libm().fegetenv(room)
    return room.raw


def serve() -> None:
    """A worker: answer until the pipe ends. What the called print goes to standard error."""
    for number in ENDING:  # the other end of the pipe decides
        signal.signal(number, signal.SIG_IGN)
    asked, answered = os.fdopen(os.dup(0), "rb"), os.fdopen(os.dup(1), "wb")
    os.dup2(2, 1)
    os.dup2(os.open(os.devnull, os.O_RDONLY), 0)
    with contextlib.suppress(OSError, EOFError):
        while True:
            rounding, function, *args = pickle.load(asked)
            try:
                _libm().fesetenv(rounding)
                answer = (False, function(*args))
            except BaseException:  # one that would end it, too
                answer = (True, traceback.format_exc().rstrip())
            answered.write(pickle.dumps(answer))
            answered.flush()
    os._exit(0)  # whatever threads are left

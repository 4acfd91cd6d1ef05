"""Signals that end a run: the first one waits for a good moment, the second stops at once, the third acts as usual."""

import os
import signal
import threading
from collections.abc import Iterator
from contextlib import contextmanager

from fedjax_rl.host import exits, output

# Ctrl-C, `kill`, a closed terminal, and what batch systems send before the time is up
ENDING = tuple(getattr(signal, name) for name in ("SIGINT", "SIGTERM", "SIGHUP", "SIGUSR1") if hasattr(signal, name))

INTERRUPT = int(signal.SIGINT)

_active: list[int] | None = None
_begun = False
owns_process = False  # set by the command line's entry point: nobody else lives in this process


class Interrupted(exits.Refusal):
    """A signal ended a run, which is saved (exit code 128 + the signal's number)."""

    def __init__(self, number: int) -> None:
        super().__init__(signal.Signals(number).name)
        self.code = exits.SIGNAL + number


class Stopped(KeyboardInterrupt):
    """A second signal: the run stops where it stands, unsaved. No `Exception`, so that nothing on the way keeps it."""

    def __init__(self, number: int) -> None:
        super().__init__(signal.Signals(number).name)
        self.code = exits.SIGNAL + number


@contextmanager
def heeded(*, begun: bool = True) -> Iterator[list[int]]:
    """The numbers of the signals caught so far; whoever enters inside shares the list.

    A signal that was ignored before stays ignored: that is what `nohup` asks for. Outside the main thread Python lets
    nobody catch signals, and the list stays empty. Until somebody has `begun`, there is nothing to save, and a command
    ends at once: an exception would be raised in the midst of an import.
    """
    global _active, _begun
    if threading.current_thread() is not threading.main_thread():
        yield []
        return
    if _active is not None:
        _begun |= begun
        yield _active
        return
    caught: list[int] = []

    def handler(number, frame):
        name = signal.Signals(number).name
        caught.append(number)
        if not _begun and owns_process:
            output.inform(f"fedjax-rl: ended by {name} before anything was begun; start again")
            os._exit(exits.SIGNAL + number)
        if len(caught) == 1:
            output.inform(f"{name}: the round is ended and saved first; once more: stop at once")
            return
        _restore(before)
        raise Stopped(number)

    before = {number: signal.getsignal(number) for number in ENDING}
    before = {number: old for number, old in before.items() if old not in (signal.SIG_IGN, None)}
    for number in before:
        signal.signal(number, handler)
    _active, _begun = caught, begun
    try:
        yield caught
    finally:
        _active, _begun = None, False
        _restore(before)


def _restore(handlers: dict) -> None:
    for number, old in handlers.items():
        signal.signal(number, old)

"""Signals that end a run: the first one waits for a good moment, the second stops at once, the third acts as usual."""

import signal
import threading
from collections.abc import Iterator
from contextlib import contextmanager

from fedjax_rl import exits, output

# Ctrl-C, `kill`, a closed terminal, and what batch systems send before the time is up
ENDING = tuple(getattr(signal, name) for name in ("SIGINT", "SIGTERM", "SIGHUP", "SIGUSR1") if hasattr(signal, name))

INTERRUPT = int(signal.SIGINT)

_active: list[int] | None = None


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
def heeded() -> Iterator[list[int]]:
    """The numbers of the signals caught so far; whoever enters inside shares the list.

    A signal that was ignored before stays ignored: that is what `nohup` asks for. Outside the main thread Python lets
    nobody catch signals, and the list stays empty.
    """
    global _active
    if _active is not None or threading.current_thread() is not threading.main_thread():
        yield [] if _active is None else _active
        return
    caught: list[int] = []

    def handler(number, frame):
        caught.append(number)
        if len(caught) == 1:
            output.inform(f"{signal.Signals(number).name}: the round is ended and saved first; once more: stop at once")
            return
        _restore(before)
        raise Stopped(number)

    before = {number: signal.getsignal(number) for number in ENDING}
    before = {number: old for number, old in before.items() if old not in (signal.SIG_IGN, None)}
    for number in before:
        signal.signal(number, handler)
    _active = caught
    try:
        yield caught
    finally:
        _active = None
        _restore(before)


def _restore(handlers: dict) -> None:
    for number, old in handlers.items():
        signal.signal(number, old)

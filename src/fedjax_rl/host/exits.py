"""How a command ends: its exit codes, and the exceptions that carry one with the one line that people read."""

from pathlib import Path

DONE, CANNOT_WRITE, USAGE, DIVERGED, NO_CHECKPOINT, UNHEARD, PROCESS_LOST = range(7)
SIGNAL = 128  # plus the signal's number

MEANING = {
    DONE: "done; a training command: trained to its last round, and evaluated",
    CANNOT_WRITE: "the system refused to read, write or print; what was saved before is intact",
    USAGE: "an option, a configuration or a file is not what it has to be",
    DIVERGED: "the server's state ceased to be finite",
    NO_CHECKPOINT: "no usable checkpoint",
    UNHEARD: "trained to the last round, but at the end nobody was heard, so that nothing was learned",
    PROCESS_LOST: "another process of the run did not come, ended or was killed; resume all of them",
}


class Refusal(Exception):
    """Why a command cannot do, or go on with, what it was asked: one line, no traceback; `code` is the exit code."""

    code = USAGE


class ConfigError(Refusal, ValueError):
    """A value, a name or a file is not what it has to be (exit code 2).

    Its text is one line: what is wrong, and what is legal. It is a ValueError too.
    """


class CannotWrite(Refusal):
    """The operating system refused; what was saved before is intact."""

    code = CANNOT_WRITE


class NoCheckpoint(Refusal):
    """A run has no checkpoint that can be used (exit code 4).

    Args:
      message: one line for people.
      run: the run's directory; also an attribute.
    """

    code = NO_CHECKPOINT

    def __init__(self, message: str, run: Path) -> None:
        super().__init__(message)
        self.run = run


class ProcessLost(Refusal):
    """Another process of the run is missing."""

    code = PROCESS_LOST

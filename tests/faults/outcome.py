"""What became of one fault: a Case. What became of many: an Outcome, a row of the table."""

import re
from collections.abc import Iterable, Sequence
from typing import NamedTuple

from fedjax_rl.host import exits

SURVIVED, REFUSED, LOST, TRACEBACK, SILENT = "survived", "refused", "data lost", "traceback", "silent"
ENDS = (SURVIVED, REFUSED, LOST, TRACEBACK, SILENT)


class Answer(NamedTuple):
    """What a command did: its exit code (negative: killed by a signal; None: it hung), and what it printed."""

    code: int | None
    out: str
    err: str


class Case(NamedTuple):
    """One fault done once: the row it belongs to, what a person does to see it again, its end, and what was said."""

    fault: str
    what: str
    end: str
    said: str = ""

    def __str__(self) -> str:
        return f"{self.end}: {self.fault}: {self.what}: {self.said[-1500:]}"


class Outcome(NamedTuple):
    """How often a fault was tried, and how often it ended in which way."""

    tried: int
    survived: int
    refused: int
    lost: int
    tracebacks: int
    silent: int

    @property
    def is_good(self) -> bool:
        """Was it tried at all, and each time survived or refused?"""
        return self.tried == self.survived + self.refused > 0


def tally(cases: Iterable[Case]) -> Outcome:
    """The outcome of so many cases."""
    ends = [case.end for case in cases]
    return Outcome(len(ends), *map(ends.count, ENDS))


def judge(answer: Answer, *, same: bool, names: Sequence[str], lost: str = "", codes: Sequence[int] = ()) -> str:
    """How a case ended.

    `same`: the result is the undisturbed run's. `names`: the words one of which a line of stderr must hold to be a
    refusal (the file, the option, the signal). `lost`: what is nowhere any more. `codes`: exit codes that are
    documented besides those of every command (128 + a signal's number).
    """
    if is_traceback(answer):
        return TRACEBACK
    if lost:
        return LOST
    if answer.code == 0 and same:
        return SURVIVED
    if answer.code not in (*exits.MEANING, *codes):
        return SILENT
    return REFUSED if any(name in line for line in answer.err.splitlines() for name in names) else SILENT


def is_traceback(answer: Answer) -> bool:
    """Did it end in a stack that no person asked for, Python's or C++'s?"""
    crashed = answer.code in (-4, -6, -7, -8, -11, 134, 139)
    return crashed or bool(re.search(r"^Traceback \(most recent call last\)|^\*\*\* Check failure", answer.err, re.M))

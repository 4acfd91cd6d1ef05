"""Every command with a stdout or a stderr that cannot be written, lacks signs, or is narrow.

What only informs changes nothing; a result that cannot be printed is said in one line, exit code 1; what was trained is
saved in any case.
"""

import contextlib
import fcntl
import os
import pty
import random
import re
import shutil
import struct
import subprocess
import sys
import termios
import threading
from collections.abc import Collection, Iterator
from pathlib import Path
from typing import NamedTuple

from faults import damage
from faults.outcome import Answer, Case, judge
from faults.worker import ENV, Worker, each

SHORT = ["--preset", "tiny", "--env", ENV, "--episodes", "1", "--local-steps", "1", "--rounds", "2"]
SHORT += ["--new-clients", "0", "--adapt-steps", "0", "--eval-every", "0"]
COMMANDS: dict[str, list[str]] = {
    "train": ["train", "fedavg", *SHORT, "--out", "new"],
    "sweep": ["sweep", "fedavg", *SHORT, "--seeds", "0:2", "--out", "new"],
    "resume": ["resume", "run", "--rounds", "5"],
    "eval": ["eval", "run"],
    "replay": damage.COMMANDS["steep", "replay"],
    "render": ["render", "robot", "--out", "new.html"],
    "report": ["report", "run"],
    "bench": ["bench", "update", "--sizes", "1", "--repeats", "1"],
    "doctor": ["doctor"],
    "list": ["list"],
    "--help": ["--help"],
    "train --help": ["train", "--help"],
}
MAKES = {"train": "new", "sweep": "new/seed=1", "resume": "run"}  # the run that is trained
PRINTS = ("eval", "replay", "report", "bench", "doctor", "list", "--help", "train --help")  # and does nothing else
VARIES = ("bench", "doctor", "train --help")  # measures, or is laid out for its width
UNPRINTABLE = ("closed", "full", "a pipe without a reader")
STATES = (*UNPRINTABLE, "ASCII", "a terminal of 20 columns")
HUNG_S = 120.0
NARROW = struct.pack("HHHH", 24, 20, 0, 0)


class Result(NamedTuple):
    """What a command answered, and the state that it trained."""

    answer: Answer
    state: str


def cases(home: Path, only: int | None = None, commands: Collection[str] = COMMANDS) -> Iterator[Case]:
    """All of them, or so many drawn from them."""
    home.mkdir()
    worker = Worker()
    damage.make(worker, home, sorted({base for command in commands for base in bases(command)}))
    plans = [(command, stream, state) for command in commands for stream in ("stdout", "stderr") for state in STATES]
    if only is not None:
        plans = random.Random(0).sample(plans, only)
    whole = {c: run(worker, home, (c, "stdout", "open")) for c in sorted({plan[0] for plan in plans})}
    yield from each(lambda worker, plan: one(worker, home, plan, whole[plan[0]]), plans, worker)


def one(worker: Worker, home: Path, plan: tuple[str, str, str], whole: Result) -> Case:
    """One command, one stream, one state of it."""
    command, stream, state = plan
    mine = run(worker, home, plan)
    same, names = mine.answer.code == whole.answer.code, []
    if stream == "stdout" and state in UNPRINTABLE:
        same, names = same and command in PRINTS and "pipe" in state, ["printed"]
    elif command not in VARIES:
        same = same and words(mine.answer.out) == words(whole.answer.out)
    lost = "" if mine.state == whole.state else "what was trained is not what it is undisturbed"
    end = judge(mine.answer, same=same, names=names, lost=lost)
    said = f"[{mine.answer.code}] {mine.state} {mine.answer.err}"
    if mine.answer.out and command not in VARIES:
        said += f" printed otherwise: {sorted(set(words(mine.answer.out)) ^ set(words(whole.answer.out)))}"
    return Case(f"streams: {stream} {state}", " ".join(COMMANDS[command]), end, said)


def bases(command: str) -> list[str]:
    """The runs of `damage` that a command reads."""
    return [base for base in damage.BASES if any(part.split("/")[0] == base for part in COMMANDS[command][1:])]


def words(text: str) -> list[str]:
    """What is printed but for signs, layout and time."""
    return re.findall(r"[A-Za-z0-9.]+", re.sub(r"[\d.]+ minutes", "", text.replace("+-", "")))


def run(worker: Worker, home: Path, plan: tuple[str, str, str]) -> Result:
    """A command in a process and a directory of its own."""
    command, stream, state = plan
    place = home / " ".join(plan).replace(" ", "_")
    place.mkdir()
    for base in bases(command):
        shutil.copytree(home / base, place / base)
    answer = launch([sys.executable, "-m", "fedjax_rl", *COMMANDS[command]], place, stream, state)
    trained = worker.state(place / MAKES[command]) if command in MAKES else ""
    if command == "render":
        trained = str((place / "new.html").exists())
    shutil.rmtree(place)
    return Result(answer, trained)


def launch(argv: list[str], place: Path, stream: str, state: str) -> Answer:
    """Run a process one of whose streams is as the state says; what it wrote to it is read where it can be."""
    env = {**os.environ, "COLUMNS": "", **({"PYTHONIOENCODING": "ascii"} if state == "ASCII" else {})}
    files, readers = {}, {}
    for name in ("stdout", "stderr"):
        kind = state if name == stream else "open"
        if kind in ("closed", "full"):
            files[name] = os.open("/dev/full", os.O_WRONLY)
        else:
            reader, files[name] = pty.openpty() if "terminal" in kind else os.pipe()
            if "terminal" in kind:
                fcntl.ioctl(files[name], termios.TIOCSWINSZ, NARROW)
            if "without" in kind:
                os.close(reader)
            else:
                readers[name] = Drain(reader)
                os.close(reader)
    if state == "closed":
        argv = ["sh", "-c", f'exec "$@" {1 if stream == "stdout" else 2}>&-', "sh", *argv]
    process = subprocess.Popen(argv, cwd=place, env=env, stdin=subprocess.DEVNULL, **files)
    for number in files.values():
        os.close(number)
    try:
        code = process.wait(HUNG_S)
    except subprocess.TimeoutExpired:
        process.kill()
        process.wait()
        code = None
    said = {name: reader.text() for name, reader in readers.items()}
    return Answer(code, said.get("stdout", ""), said.get("stderr", ""))


class Drain(threading.Thread):
    """Reads a descriptor to its end."""

    def __init__(self, number: int) -> None:
        super().__init__(daemon=True)
        self.number, self.content = os.dup(number), b""
        self.start()

    def run(self) -> None:
        """A terminal that nobody holds any more says EIO."""
        with contextlib.suppress(OSError):
            while part := os.read(self.number, 65536):
                self.content += part
        os.close(self.number)

    def text(self) -> str:
        """All that was written."""
        self.join(10)
        return self.content.decode(errors="replace").replace("\r\n", "\n")

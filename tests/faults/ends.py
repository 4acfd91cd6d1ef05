"""Every signal that people and batch systems send, in every phase of a run, once and twice, and where it is ignored.

The first one: the round ends, the state is saved, one line names the signal, exit code 128 + its number. The second one
stops sooner. In any case `resume` comes to the undisturbed run's bits.
"""

import contextlib
import random
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import NamedTuple

from faults.damage import LITTLE, records_of
from faults.outcome import LOST, SILENT, SURVIVED, TRACEBACK, Answer, Case, is_traceback
from faults.streams import Drain
from faults.worker import ENV, Worker, each

SIGNALS = (signal.SIGHUP, signal.SIGINT, signal.SIGTERM, signal.SIGUSR1)
SMALL = ["fedavg", "--env", ENV, *LITTLE, "--eval-every", "0"]
LONG = ["train", *SMALL, "--rounds", "150", "--save-every", "1000", "--out", "run"]
SAVING = ["train", *SMALL, "--rounds", "12", "--save-every", "1", "--out", "run"]
SWEEP = ["sweep", *SMALL, "--rounds", "3", "--seeds", "0:1", "--grid", "local_steps=1,2", "--out", "run"]
GROUP_OF = "*local_steps={}*"
IN_A_THREAD = """
import signal, sys, threading
for number in (signal.SIGHUP, signal.SIGINT, signal.SIGTERM, signal.SIGUSR1):
    signal.signal(number, lambda *_: None)  # the program that the library serves decides what signals mean
from fedjax_rl import cli
codes = []
thread = threading.Thread(target=lambda: codes.append(cli.main(sys.argv[1:])))
thread.start()
while thread.is_alive():
    thread.join(0.1)
sys.exit(codes[0])
"""


class Seen(NamedTuple):
    """What can be seen of a running process from outside."""

    process: subprocess.Popen
    place: Path
    err: Drain

    def said(self, line: str) -> bool:
        """Did it say so on stderr?"""
        return line.encode() in self.err.content

    def imports(self) -> bool:
        """Is it importing jax?"""
        with contextlib.suppress(OSError):
            return "jaxlib" in Path(f"/proc/{self.process.pid}/maps").read_text()
        return False

    def holds(self, pattern: str) -> bool:
        """Is there such a file that is not empty, or such a directory?"""
        with contextlib.suppress(OSError):
            return any(path.stat().st_size for path in (self.place / "run").glob(pattern))
        return False


PHASES: dict[str, tuple[list[str], Callable[[Seen], bool]]] = {
    "start-up": (LONG, Seen.imports),
    "compilation": (LONG, lambda seen: seen.said("seed 0, in run")),
    "a round": (LONG, lambda seen: seen.holds("metrics.jsonl")),
    "a save": (SAVING, lambda seen: seen.holds("ckpt/*tmp*")),
    "between groups of a sweep": (SWEEP, lambda seen: seen.holds(f"{GROUP_OF.format(1)}/eval.jsonl")),
    "the last evaluation": (LONG, lambda seen: seen.said("evaluating")),
}


class Plan(NamedTuple):
    """One case: the phase, the signal (0: none), how it is met ("once", "twice", "ignored", "in a thread")."""

    phase: str
    number: int
    manner: str


def cases(home: Path, only: int | None = None) -> Iterator[Case]:
    """All of them, or so many drawn from them."""
    home.mkdir()
    plans = planned() if only is None else random.Random(0).sample(planned(), only)
    worker = Worker()
    whole = {argv: undisturbed(worker, home, argv) for argv in sorted({tuple(PHASES[p.phase][0]) for p in plans})}
    yield from each(lambda worker, plan: one(worker, home, plan, whole[tuple(PHASES[plan.phase][0])]), plans, worker)


def planned() -> list[Plan]:
    """Every phase x every signal x once and twice; ignored ones and a thread where they differ from that."""
    plans = [Plan(phase, number, manner) for phase in PHASES for number in SIGNALS for manner in ("once", "twice")]
    long = ("compilation", "a round", "the last evaluation")
    plans += [Plan(phase, number, "ignored") for phase in long for number in (signal.SIGHUP, signal.SIGINT)]
    plans += [Plan(phase, number, "in a thread") for phase in long for number in (*SIGNALS, 0)]
    return plans


def undisturbed(worker: Worker, home: Path, argv: tuple[str, ...]) -> list:
    """What the run comes to when nothing happens."""
    place = home / f"whole{len(argv)}{argv[argv.index('--rounds') + 1]}"
    place.mkdir()
    answer = worker.ask(argv, place, 600)
    assert answer.code == 0, answer
    return made(worker, place)


def made(worker: Worker, place: Path) -> list:
    """The last states and records of a run, or of a sweep's members."""
    run = place / "run"
    members = sorted(path.parent for path in run.rglob("config.toml") if "rejected" not in path.parts)
    return [(worker.state(path), records_of(path)) for path in members]


def is_lost(whole: list, came: list) -> bool:
    """Is a member's state another one, or one of its records nowhere?"""
    return len(came) != len(whole) or any(
        state != other or set(records) - set(others)
        for (state, records), (other, others) in zip(whole, came, strict=True)
    )


def one(worker: Worker, home: Path, plan: Plan, whole: list) -> Case:
    """Start it, send the signal in its phase, go on to the end, compare."""
    place = home / f"{plan.phase}-{plan.number}-{plan.manner}".replace(" ", "_")
    place.mkdir()
    argv, phase = PHASES[plan.phase]
    answer = disturbed(argv, phase, plan, place)
    name = signal.Signals(plan.number).name if plan.number else "no signal"
    resumed = Answer(0, "", "")
    came = whole  # where nothing was begun, nothing is lost
    if (place / "run").exists():
        if answer.code != 0:
            resumed = worker.ask(["resume", "run", "--quiet"], place)
        came = made(worker, place) if resumed.code == 0 else []
        if "it has no config.toml" in resumed.err and "continue with" not in answer.err:
            came = whole  # it had not begun, and did not say so
    if is_traceback(answer) or is_traceback(resumed):
        end = TRACEBACK
    elif is_lost(whole, came):
        end = LOST
    elif came != whole:  # records that the undisturbed run does not have
        end = SILENT
    elif plan.manner in ("ignored", "in a thread"):
        end = SURVIVED if answer.code == 0 else SILENT
    elif answer.code == 0:  # it had come to its end already
        end = SURVIVED
    else:
        # the shell shows the same code for a process that a signal ended itself: the second one may, and the first one
        # before the program has begun
        codes = [128 + plan.number, *([-plan.number] if plan.manner == "twice" else [])]
        ended = answer.code in codes and (name in answer.err or "interrupted" in answer.err)
        early = plan.phase == "start-up" and answer.code == -plan.number
        end = SURVIVED if ended or early else SILENT
    shutil.rmtree(place)
    said = f"[{answer.code}] {answer.err}\nresume: [{resumed.code}] {resumed.err}{'; other records' * (came != whole)}"
    return Case(f"ends: {plan.manner}, in {plan.phase}", f"{name}: {' '.join(argv)}", end, said)


def disturbed(argv: list[str], phase: Callable[[Seen], bool], plan: Plan, place: Path) -> Answer:
    """Run it, and send the signal as soon as it is in the phase; the second one a little later."""
    command = [sys.executable, *(["-c", IN_A_THREAD] if plan.manner == "in a thread" else ["-m", "fedjax_rl"]), *argv]
    ignored = signal.Signals(plan.number).name.removeprefix("SIG") if plan.manner == "ignored" else ""
    if ignored:
        command = ["sh", "-c", f'trap "" {ignored}; exec "$@"', "sh", *command]
    process = subprocess.Popen(command, cwd=place, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE)
    seen = Seen(process, place, Drain(process.stderr.fileno()))
    until = time.monotonic() + 300
    while process.poll() is None and not phase(seen):
        time.sleep(0.003)
    for _ in range(0 if not plan.number else 2 if plan.manner == "twice" else 1):
        process.send_signal(plan.number)
        time.sleep(0.1)
    try:
        code = process.wait(max(1.0, until - time.monotonic()))
    except subprocess.TimeoutExpired:
        process.kill()
        process.wait()
        code = None
    said = seen.err.text()
    process.stderr.close()
    return Answer(code, "", said)

"""Every file of a run and of a sweep, damaged in every way, read by every command that reads it."""

import hashlib
import json
import os
import random
import shutil
from collections.abc import Callable, Collection, Iterator
from pathlib import Path
from typing import NamedTuple

from faults.outcome import Answer, Case, judge
from faults.suite import TIMES
from faults.worker import ENV, Worker, each
from fedjax_rl.config import ConfigError, sources
from fedjax_rl.runs import rundir

LITTLE = "--preset tiny --episodes 1 --local-steps 1 --new-clients 0 --adapt-steps 0".split()
TINY = [*LITTLE, "--eval-every", "1", "--keep-every", "1"]
SMALL = ["fedavg", "--env", ENV, *TINY]
RECORDS = ("metrics.jsonl", "eval.jsonl")
BESIDE = (*TIMES, "crc32", "final")  # keys of records that may differ between a run and itself
# what is said where a file is not known to have been there
MISSED = {"eval.jsonl": "no final evaluation", "sweep.json": "is not a run directory", "digest.json": "has no digest"}
STEEP = "--env navigation --hidden 4 --server sgd --server-lr 1000 --local-lr 100 --max-change-norm 0".split()
BASES: dict[str, list[str]] = {
    "run": ["train", *SMALL, "--rounds", "4"],
    "sweep": ["sweep", *SMALL, "--rounds", "6", "--seeds", "0:2"],
    "steep": ["train", "fedavg", *TINY, *STEEP, "--rounds", "2", "--nan-dump", "1"],
    "robot": ["train", "fedavg", *TINY, "--rounds", "2", "--backend", "fused"],
}
COMMANDS: dict[tuple[str, str], list[str]] = {
    ("run", "resume"): ["resume", "run", "--rounds", "6", "--quiet"],
    ("run", "eval"): ["eval", "run", "--json"],
    ("run", "report"): ["report", "run", "--json"],
    ("steep", "replay"): ["replay", "steep/nan/round2-client0.npz"],
    ("sweep", "resume"): ["resume", "sweep", "--quiet"],
    ("swept", "report"): ["report", "swept", "--json"],
    ("robot", "render"): ["render", "robot", "--out", "film.html"],
}


class Plan(NamedTuple):
    """One case: what is damaged, in which way, and who reads it. `base` is the name of what is copied first."""

    base: str
    file: Path
    damage: str
    command: str
    seed: int


def cases(home: Path, only: int | None = None, bases: Collection[str] = BASES) -> Iterator[Case]:
    """All of them, or so many drawn from them."""
    home.mkdir()
    worker = Worker()
    make(worker, home, bases)
    plans = planned(home)
    if only is not None:  # three quarters in the files that people can read, which are the fewer
        draw, binary = random.Random(0), [plan for plan in plans if "default" in plan.file.parts]
        text = [plan for plan in plans if plan not in binary]
        plans = draw.sample(text, 3 * only // 4) + draw.sample(binary, only - 3 * only // 4)
    whole = {command: run(worker, home, *command) for command in sorted({(p.base, p.command) for p in plans})}
    yield from each(lambda worker, plan: one(worker, home, plan, whole[plan.base, plan.command]), plans, worker)


def make(worker: Worker, home: Path, bases: Collection[str]) -> None:
    """A run, a sweep, a run that can be rendered and one that makes a dump, where they are asked for."""
    for base in bases:
        answer = worker.ask([*BASES[base], "--out", base], home, 600)
        assert answer.code == 0, answer
    if "sweep" in bases:
        shutil.copytree(home / "sweep", home / "swept")
    for member in (home / "sweep").glob("seed=*"):  # as if it had been killed in its fifth round
        for name, kept in ((RECORDS[0], 5), (RECORDS[1], 4)):
            lines = (member / name).read_bytes().splitlines(keepends=True)
            (member / name).write_bytes(b"".join(lines[:kept]))
        for step in (5, 6):
            (member / "ckpt" / f"{step}.digest.json").unlink()
            shutil.rmtree(member / "ckpt" / str(step))


def planned(home: Path) -> list[Plan]:
    """Every file x every damage that can be done to it x every command that reads it, in a fixed order."""
    plans = []
    for base, command in (pair for pair in COMMANDS if (home / pair[0]).exists()):
        for file in sorted(p.relative_to(home / base) for p in (home / base).rglob("*") if p.is_file()):
            if reads(base, command, file):
                content = (home / base / file).read_bytes()
                names = [name for name in DAMAGES if name not in ON_LINES or content.count(b"\n") > 2]
                plans += [Plan(base, file, name, command, len(plans) + i) for i, name in enumerate(names)]
    return plans


def reads(base: str, command: str, file: Path) -> bool:
    """Is the file one that this command reads: of the steps the newest, and of an older one its digest?"""
    if command == "replay" or file.parts[0] == "nan":
        return command == "replay" and file.parts[0] == "nan"
    newest = "2" if base == "robot" else "4"
    if file.parts[0] == "seed=1":  # the second member's are as the first's
        return False
    parts = file.parts[1:] if file.parts[0] == "seed=0" else file.parts
    if parts[0] == "ckpt":
        return command != "report" and parts[1] in (newest, f"{newest}.digest.json", f"{int(newest) - 1}.digest.json")
    if command == "render":
        return parts[0] == "config.toml"
    return not (command == "report" and parts[0] in (".lock", "env.json"))


def one(worker: Worker, home: Path, plan: Plan, whole: "Result") -> Case:
    """Copy, damage, run, look."""
    place = home / f"case{plan.seed}{plan.base}"
    shutil.copytree(home / plan.base, place / plan.base, symlinks=True)
    path = place / plan.base / plan.file
    DAMAGES[plan.damage](path, random.Random(plan.seed))
    before, is_edit = Content.of(place / plan.base), edited(path, home / plan.base / plan.file)
    mine = run(worker, place, plan.base, plan.command, path)
    lost = before.lost(Content.of(place / plan.base), plan.command == "resume", mine.answer.err)
    names = [plan.file.name, *(words for name, words in MISSED.items() if plan.file.name.endswith(name))]
    end = judge(mine.answer, same=is_edit or mine.same_as(whole), names=names, lost=lost)
    what = f"{plan.base}/{plan.file}, then {' '.join(COMMANDS[plan.base, plan.command])}"
    shutil.rmtree(place)
    return Case(f"damage: {plan.damage}", what, end, f"[{mine.answer.code}] {lost} {mine.answer.err}")


def edited(path: Path, whole: Path) -> bool:
    """Is it a configuration that is not the whole one and keeps its seal? A person may change it so: no damage."""
    try:
        text = path.read_text(encoding="utf-8")
        differs = path.name == rundir.CONFIG and text != whole.read_text(encoding="utf-8")
        return differs and sources.SEAL in text and bool(sources.loads(text, path.name))
    except (OSError, ValueError, ConfigError):
        return False


class Result(NamedTuple):
    """What a command answered, and what a resume made: the last states' hashes and all records."""

    answer: Answer
    state: object = None

    def same_as(self, whole: "Result") -> bool:
        """Is it the undisturbed one's?"""
        return (self.answer.code, self.answer.out, self.state) == (whole.answer.code, whole.answer.out, whole.state)


def run(worker: Worker, place: Path, base: str, command: str, path: Path | None = None) -> Result:
    """One command on what lies in a place (on a copy of it, where nothing is damaged), and what it left."""
    if path is None:
        shutil.copytree(place / base, place / "whole" / base)
        place = place / "whole"
    answer = worker.ask(COMMANDS[base, command], place)
    if path is not None and os.path.lexists(path):
        path.chmod(0o700 if path.is_dir() else 0o600)
    film = place / "film.html"
    state = hashlib.sha256(film.read_bytes()).hexdigest() if film.exists() else None
    if command == "resume" and answer.code == 0:
        runs = [place / base] if base == "run" else sorted((place / base).glob("seed=*"))
        state = [(worker.state(run), records_of(run)) for run in runs]
        answer = answer._replace(out="")  # the minutes it took
    if path is None:
        shutil.rmtree(place)
    return Result(answer, state)


def records_of(run: Path) -> list[str]:
    """All records of a run as they are compared."""
    lines = [line for name in RECORDS if (run / name).is_file() for line in (run / name).read_bytes().split(b"\n")]
    return [_without_times(line) for line in lines if line]


def _without_times(line: bytes) -> str:
    """A record as it is compared: what was the last evaluation becomes one of many when a run goes on from before."""
    try:
        return json.dumps({key: value for key, value in json.loads(line).items() if key not in BESIDE})
    except (ValueError, AttributeError, RecursionError):
        return repr(line)


class Content(NamedTuple):
    """What a directory holds: every file's hash, and every record of its .jsonl files."""

    files: dict[str, str]
    records: dict[str, str]

    @classmethod
    def of(cls, directory: Path) -> "Content":
        """Read all that is there, damaged or not."""
        files, records = {}, {}
        for path in directory.rglob("*"):
            if path.is_file():
                name, mode = str(path.relative_to(directory)), path.stat().st_mode
                path.chmod(0o600)
                content = path.read_bytes()
                path.chmod(mode)
                files[name] = hashlib.sha256(content).hexdigest()
                if ".jsonl" in name:
                    *lines, _ = content.split(b"\n")  # a last line without an end is a crash's
                    records |= {_without_times(line): name for line in lines}
        return cls(files, records)

    def lost(self, after: "Content", may_write: bool, said: str) -> str:
        """What of this is nowhere any more; a command that only reads leaves everything as it is."""
        if not may_write:
            return "" if self == after else "a command that reads has changed the run"
        kept = set(after.files.values())
        gone = [name for name, content in self.files.items() if "ckpt" in name and content not in kept]
        gone += [f"{name}: {line[:60]}" for line, name in self.records.items() if line not in after.records]
        return f"lost: {', '.join(gone)}" if gone else ""


def _rewrite(change: Callable[[bytes, random.Random], bytes]) -> Callable[[Path, random.Random], None]:
    return lambda path, draw: (path.write_bytes(change(path.read_bytes(), draw)), None)[1]


def _flip(content: bytes, draw: random.Random) -> bytes:
    at = draw.randrange(8 * len(content)) if content else 0
    return bytes(c ^ (1 << at % 8 if i == at // 8 else 0) for i, c in enumerate(content)) or b"\1"


def _digit(content: bytes, draw: random.Random) -> bytes:
    places = [i for i, c in enumerate(content) if c in b"0123456789"]
    if not places:
        return content + b"7"
    at = draw.choice(places)
    return content[:at] + bytes([48 + (content[at] - 48 + draw.randrange(1, 9)) % 10]) + content[at + 1 :]


def _lines(change: Callable[[list[bytes], int], list[bytes]]) -> Callable[[Path, random.Random], None]:
    def do(content: bytes, draw: random.Random) -> bytes:
        lines = content.splitlines(keepends=True)
        return b"".join(change(lines, draw.randrange(max(1, len(lines) - 1))))

    return _rewrite(do)


def _to_directory(path: Path, draw: random.Random) -> None:
    path.unlink()
    path.mkdir()


DAMAGES: dict[str, Callable[[Path, random.Random], None]] = {
    "a file deleted": lambda path, draw: path.unlink(),
    "emptied": _rewrite(lambda content, draw: b""),
    "cut": _rewrite(lambda content, draw: content[: draw.randrange(len(content)) if content else 0]),
    "a bit flipped": _rewrite(_flip),
    "a digit changed": _rewrite(_digit),
    "a line of junk": _lines(lambda lines, at: [*lines[:at], b"junk {[\n", *lines[at:]]),
    "a line twice": _lines(lambda lines, at: [*lines[: at + 1], *lines[at:]]),
    "two lines swapped": _lines(lambda lines, at: [*lines[:at], *lines[at : at + 2][::-1], *lines[at + 2 :]]),
    "Latin-1": _rewrite(lambda content, draw: content[: len(content) // 2] + b"\xe9" + content[len(content) // 2 :]),
    "UTF-16": _rewrite(lambda content, draw: content.decode("latin-1").encode("utf-16")),
    "a directory in its place": _to_directory,
    "made unreadable": lambda path, draw: path.chmod(0),
}
ON_LINES = ("a line twice", "two lines swapped")

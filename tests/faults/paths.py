"""Run directories of every name that a file system allows, in every kind of place: trained, then read by that name.

Survived: train, resume, eval and report come to what they come to in a plain directory. Refused: `train` says so in one
line and has written nothing.
"""

import contextlib
import json
import os
import random
import shutil
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import NamedTuple

from faults.damage import LITTLE, records_of
from faults.outcome import LOST, REFUSED, SURVIVED, TRACEBACK, Case, is_traceback, judge
from faults.worker import ENV, Worker, each

TRAIN = ["train", "fedavg", "--env", ENV, *LITTLE, "--eval-every", "0", "--rounds", "2", "--quiet"]
SIGNS = [chr(number) for number in (1, 7, 8, 9, 10, 11, 13, 14, 27, 31, 127)]
SIGNS += [*"'\"`$*?[]{}()%#|;&<>:\\!=,@+^~ -._"]
SIGNS += [
    "\x1b[31m",
    "\x1b]0;title\x07",
    "$(touch x)",
    "${HOME}",
    "%s%n",
    "{0}",
    "[red]",
    "\\n",
    "\\x00",
    "..",
    "--help",
]
SIGNS += [
    "\x9b",
    "\xa0",
    "\xad",
    "é",
    "e\u0301",
    "\u0301",
    "\u202e",
    "\u2028",
    "\u200d",
    "\ufeff",
    "مرحبا",
    "漢字",
    "🤖",
]
SIGNS += [os.fsdecode(raw) for raw in (b"\xff", b"\xe9", b"\x80", b"\xc3", b"\xed\xa0\x80", b"\xf5\x80\x80\x80")]
WHOLE = [
    "gs:",
    "gs:x",
    "file:",
    "s3:",
    "hdfs:",
    "~",
    "~root",
    "-",
    "--",
    "-x",
    "--json",
    " ",
    "  ",
    ".x",
    "x.",
    "...",
    "1",
]
WHOLE += [
    "ckpt",
    "config.toml",
    "sweep.json",
    ".lock",
    "4.digest.json",
    "x.orbax-checkpoint-tmp",
    "nan",
    "rejected",
    "CON",
]
WHOLE += ["gs://x", "file:///x", "https://x/y", "a//b", "a/./b", "a/../b", "a/", "./a", "ckpt/ckpt"]
WHOLE += ["x" * 200, "x" * 240, "x" * 254, "x" * 255, "x" * 256, "é" * 127, "🤖" * 63, "\xff" * 100]
WHOLE += ["/".join(["d" * 100] * depth) for depth in (5, 20, 30, 36, 38, 39, 42)] + ["/".join(["d"] * 500)]


class Plan(NamedTuple):
    """One case: the row it belongs to and the directory's name as it is typed, below a place of its own."""

    fault: str
    name: str
    is_absolute: bool


def names() -> list[Plan]:
    """Every sign at the beginning, within and at the end of a name; whole names; random mixtures; 200 and a few."""
    draw = random.Random(0)
    plans = [("a sign", place.format(sign)) for sign in SIGNS for place in draw.sample(["{}run", "r{}n", "run{}"], 2)]
    plans += [("a whole name", name) for name in WHOLE]
    plans += [("a mixture of signs", "".join(draw.choices(SIGNS, k=6))) for _ in range(30)]
    # a name of a directory that begins with a dash is typed after "./": as it is, it is an option
    return [Plan(fault, name, i % 2 == 0) for i, (fault, name) in enumerate(plans)]


def cases(home: Path, only: int | None = None) -> Iterator[Case]:
    """All of them, or so many drawn from them."""
    home.mkdir()
    worker = Worker()
    (home / "plain").mkdir()
    whole, _ = use(worker, home / "plain", "run")
    plans: list[tuple] = [(named, plan) for plan in names()] + [(placed, name) for name in PLACES]
    if only is not None:
        plans = random.Random(0).sample(plans, only)
    numbered = list(enumerate(plans))
    yield from each(lambda worker, plan: plan[1][0](worker, home / str(plan[0]), plan[1][1], whole), numbered, worker)


def named(worker: Worker, place: Path, plan: Plan, whole: list) -> Case:
    """A directory of that name."""
    place.mkdir()
    path = f"{place}/{plan.name}" if plan.is_absolute else plan.name
    found, said = use(worker, place, path)
    end = verdict(found, whole, path, place)
    with contextlib.suppress(OSError):  # some are too deep to be removed by name; the home is, in the end
        shutil.rmtree(place)
    kind = "absolute" if plan.is_absolute else "relative"
    return Case(f"paths: {plan.fault}, {kind}", repr(plan.name[:80]), end, said)


def use(worker: Worker, place: Path, path: str) -> tuple[list, str]:
    """Train there, resume, evaluate and report by the same name: [(answer, what it came to)], and all that was said."""
    given = path if path.startswith("-") is False else f"./{path}"
    found, said = [], ""
    for argv in ([*TRAIN, f"--out={path}"], ["resume", given, "--rounds", "3", "--quiet"], ["eval", given, "--json"]):
        found.append(look(worker, place, argv, path))
        said += f"{argv[0]} [{found[-1][0].code}] {found[-1][0].err}"
        if found[-1][0].code != 0:
            return found, said
    found.append(look(worker, place, ["report", given, "--json"], path))
    return found, said + f"report [{found[-1][0].code}] {found[-1][0].err}"


def look(worker: Worker, place: Path, argv: list[str], path: str) -> tuple:
    """(answer, what it came to): the state and records that were trained, or the numbers that were printed."""
    answer = worker.ask(argv, place)
    if answer.code != 0:
        return answer, None
    if argv[0] in ("train", "resume"):
        run = place / path
        return answer, (worker.state(run), records_of(run))
    record = json.loads(answer.out)
    return answer, record.get("returns", record.get("rows"))


def verdict(found: list, whole: list, path: str, place: Path) -> str:
    """What is trained must be usable; what is refused must leave nothing behind."""
    answer = found[0][0]
    if answer.code == 0:
        if any(is_traceback(a) for a, _ in found):
            return TRACEBACK
        usable = [(a.code, came) for a, came in found] == [(a.code, came) for a, came in whole]
        return SURVIVED if usable else LOST
    left = [p for p in place.rglob("*") if p.is_file()]
    lost = f"left behind: {left[:3]}" if left else ""
    return judge(answer, same=False, names=["--out", "cannot write", repr(path)[1:-1][:40]], lost=lost)


def placed(worker: Worker, place: Path, name: str, whole: list) -> Case:
    """A place that is no plain directory."""
    place.mkdir()
    prepare, argv, is_usable = PLACES[name]
    prepare(place)
    if argv is None:
        found, said = use(worker, place, "run")
        end = verdict(found, whole, "run", place) if is_usable else REFUSED
        if not is_usable:
            end = judge(found[0][0], same=False, names=["run"])
    else:
        made = worker.ask([*TRAIN, "--out", "inner/run"], place)
        assert made.code == 0, made
        prepare(place)
        answer = worker.ask(argv, place)
        end = judge(answer, same=is_usable and answer.code == 0, names=["run"])
        said = f"[{answer.code}] {answer.err}"
    for path in [place, *place.rglob("*")]:
        if not path.is_symlink():
            path.chmod(0o700)
    shutil.rmtree(place)
    return Case("paths: a link, or a place without rights", f"{name}: {' '.join(argv or TRAIN[:1])}", end, said)


def _mode(number: int, owner: int | None = None) -> Callable[[Path], None]:
    """Give all of inner/run, or run, such rights, and another owner where that can be done."""

    def do(place: Path) -> None:
        root = place / "inner" / "run"
        if not root.exists():
            return
        for path in [*root.rglob("*"), root]:
            if owner is not None and os.geteuid() == 0:
                os.chown(path, owner, owner)
            path.chmod(number if path.is_dir() else number & 0o666)

    return do


def _closed(number: int, owner: int | None = None) -> Callable[[Path], None]:
    """A directory `run` with such rights, empty."""

    def do(place: Path) -> None:
        (place / "run").mkdir()
        if owner is not None and os.geteuid() == 0:
            os.chown(place / "run", owner, owner)
        (place / "run").chmod(number)

    return do


def _linked(target: str, make: bool = False) -> Callable[[Path], None]:
    def do(place: Path) -> None:
        if make:
            (place / target).mkdir()
        (place / "run").symlink_to(target)

    return do


READ = (["eval", "inner/run"], ["report", "inner/run"])
RESUME = ["resume", "inner/run", "--rounds", "3"]
# what is done to the place; the command on a run in inner/run, or None: train `run` anew; can it be done?
PLACES: dict[str, tuple[Callable[[Path], None], list[str] | None, bool]] = {
    "a link to a directory": (_linked("there", make=True), None, True),
    "a link to nothing": (_linked("nowhere"), None, True),
    "a link to itself": (_linked("run"), None, False),
    "a link to a file": (lambda place: [(place / "f").touch(), (place / "run").symlink_to("f")][0], None, False),
    "a link to a device": (_linked("/dev/null"), None, False),
    "a file": (lambda place: (place / "run").touch(), None, False),
    "a pipe": (lambda place: os.mkfifo(place / "run"), None, False),
    "a directory without rights": (_closed(0), None, False),
    "a directory to read only": (_closed(0o555), None, False),
    "a directory that may be written, not listed": (_closed(0o333), None, True),
    "another's directory": (_closed(0o755, owner=12345), None, os.geteuid() != 0),
    "another's directory, closed": (_closed(0o700, owner=12345), None, os.geteuid() != 0),
    **{f"a run to read only, {argv[0]}": (_mode(0o555), argv, True) for argv in READ},
    **{f"another's run, {argv[0]}": (_mode(0o555, owner=12345), argv, True) for argv in READ},
    **{f"a run without rights, {argv[0]}": (_mode(0), argv, False) for argv in (*READ, RESUME)},
    "a run to read only, resume": (_mode(0o555), RESUME, False),
    "another's run, resume": (_mode(0o755, owner=12345), RESUME, os.geteuid() != 0),
    "another's run, closed, report": (_mode(0o700, owner=12345), READ[1], os.geteuid() != 0),
}

"""Two processes of one run: they differ, one is missing or late, one is killed in each phase."""

import os
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path

from faults import suite
from faults.outcome import LOST, REFUSED, SILENT, Answer, Case, judge
from fedjax_rl.runs import rundir

ENV = os.environ.get("FAULTS_ENV", "probe/delayed")  # as in worker.py, with a quicker one where none is named
TINY = ("fedavg", "--preset", "tiny", "--env", ENV, "--hidden", "4", "--num-clients", "4")
SMALL = (*TINY, "--clients-per-round", "2", "--episodes", "1", "--local-steps", "1", "--new-clients", "0")
TRAIN = ("train", *SMALL, "--adapt-steps", "0", "--rounds", "40", "--save-every", "10", "--eval-every", "0")
PHASES = ("compilation", "a round", "a save", "the last evaluation")
WAIT_S = 400  # for what may take long on a busy machine; that nothing hangs is what a test asks


def cases(home: Path) -> Iterator[Case]:
    """All of them, with runs below `home`."""
    home.mkdir(parents=True, exist_ok=True)
    yield from differing(home)
    yield from missing(home)
    yield from killed(home, PHASES, (0, 1))
    yield from signalled(home)


def differing(home: Path, only: Sequence[str] = ()) -> Iterator[Case]:
    """The second process has another option, variable, package, directory or command: refused in both, unwritten."""
    shim = home / "shim"
    shim.mkdir(exist_ok=True)
    lines = [
        "import importlib.metadata as m",
        "old = m.version",
        "m.version = lambda p: 'X' if p == 'mujoco' else old(p)",
    ]
    (shim / "sitecustomize.py").write_text("\n".join(lines) + "\n")
    path = os.pathsep.join([str(shim), os.environ.get("PYTHONPATH", "")])
    out = ("--out", str(home / "differing"))
    train, sweep = (*TRAIN, *out), ("sweep", *SMALL, "--rounds", "1", *out)
    ways: dict[str, tuple[Sequence[str], Sequence[str], Mapping[str, str], str]] = {
        "option": (train, (*train, "--local-lr", "50"), {}, "differ in local_lr: 0.001 and 50.0"),
        "rounds": (train, (*train, "--rounds", "41"), {}, "differ in rounds: 40 and 41"),
        "variable": (train, train, {"FEDJAX_RL_LOCAL_LR": "50"}, "differ in local_lr: 0.001 and 50.0"),
        "flag of XLA": (train, train, {"XLA_FLAGS": "--xla_cpu_enable_fast_math=true"}, "differ in XLA_FLAGS"),
        "version": (train, train, {"PYTHONPATH": path}, "differ in mujoco"),
        "directory": (train, (*TRAIN, "--out", str(home / "other")), {}, "differ in directory"),
        "seeds": (sweep, (*sweep, "--seeds", "0:2"), {}, "differ in --seeds: 0:3 and 0:2"),
        "command": (train, sweep, {}, "differ in command: train and sweep"),
    }
    for name in only or ways:
        first, second, variables, said = ways[name]
        pair = Pair(home, first, second, variables)
        what = f"{' '.join(second)} {dict(variables) if name != 'version' else 'another mujoco'}"
        written = [p for p in ("differing", "other") if (home / p).exists()]
        yield pair.case(f"another {name}", what, 2, [said], lost="written" if written else "")


def missing(home: Path) -> Iterator[Case]:
    """One of two does not come, or is late; or something else listens at the port."""
    for number in (0, 1):
        train = (*TRAIN, "--out", str(home / "missing"), "--join-timeout", "3")
        pair = Pair(home, *(train if i == number else None for i in (0, 1)))
        yield pair.case("a missing process", f"only process {number}", 6, [f"process {1 - number}", "did not come"])
    with socket.create_server(("", 0)) as taken:
        train = (*TRAIN, "--out", str(home / "taken"), "--join-timeout", "3")
        pair = Pair(home, train, None, port=taken.getsockname()[1])
        yield pair.case("a missing process", "the port is taken", 2, ["choose another port"])
        pair = Pair(home, None, train, port=taken.getsockname()[1])
        yield pair.case("a missing process", "something else listens", 6, ["something else answers"])
    run = home / "late"
    pair = Pair(home, (*TRAIN, "--out", str(run)), (*TRAIN, "--out", str(run)), delay=5.0)
    same = pair.codes() == [0, 0] and suite.last_hash(run) == undisturbed(home)
    yield Case("a late process", "5 s late", judge(pair.answers[0], same=same, names=["late"]), str(pair.answers))


def killed(home: Path, phases: Sequence[str], victims: Sequence[int]) -> Iterator[Case]:
    """SIGKILL to one of two: the other ends with one line and 6; `resume` of both gives the undisturbed run's bits."""
    for phase in phases:
        for victim in victims:
            run = home / f"{phase.replace(' ', '-')}-{victim}"
            command = (*TRAIN, "--out", str(run))
            pair = Pair(home, command, command)
            pair.when(lambda: _is_in(phase, pair, run))
            pair.kill(victim)
            said = [f"process {victim} of 2 is gone"]
            case = pair.case(f"killed in {phase}", f"process {victim} of 2", 6, said, but=victim)
            if case.end == REFUSED:
                again = ("resume", str(run)) if (run / rundir.CONFIG).exists() else command
                codes = Pair(home, again, again).codes()
                if codes != [0, 0] or suite.last_hash(run) != undisturbed(home):
                    case = case._replace(end=LOST, said=f"resumed: {codes}")
            yield case


def signalled(home: Path) -> Iterator[Case]:
    """SIGTERM to one of two, in a round: both end with 143, saved; `resume` gives the undisturbed run's bits."""
    run = home / "signalled"
    pair = Pair(home, (*TRAIN, "--out", str(run)), (*TRAIN, "--out", str(run)))
    pair.when(lambda: _is_in("a round", pair, run))
    pair.kill(1, signal.SIGTERM)
    case = pair.case("SIGTERM to one process", "process 1 of 2", 143, ["interrupted (SIGTERM) and saved"])
    codes = Pair(home, ("resume", str(run)), ("resume", str(run))).codes()
    is_same = codes == [0, 0] and suite.last_hash(run) == undisturbed(home)
    yield case if is_same else case._replace(end=LOST, said=f"resumed: {codes}")


def _is_in(phase: str, pair: "Pair", run: Path) -> bool:
    said = pair.said(0)
    if phase == "compilation":
        return f" on {ENV}, seed" in said
    if phase == "the last evaluation":
        return "evaluating 4 clients" in said
    if phase == "a round":
        return (run / rundir.METRICS).exists() and (run / rundir.METRICS).read_text().count("\n") > 14
    begun = {p.name.split(".")[0] for p in (run / rundir.CHECKPOINTS).glob("[1-9]*")}
    return any(not (run / rundir.CHECKPOINTS / f"{step}.digest.json").exists() for step in begun)


def undisturbed(home: Path) -> str:
    """The last state's hash of a run of two processes that nothing happened to; made once."""
    run = home / "undisturbed"
    if not run.exists():
        pair = Pair(home, (*TRAIN, "--out", str(run)), (*TRAIN, "--out", str(run)))
        assert pair.codes() == [0, 0], pair.answers
    return suite.last_hash(run)


class Pair:
    """Two processes of one device each; None for one that is not started. What they say goes into files."""

    def __init__(
        self,
        home: Path,
        first: Sequence[str] | None,
        second: Sequence[str] | None,
        variables: Mapping[str, str] | None = None,
        *,
        port: int | None = None,
        delay: float = 0.0,
    ) -> None:
        if port is None:
            with socket.create_server(("", 0)) as free:
                port = free.getsockname()[1]
        self.stem = home / f"said-{time.monotonic_ns()}"
        self.started: dict[int, subprocess.Popen] = {}
        self.answers: dict[int, Answer] = {}
        where = ("--coordinator", f"localhost:{port}", "--num-processes", "2", "--process-id")
        environ = {**os.environ, "JAX_NUM_CPU_DEVICES": "1", "JAX_PLATFORMS": "cpu"}
        for number, command in enumerate((first, second)):
            if command is None:
                continue
            time.sleep(delay * number)
            with open(self._path(number, "out"), "w") as out, open(self._path(number, "err"), "w") as err:
                self.started[number] = subprocess.Popen(
                    [sys.executable, "-m", "fedjax_rl", *command, *where, str(number)],
                    env={**environ, **((variables or {}) if number else {})},
                    stdout=out,
                    stderr=err,
                )

    def _path(self, number: int, stream: str) -> Path:
        return self.stem.with_name(f"{self.stem.name}-{number}.{stream}")

    def said(self, number: int) -> str:
        """What a process has said on stderr so far."""
        return self._path(number, "err").read_text()

    def when(self, is_time: Callable[[], bool]) -> None:
        """Wait for it, as long as both live."""
        while not is_time() and all(process.poll() is None for process in self.started.values()):
            time.sleep(0.005)

    def kill(self, number: int, by: signal.Signals = signal.SIGKILL) -> None:
        """Send a signal to one of them."""
        self.started[number].send_signal(by)

    def codes(self) -> list[int | None]:
        """Wait for both: their exit codes, None for one that hung."""
        deadline = time.monotonic() + WAIT_S
        for number, process in self.started.items():
            try:
                code = process.wait(max(deadline - time.monotonic(), 0.1))
            except subprocess.TimeoutExpired:
                process.kill()
                process.wait()
                code = None
            texts = (self._path(number, stream).read_text() for stream in ("out", "err"))
            self.answers[number] = Answer(code, *texts)
        return [answer.code for answer in self.answers.values()]

    def case(
        self, fault: str, what: str, code: int, names: Sequence[str], *, lost: str = "", but: int | None = None
    ) -> Case:
        """The worst end of the processes but one: each has to say all `names` in one line, and end with `code`."""
        self.codes()
        ends = []
        for number, answer in self.answers.items():
            if number == but:
                continue
            end = judge(answer, same=False, names=names, lost=lost, codes=[code])
            lines = [line for line in answer.err.splitlines() if line.startswith("fedjax-rl: ")]
            is_said = len(lines) == 1 and all(name in lines[0] for name in names) and answer.code == code
            ends.append(SILENT if end == REFUSED and not is_said else end)
        return Case(fault, what, max(ends, key=lambda end: end != REFUSED), str(self.answers))

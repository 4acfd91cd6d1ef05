"""Faults done to whole runs: killed, starved, moved to another engine, configured impossibly; and long runs."""

import json
import os
import random
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import NamedTuple

import jax

from faults.outcome import LOST, REFUSED, SILENT, SURVIVED, TRACEBACK, Answer, Case, is_traceback
from faults.worker import ENV, Worker
from fedjax_rl.runs import assemble, checkpoint, rundir
from fedjax_rl.runs.arrays import state_hash
from fedjax_rl.runs.records import sound

SMALL = ("fedavg", "--preset", "tiny", "--env", ENV, "--episodes", "1", "--new-clients", "0", "--adapt-steps", "0")
TIMES = ("sys/round_s", "sys/env_steps_per_s", "sys/compile_s", "time")


def start(*args: str, kilobytes: int | None = None) -> subprocess.Popen:
    """The command line in a process of its own, whose files may not grow beyond so many kilobytes."""
    limit = [] if kilobytes is None else ["bash", "-c", f'ulimit -f {kilobytes}; exec "$@"', "bash"]
    command = [*limit, sys.executable, "-m", "fedjax_rl", *args]
    return subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)


def finish(*args: str, kilobytes: int | None = None) -> tuple[int, str]:
    """(exit code, what it said on stderr)."""
    process = start(*args, kilobytes=kilobytes)
    _, errors = process.communicate(timeout=600)
    return process.returncode, errors


def new_run(out: Path, rounds: int, *more: str) -> tuple[str, ...]:
    """The arguments of a small run that saves every round."""
    return (
        "train",
        *SMALL,
        "--rounds",
        str(rounds),
        "--save-every",
        "1",
        "--eval-every",
        "0",
        "--out",
        str(out),
        *more,
    )


def last_hash(run: Path) -> str:
    """The hash of the newest state, verified."""
    config = rundir.open_run(run)
    like = assemble.abstract_state(assemble.make_run(config))
    restored = checkpoint.restore(run / rundir.CHECKPOINTS, like, print)
    assert restored.step == config.rounds, f"{run} ended at {restored.step}"
    return state_hash(restored.state)


def records(run: Path) -> list[dict]:
    """The metrics without times."""
    lines = sound(run / rundir.METRICS)
    return [{key: value for key, value in line.items() if key not in TIMES} for line in lines]


def undisturbed(home: Path, rounds: int) -> Path:
    """A run that nothing happened to."""
    run = home / f"whole{rounds}"
    if not run.exists():
        code, errors = finish(*new_run(run, rounds))
        assert code == 0, errors
    return run


def kills(home: Path, count: int) -> Iterator[Case]:
    """SIGKILL at a random moment, `count` times on one run, each followed by a resume."""
    rounds, run, draw = 3 * count + 5, home / "killed", random.Random(0)
    command = new_run(run, rounds)
    for _ in range(count):
        begun = len(records(run)) if run.exists() else 0
        process = start(*command)
        while process.poll() is None and len(records(run)) <= begun:
            time.sleep(0.02)
        time.sleep(draw.uniform(0, 0.5))
        process.kill()
        process.communicate()
        assert process.returncode == -signal.SIGKILL, "it had ended already"
        command = ("resume", str(run))
    code, errors = finish(*command)
    equal = code == 0 and last_hash(run) == last_hash(undisturbed(home, rounds))
    equal = equal and records(run) == records(undisturbed(home, rounds))
    end = SURVIVED if equal else TRACEBACK if is_traceback(Answer(code, "", errors)) else LOST
    for number in range(count):
        yield Case("SIGKILL at a random moment, then resume", f"kill {number + 1} of {count}", end, errors)


def corruptions(home: Path, places: int) -> Iterator[Case]:
    """Every file of the newest step deleted, emptied, cut in half, and one bit flipped at so many places."""
    whole, draw = undisturbed(home, 5), random.Random(1)
    like = assemble.abstract_state(assemble.make_run(rundir.open_run(whole)))
    before = state_hash(checkpoint.restore(whole / rundir.CHECKPOINTS, like, print, 4).state)
    names = [p.relative_to(whole) for p in (whole / rundir.CHECKPOINTS / "5").rglob("*") if p.is_file()]
    for name in sorted([*names, Path(rundir.CHECKPOINTS, "5.digest.json")]):
        for damage in damages((whole / name).stat().st_size, places, draw):
            copy = home / "damaged"
            shutil.rmtree(copy, ignore_errors=True)
            shutil.copytree(whole, copy)
            damage(copy / name)
            said: list[str] = []
            restored = checkpoint.restore(copy / rundir.CHECKPOINTS, like, said.append)
            # without its digest a step was never finished, and is what is named
            named = any(name.name in line or "has no digest" in line for line in said)
            end = SURVIVED if state_hash(restored.state) == before and named else SILENT
            yield Case("the newest checkpoint damaged: every file, many places", str(name), end, "; ".join(said))


def damages(size: int, places: int, draw: random.Random) -> list[Callable[[Path], None]]:
    """What is done to a file of that size."""

    def flip(place: int) -> Callable[[Path], None]:
        def do(path: Path) -> None:
            content = bytearray(path.read_bytes())
            content[place // 8] ^= 1 << place % 8
            path.write_bytes(content)

        return do

    flips = [flip(draw.randrange(8 * size)) for _ in range(places)] if size else []
    cut = [lambda path: os.truncate(path, size // 2), lambda path: os.truncate(path, 0)] if size else []
    return [Path.unlink, *cut, *flips]


def repeated(home: Path) -> Iterator[Case]:
    """Two fresh processes with one seed: equal files but for the time fields."""
    runs = [undisturbed(home, 5), home / "again"]
    code, errors = finish(*new_run(runs[1], 5))
    assert code == 0, errors
    files = [(run / rundir.METRICS).read_text().splitlines() for run in runs]
    names = (*TIMES, "crc32")
    plain = [[json.dumps({k: v for k, v in json.loads(line).items() if k not in names}) for line in f] for f in files]
    equal = plain[0] == plain[1] and last_hash(runs[0]) == last_hash(runs[1])
    yield Case("the same seed in another process", "train", SURVIVED if equal else SILENT)


def full_disk(home: Path) -> Iterator[Case]:
    """No file may grow beyond 20 kB: the next checkpoint cannot be written; the older ones stay and serve."""
    run = home / "full"
    shutil.copytree(undisturbed(home, 5), run)
    code, errors = finish("resume", str(run), "--rounds", "11", kilobytes=20)
    # orbax's own threads may say more, of an event loop that is closed already, and in the middle of our line
    refused = code == 1 and errors.count("fedjax-rl: cannot save") == 1
    intact = 5 in checkpoint.steps(run / rundir.CHECKPOINTS)
    again, _ = finish("resume", str(run), "--rounds", "11")  # as many as two kills take
    equal = again == 0 and last_hash(run) == last_hash(undisturbed(home, 11))
    end = LOST if not (intact and equal) else REFUSED if refused else SILENT
    yield Case("no room for the next checkpoint", "resume, every file at most 20 kB", end, errors)


def engines(home: Path) -> Iterator[Case]:
    """Trained on one engine and evaluated on another, and the other way round."""
    for trained, other in (("native", "mjx"), ("mjx", "native"), ("native", "fused"), ("fused", "native")):
        run = home / f"{trained}-{other}"
        code, errors = finish(
            *("train", "--preset", "tiny", "--rounds", "1", "--new-clients", "0", "--adapt-steps", "0"),
            *("--backend", trained, "--out", str(run)),
        )
        assert code == 0, errors
        process = start("eval", str(run), "--backend", other, "--json")
        out, errors = process.communicate(timeout=600)
        ours, theirs = (
            r["eval/return/adapt_0"] if "eval/return/adapt_0" in r else {"mean": r["mean"][0], "ci95": r["ci95"][0]}
            for r in (sound(run / rundir.EVAL)[-1], json.loads(out))
        )
        # the same draws; contacts amplify rounding, so that returns agree as two samples of one mean do
        agree = abs(ours["mean"] - theirs["mean"]) < ours["ci95"] + theirs["ci95"]
        said = f"{ours} and {theirs}"
        fault = "trained on one physics engine, evaluated on the other"
        yield Case(fault, f"{trained}, then {other}", SURVIVED if agree else SILENT, said)


class Soak(NamedTuple):
    """A long run: lines of metrics with a NaN, memory at a tenth and at the end [MiB], programs of a round compiled.

    equal: whether its last rounds, done again from the last checkpoint but one, give the same bits.
    """

    rounds: int
    bad: int
    early: float
    late: float
    compiled: int
    equal: bool


# The presets of robots and an algorithm that each is for. Where every arrival is an update, ten are computed together:
# a number that changes no update, without which a round is 150.
SOAKED = {
    "laptop": ["fmrl"],
    "efficient": ["fmrl"],
    "paper": ["fmrl"],
    "tiny": ["fmrl"],
    "fedpg": ["fedavg"],
    "a3c": ["fedavg", "--clients-per-round", "10"],
    "fedbuff": ["fmrl"],
    "afedpg-theory": ["afedpg", "--clients-per-round", "10"],
}


def soak(home: Path, preset: str, rounds: int = 500) -> Soak:
    """So many rounds of a preset, its memory watched from outside; then the last ones again."""
    run, errors = home / preset, home / f"{preset}.stderr"
    options = (
        "--rounds",
        str(rounds),
        "--new-clients",
        "0",
        "--eval-every",
        "0",
        "--adapt-steps",
        "0",
        "--backend",
        "fused",
    )
    command = [
        sys.executable,
        "-m",
        "fedjax_rl",
        "train",
        *SOAKED[preset],
        "--preset",
        preset,
        *options,
        "--no-cache",
        "--out",
        str(run),
    ]
    with open(errors, "w") as file:
        process = subprocess.Popen(command, stdout=file, stderr=file, env={**os.environ, "JAX_LOG_COMPILES": "1"})
        seen: dict[int, float] = {}
        while process.poll() is None:
            status = Path(f"/proc/{process.pid}/status").read_text() if process.poll() is None else ""
            held = [int(line.split()[1]) / 1024 for line in status.splitlines() if line.startswith("VmRSS")]
            done = len(records(run)) if run.exists() else 0
            if held and 0 < done < rounds:
                seen[done] = held[0]
            time.sleep(0.1)
    assert process.returncode == 0, errors.read_text()
    lines = records(run)
    early = max(value for done, value in seen.items() if done <= rounds // 10)
    late = max(value for done, value in seen.items() if done > rounds - rounds // 10)
    bad = sum(None in line.values() for line in lines)
    compiled = errors.read_text().count("Finished XLA compilation of jit(round_of_members)")
    last, again = last_hash(run), home / f"{preset}-again"
    shutil.copytree(run, again)
    before_last = checkpoint.steps(again / rundir.CHECKPOINTS)[1]
    checkpoint.set_aside_after(again / rundir.CHECKPOINTS, before_last)
    code, said = finish("resume", str(again))
    assert code == 0, said
    return Soak(len(lines), bad, early, late, compiled, last_hash(again) == last)


INVALID = [
    *[
        ("--" + name, "0")
        for name in ("num-clients", "clients-per-round", "rounds", "episodes", "local-steps", "hidden")
    ],
    *[("--" + name, "-1") for name in ("seed", "inner-lr", "local-lr", "server-lr", "max-change-norm", "save-every")],
    *[("--" + name, "nan") for name in ("discount", "gae-lambda", "clip", "entropy-coef", "value-coef", "inner-lr")],
    *[("--" + name, "x") for name in ("env", "backend", "observation", "activation", "selection", "surrogate")],
    *[("--" + name, "1.5") for name in ("rounds", "seed", "adapt-steps", "new-clients", "eval-every", "eval-clients")],
    ("--discount", "1.01"),
    ("--gae-lambda", "2"),
    ("--server", "adamm"),
    ("--order", "third"),
    ("--critic", "nothing"),
    ("--clients-per-round", "201"),
    ("--client-batch", "999"),
    ("--serverlr", "1"),
    ("--config", "missing.toml"),
    ("--preset", "huge"),
]


def invalid(home: Path) -> Iterator[Case]:
    """Configurations that cannot be: one line, exit code 2, nothing written."""
    worker = Worker()
    for option in INVALID:
        out = home / "invalid"
        code, _, errors = worker.ask(["train", *option, "--out", str(out)], home)
        refused = code == 2 and errors.count("\n") == 1 and not out.exists()
        end = REFUSED if refused else TRACEBACK if is_traceback(Answer(code, "", errors)) else SILENT
        yield Case("invalid configurations", " ".join(option), end, errors)
    worker.close()


def cases(home: Path, only: int | None = None) -> Iterator[Case]:
    """All of them with their full counts, or with so small ones."""
    home.mkdir()
    yield from kills(home, only or 50)
    yield from corruptions(home, only or 20)
    yield from repeated(home)
    yield from full_disk(home)
    yield from invalid(home)
    if not only:  # another program, of half-cheetahs
        yield from engines(home)


def use_cache(home: Path) -> None:
    """All these processes compile the same programs: once is enough."""
    os.environ["JAX_COMPILATION_CACHE_DIR"] = str(home / "programs")
    os.environ["JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS"] = "0"
    jax.config.update("jax_compilation_cache_dir", None)

"""Long runs one after the other, at the lowest priority: a file of commands is worked down, one at a time.

    nohup python -m experiments.queue FILE &

FILE holds one command a line; what follows # is a remark. `fedjax-rl train` and `fedjax-rl sweep` with an --out that
was begun go on as `fedjax-rl resume`; a line whose values are not those of its --out is refused. Other commands are
started as they stand, and must know themselves what is done. FILE.done gets a line of JSON for every command that
ended: what is finished there is skipped by the next start. A signal (kill, Ctrl-C) is passed on, so that the command
saves, and the next start goes on with it. A command that fails is named at the end, and tried again by the next start.
"""

import argparse
import fcntl
import json
import os
import shlex
import signal
import subprocess
import sys
import time
from dataclasses import replace
from pathlib import Path
from typing import IO

from fedjax_rl.cli.parse import SweepOptions, TrainOptions, parse_train
from fedjax_rl.config import Config, ConfigError
from fedjax_rl.host import exits, output
from fedjax_rl.host.files import read_text, write_text
from fedjax_rl.runs import privacy, rundir, sweep

FINISHED = (exits.DONE, exits.DIVERGED, exits.UNHEARD)  # trying again would end alike
REMEDY = "choose another --out, or move it away"
PROGRAMS = {"fedjax-rl": [sys.executable, "-m", "fedjax_rl"], "python": [sys.executable]}


def commands(text: str) -> list[str]:
    """The commands of a file, each once.

    >>> commands("a --x 1  # first\\n\\n# nothing\\nb\\nb\\n")
    ['a --x 1', 'b']
    """
    return list(dict.fromkeys(shlex.join(words) for line in text.splitlines() if (words := shlex.split(line, True))))


def words(command: str) -> list[str]:
    """What is started for a command: the rest of a run that was begun.

    Raises:
      ConfigError: what was begun has other values.
    """
    program, *rest = shlex.split(command)
    given = [part for word in rest for part in (word.split("=", 1) if word.startswith("--out=") else [word])]
    if program == "fedjax-rl" and rest[:1] in (["train"], ["sweep"]) and "--out" in given[:-1]:
        out = Path(given[given.index("--out") + 1])
        if (out / rundir.CONFIG).exists() or rundir.is_sweep(out):
            refuse_another(rest, out)
            rest = ["resume", str(out)]
    return [*PROGRAMS.get(program, [program]), *rest]


def refuse_another(rest: list[str], out: Path) -> None:
    """A ConfigError where a line asks for other runs than those that its directory was begun with."""
    kind, *argv = rest
    config, options = parse_train(argv, kind, SweepOptions if kind == "sweep" else TrainOptions)
    asked, halvings = {out: config}, 0
    if kind == "sweep":
        grid, halvings = sweep.parse_grid(options.grid, config), options.halvings
        asked = sweep.members(config, grid, sweep.parse_seeds(options.seeds), out, halvings)
    begun, halved = rundir.read_sweep(out) if rundir.is_sweep(out) else ({out: rundir.open_run(out)}, 0)
    if (asked.keys(), halvings) != (begun.keys(), halved):
        raise ConfigError(f"{out} holds other runs than the line's, or another number of halvings; {REMEDY}")
    for path, then in begun.items():
        now = filled_in(asked[path], then)
        rundir.refuse_another(now, then, path, REMEDY)
        if now.rounds != then.rounds:
            raise ConfigError(f"{path} has rounds = {then.rounds}, not {now.rounds}; {REMEDY}")


def filled_in(config: Config, begun: Config) -> Config:
    """A line's configuration with what a beginning decides where the line leaves it open."""
    config = privacy.with_noise(config, begun)
    if config.backend == "auto":
        config = replace(config, backend=begun.backend)
    if config.schedule == "async" and not config.clients_per_round:
        config = replace(config, clients_per_round=begun.clients_per_round, buffer=config.buffer or begun.buffer)
    return config


def seconds(attempts: list[dict]) -> dict[str, float]:
    """How long each finished command took, all its attempts together [s]."""
    total: dict[str, float] = {}
    for row in attempts:
        total[row["command"]] = total.get(row["command"], 0.0) + row["seconds"]
    return {row["command"]: total[row["command"]] for row in attempts if row["code"] in FINISHED}


def state(asked: list[str], took: dict[str, float]) -> str:
    """How much is done, and how much time the rest takes if it is like it."""
    known = [took[command] for command in asked if command in took]
    left = len(asked) - len(known)
    line = f"{len(known)} of {len(asked)} done"
    if known and left:
        hours = left * sum(known) / len(known) / 3600
        line += f"; about {hours:.1f} h left" if hours >= 1 else f"; about {60 * hours:.0f} min left"
    return line


def attempted(done: Path) -> list[dict]:
    """The attempts that a file holds, oldest first: {"command", "code", "seconds"}.

    Raises:
      ConfigError: it is not what was written.
    """
    if not done.exists():
        return []
    try:
        rows = [json.loads(line) for line in read_text(done).splitlines()]
        return [
            {"command": str(row["command"]), "code": int(row["code"]), "seconds": float(row["seconds"])} for row in rows
        ]
    except (ValueError, KeyError, TypeError):
        raise ConfigError(f"{done} is damaged; without it all commands are started again") from None


def work(asked: list[str], done: Path, lock: IO[str]) -> int:
    """Start what is not finished, one after the other; the exit code. `lock` is passed on to every command."""
    attempts = attempted(done)
    stopped: list[int] = []
    child: subprocess.Popen | None = None

    def stop(number: int, frame: object) -> None:
        stopped.append(number)
        if child is not None and child.poll() is None:
            child.send_signal(signal.SIGTERM)

    for number in (signal.SIGTERM, signal.SIGINT, signal.SIGHUP):
        if signal.getsignal(number) != signal.SIG_IGN:  # nohup
            signal.signal(number, stop)
    failed: dict[str, int] = {}
    for command in asked:
        if command in seconds(attempts):
            continue
        output.inform(f"{state(asked, seconds(attempts))}; now: {command}")
        began = time.monotonic()
        try:  # a session of its own: Ctrl-C would reach it twice, and the second signal does not save
            child = subprocess.Popen(words(command), start_new_session=True, pass_fds=[lock.fileno()])
            if stopped:
                child.send_signal(signal.SIGTERM)
            code = child.wait()
        except (OSError, exits.Refusal) as error:
            output.inform(f"{command}: {error.strerror if isinstance(error, OSError) else error}")
            code = exits.USAGE
        attempts.append({"command": command, "code": code, "seconds": round(time.monotonic() - began, 1)})
        write_text(done, "".join(json.dumps(row) + "\n" for row in attempts))
        if stopped:
            output.inform(f"stopped by {signal.Signals(stopped[0]).name}; the same command goes on")
            return 128 + stopped[0]
        if code not in FINISHED:
            failed[command] = code
    output.inform(state(asked, seconds(attempts)))
    for command, code in failed.items():
        output.inform(f"failed with exit code {code}: {command}")
    return exits.CANNOT_WRITE if failed else exits.DONE


def main() -> int:
    """The command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("file", type=Path, help="commands, one a line")
    path = parser.parse_args().file
    try:
        asked = commands(read_text(path))
    except ValueError as error:
        parser.error(f"{path}: {error}")
    with open(path) as lock:  # a command that outlives its queue holds it too
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError:
            parser.error(f"{path}: another queue, or a command that one has started, is at work on it")
        os.nice(19)
        if hasattr(os, "SCHED_IDLE"):  # Linux: what nobody else wants; a nice process still takes its share
            os.sched_setscheduler(0, os.SCHED_IDLE, os.sched_param(0))
        try:
            return work(asked, path.with_name(f"{path.name}.done"), lock)
        except exits.Refusal as error:
            parser.error(str(error))


if __name__ == "__main__":
    sys.exit(main())

"""Runs that another experiment has finished are not run again: `--reuse DIR ...` names where to look for them.

A place is a directory, or a study's archive of runs.
"""

import functools
import hashlib
import json
import shutil
import tarfile
import tempfile
import tomllib
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

from fedjax_rl.config import EXECUTION, Config, ConfigError
from fedjax_rl.runs import records, rundir, runner

# the last two: where new clients were evaluated, and what else a study measured on a run's checkpoints
FILES = (rundir.ENV, rundir.METRICS, rundir.EVAL, "fig6.json", "measured.json")
NOTE = "reused.json"
_KEPT: list[tempfile.TemporaryDirectory] = []  # removed when the process ends


def reuse(members: dict[str, Config], out: Path, sources: Sequence[Path]) -> list[str]:
    """Copy into OUT/NAME the finished run of NAME's configuration, if a source has one; the names that were found.

    A run serves when its training has the same values and its evaluations hold those asked for: as many steps of
    adaptation or more, of the same clients, and the same ones between rounds. What was not asked for is cut off. Where
    the engine is left to `auto`, any serves; see `on_one_engine`. Its records come with it, its checkpoints do not;
    reused.json names the source.
    """
    missing = {name: c for name, c in members.items() if not (out / name).exists()}
    found = [] if not missing else [(path, rundir.open_run(path)) for source in sources for path in runs(source)]
    taken = []
    for name, asked in missing.items():
        path = next((path for path, done in found if serves(done, asked) and runner.is_settled(path, done)), None)
        if path is not None and not (path / rundir.DIVERGED).exists():
            copy(path, out / name, asked)
            taken.append(name)
    return taken


def on_one_engine(members: dict[str, Config], out: Path) -> dict[str, Config]:
    """The members; those that are not begun on the engine of the runs in `out`, with which they will be compared."""
    engines = {rundir.open_run(file.parent).backend for file in out.rglob(rundir.CONFIG)} - {"auto"}
    if len(engines) != 1:
        return members
    [engine] = engines
    moved = lambda name, c: c.backend == "auto" and not (out / name).exists()
    return {name: replace(c, backend=engine) if moved(name, c) else c for name, c in members.items()}


def runs(source: Path) -> list[Path]:
    """The run directories below a directory, or in an archive."""
    root = source if source.is_dir() else unpacked(source)
    return sorted(file.parent for file in root.rglob(rundir.CONFIG))


@functools.cache
def unpacked(archive: Path) -> Path:
    """The content of a study's archive, whose sha256 is in the study.toml beside it; it stays until the process ends.

    Raises:
      ConfigError: the archive is not what was packed.
    """
    wanted = tomllib.loads((archive.parent / "study.toml").read_text())["sha256"]
    if hashlib.sha256(archive.read_bytes()).hexdigest() != wanted:
        raise ConfigError(f"{archive} is damaged: its sha256 is not that of study.toml; check it out again")
    place = tempfile.TemporaryDirectory()
    _KEPT.append(place)
    with tarfile.open(archive) as file:
        file.extractall(place.name, filter="data")
    return Path(place.name)


def serves(done: Config, asked: Config) -> bool:
    """Does a finished run of `done` hold all that one of `asked` would?"""
    between = (done.eval_every, done.eval_clients) == (asked.eval_every, asked.eval_clients)
    enough = done.adapt_steps >= asked.adapt_steps and done.new_clients == asked.new_clients
    enough &= (done.final_clients or done.num_clients) == (asked.final_clients or asked.num_clients)
    if asked.backend == "auto":
        asked = replace(asked, backend=done.backend)
    if asked.schedule == done.schedule == "async" and not asked.clients_per_round:  # the speeds chose, for speed alone
        done = replace(done, clients_per_round=0)
    return enough and (between or not asked.eval_every) and training(done) == training(asked)


def training(config: Config) -> Config:
    """The configuration with all that changes no number of the training at its defaults."""
    default = type(config)()
    if getattr(config, "public_states", ""):  # wherever the file is: its name says what is in it
        config = replace(config, public_states=Path(config.public_states).name)
    return replace(config, **{name: getattr(default, name) for name in (*EXECUTION, "adapt_steps")})


def cut(row: records.Row, steps: int) -> records.Row:
    """A record of an evaluation with so many steps of adaptation."""
    further = range(steps + 1, len(row["eval/returns"][0]))
    gone = {f"{kind}/return/adapt_{j}" for kind in records.EVALUATED for j in further}
    tables = [key for key in row if key.endswith("/returns")]
    return {key: row[key] for key in row if key not in gone} | {
        key: [line[: steps + 1] for line in row[key]] for key in tables
    }


def copy(path: Path, to: Path, config: Config) -> None:
    """The records of a run as a run of `config`, whole or not at all."""
    fresh = to.with_name(f"{to.name}.new")
    shutil.rmtree(fresh, ignore_errors=True)
    fresh.mkdir(parents=True)
    for name in FILES:
        if (path / name).exists():
            shutil.copyfile(path / name, fresh / name)
    done = rundir.open_run(path)
    if done.adapt_steps != config.adapt_steps or not config.eval_every:
        rows = [cut(row, config.adapt_steps) for row in records.sound(path / rundir.EVAL)]
        (fresh / rundir.EVAL).write_text(records.text([row for row in rows if row["final"] or config.eval_every]))
    lanes = config.clients_per_round or done.clients_per_round
    rundir.write_config(fresh, replace(config, backend=done.backend, clients_per_round=lanes))
    (fresh / NOTE).write_text(json.dumps({"source": str(path)}) + "\n")
    fresh.rename(to)

"""A run directory: what is in it. `locking.py`: who may write there."""

import functools
import hashlib
import json
import os
from collections.abc import Callable, Mapping
from dataclasses import fields, replace
from pathlib import Path
from typing import Any

from fedjax_rl.config import EXECUTION, Config, ConfigError
from fedjax_rl.config.sources import SEAL, load, loads, to_sealed_toml, to_toml
from fedjax_rl.host import exits, lifeline
from fedjax_rl.host.files import explain, read_text, write_new, write_text
from fedjax_rl.runs import digest, provenance, records
from fedjax_rl.runs.records import EVAL, METRICS, PARTICIPANTS

CONFIG, ENV, CHECKPOINTS, REJECTED, LOCK = "config.toml", "env.json", "ckpt", "rejected", ".lock"
PROBE = "probe"  # in CHECKPOINTS, for the moment in which it is tried whether checkpoints can be kept there
DIVERGED, SWEEP = "diverged.json", "sweep.json"
__all__ = ["EVAL", "METRICS", "PARTICIPANTS"]  # also from here
KEEP = 3  # newest steps kept, beside the best one and those of keep_every
REMEDY = f"put it back into {CONFIG}, or train anew with another --out"
_BY_MUJOCO = ("half_cheetah/", "ant/")  # what earlier versions stepped with it


def is_reader() -> bool:
    """Does another process of this run write, and speak?"""
    joined = lifeline.joined()
    return joined is not None and joined.number > 0


def by_the_writer(fn: Callable[..., None]) -> Callable[..., None]:
    """`fn`, which does nothing in a process that only reads."""

    @functools.wraps(fn)
    def call(*args, **kwargs):
        if not is_reader():
            fn(*args, **kwargs)

    return call


@by_the_writer
def refuse_existing(path: Path) -> None:
    """Refuse a directory that holds something, before anything is written."""
    if path.exists() and (not path.is_dir() or holds_something(path)):
        is_ours = (path / CONFIG).exists() or is_sweep(path)
        hint = f"continue it with: fedjax-rl resume {path}" if is_ours else "choose another --out"
        raise ConfigError(f"--out {path} exists and is not empty; {hint}")


def holds_something(path: Path) -> bool:
    """Is there more than a lock, empty directories and what a process left that was killed while it tried the place?"""
    mine = path / CHECKPOINTS / PROBE
    items = (item for item in path.rglob("*") if not item.is_dir() or item.is_symlink())
    return any(item != path / LOCK and mine not in item.parents for item in items)


@by_the_writer
def refuse_changed(path: Path, config: Config, was_new: bool) -> None:
    """Look again at a directory that is locked now: another process may have begun there since it was looked at."""
    is_begun = (path / CONFIG).exists()
    if was_new and (is_begun or is_sweep(path)):
        refuse_existing(path)
    if is_begun:
        refuse_another(config, open_run(path), path, "move it away, or choose another directory")


@by_the_writer
def create(path: Path, config: Config) -> None:
    """Make the directory with its config.toml and env.json.

    Raises:
      ConfigError: it cannot be written, or has lost its config.toml and holds checkpoints of another configuration.
    """
    if text := digest.saved_config(path / CHECKPOINTS):
        saved = with_engine(loads(text, "a checkpoint's configuration"), path / ENV)
        refuse_another(config, saved, path, "choose another directory")
    try:
        path.mkdir(parents=True, exist_ok=True)
        (path / CHECKPOINTS).mkdir(exist_ok=True)
        write_config(path, config)
        write_text(path / ENV, json.dumps(provenance.describe(config.seed), indent=1) + "\n")
    except OSError as error:
        raise ConfigError(f"cannot write the run directory {path}: {explain(error)}") from error


@by_the_writer
def create_sweep(path: Path, members: Mapping[Path, Config], halvings: int) -> None:
    """Make the directory and remember what the sweep was asked to do.

    Raises:
      ConfigError: it cannot be written, or holds a sweep.
    """
    plan = {"halvings": halvings, "members": {member.name: to_toml(config) for member, config in members.items()}}
    try:
        path.mkdir(parents=True, exist_ok=True)
        write_new(path / SWEEP, (json.dumps({**plan, "sha256": _hash_of(plan)}, indent=1) + "\n").encode())
    except (OSError, exits.CannotWrite) as error:
        refuse_existing(path)  # another sweep began at the same time
        reason = explain(error) if isinstance(error, OSError) else error
        raise ConfigError(f"cannot write the sweep's directory {path}: {reason}") from error


def is_sweep(path: Path) -> bool:
    """Does the directory hold a sweep?"""
    return (path / SWEEP).exists()


def read_sweep(path: Path) -> tuple[dict[Path, Config], int]:
    """The members of a sweep, as they were asked for, and its halvings.

    Raises:
      ConfigError: the file is not what was written; a member's name is not one plain name among others.
    """
    damaged = ConfigError(f"{path / SWEEP} is damaged; its runs can be resumed one by one")
    try:
        plan = json.loads(read_text(path / SWEEP))
        seal = plan.pop("sha256", None)  # plans of earlier versions have none
        texts, halvings = plan["members"], plan["halvings"]
        is_whole = seal in (None, _hash_of(plan)) and type(halvings) is int and 0 <= halvings <= 20
        is_whole &= bool(texts) and all(isinstance(text, str) and _is_plain(name) for name, text in texts.items())
    except (ValueError, KeyError, TypeError, AttributeError, RecursionError):
        raise damaged from None
    if not is_whole:
        raise damaged
    env = next((path / name / ENV for name in texts if (path / name / ENV).exists()), path / ENV)
    members = {path / name: loads(text, f"{path / SWEEP}: {name}") for name, text in texts.items()}
    return {member: with_engine(config, env) for member, config in members.items()}, halvings


def _is_plain(name: str) -> bool:
    return name not in ("", ".", "..") and "/" not in name and "\0" not in name


def _hash_of(plan: Mapping[str, Any]) -> str:
    return hashlib.sha256(json.dumps(plan, sort_keys=True).encode()).hexdigest()


@by_the_writer
def write_config(path: Path, config: Config) -> None:
    """Write config.toml, whole or not at all: a run whose values cannot be read, or differ, is refused."""
    write_text(path / CONFIG, to_sealed_toml(config))


def open_run(path: Path) -> Config:
    """The configuration of a run directory, as every command that opens a run takes it.

    Raises:
      ConfigError: it is no run directory, its config.toml is damaged, or its values are not those of its checkpoints.
    """
    if not (path / CONFIG).exists():
        if some := sorted(path.glob(f"*/{CONFIG}")):
            raise ConfigError(f"{path} holds runs and is none: name one of them, such as {some[0].parent}")
        raise ConfigError(f"{path} is not a run directory: it has no {CONFIG}")
    text = digest.saved_config(path / CHECKPOINTS)
    named = lambda config: with_engine(config, path / ENV)
    where = f"{path / CONFIG} (its newest checkpoint's digest has another copy of it)" if text else path / CONFIG
    saved = named(loads(text, "a checkpoint's configuration")) if text else None
    try:
        config = named(load(path / CONFIG))
    except ConfigError as error:
        if saved is not None:  # a field that was changed is named rather than a hash
            changed = _unsealed(path / CONFIG)
            refuse_another(changed and named(changed), saved, path, REMEDY)
        raise ConfigError(str(error).replace(str(path / CONFIG), str(where))) from None
    if saved is not None:
        refuse_another(config, saved, path, REMEDY)
    return config


def with_engine(config: Config, env: Path) -> Config:
    """The physics engine by its name, which earlier versions wrote as "auto": native on CPUs, mjx elsewhere.

    env: the env.json beside it, which names the device; without it, a CPU.
    """
    if config.backend != "auto" or not config.env.startswith(_BY_MUJOCO):
        return config
    try:
        device = json.loads(read_text(env))["device"]
    except (ConfigError, ValueError, KeyError, TypeError):
        device = "cpu"
    return replace(config, backend="native" if device == "cpu" else "mjx")


def refuse_another(config: Config | None, saved: Config, path: Path, remedy: str) -> None:
    """A ConfigError where a run does not have the values that it began with, but for its length and EXECUTION."""
    names = ("algorithm", *[item.name for item in fields(saved)]) if config is not None else ()
    for name in names:
        now, then = getattr(config, name, None), getattr(saved, name)
        if now != then and name not in EXECUTION | {"rounds"}:
            raise ConfigError(f"{path} was trained with {name} = {then!r}, not {now!r}; {remedy}")


def _unsealed(path: Path) -> Config | None:
    """The configuration of a file whatever its seal says; None where it cannot be read."""
    try:
        return loads(read_text(path).rpartition(SEAL)[0])
    except ConfigError:
        return None


@by_the_writer
def append(path: Path, record: Mapping[str, Any], *, sync: bool = False) -> None:
    """Add a record; see `records.append`."""
    records.append(path, record, sync=sync)


@by_the_writer
def sync_records(path: Path) -> None:
    """See a run's metrics on the disk, before the checkpoint that they lead to."""
    with open(path / METRICS, "ab") as file:
        os.fsync(file.fileno())


@by_the_writer
def mark_diverged(path: Path, round: int) -> None:
    """Remember that the run ceased to be finite in a round, so that its sweep does not try it again."""
    write_text(path / DIVERGED, json.dumps({"round": round}) + "\n")


def diverged(path: Path) -> int | None:
    """The round in which the run ceased to be finite, or None."""
    return json.loads(read_text(path / DIVERGED))["round"] if (path / DIVERGED).exists() else None


def has_checkpoint(path: Path) -> bool:
    """Is there a finished step, good or not? Needs no jax, so that a run without one is refused at once."""
    return bool(digest.steps(path / CHECKPOINTS))


def refuse_unsaved(path: Path) -> None:
    """A NoCheckpoint where there is nothing to evaluate."""
    if not has_checkpoint(path):
        raise exits.NoCheckpoint(f"{path} holds no checkpoint, so nothing to evaluate", path)


def refuse_lost(path: Path, config: Config) -> None:
    """A NoCheckpoint where a run that got past its first checkpoint has none any more.

    A run that was killed before its first checkpoint has lost nothing by starting again.
    """
    rows, evaluations = (records.read(path / name).rows for name in (METRICS, EVAL))
    first = min([config.save_every, *[row["round"] for row in evaluations]])  # an evaluated state is saved next
    past = any(row["round"] > first for row in rows) or any(row["final"] for row in evaluations)
    if not has_checkpoint(path) and past:
        line = f"{path} holds no checkpoint, so nothing to continue: train anew with another --out"
        raise exits.NoCheckpoint(line, path)

"""Checkpoints that notice damage: orbax writes them, a sha256 digest beside each one proves it whole.

The only file that knows orbax. Orbax is atomic but has no checksums: a flipped bit would be restored in silence. So a
step counts only once its digest (`digest.py`) is written, last and atomically.
Restoring walks from the newest step to the oldest and takes the first that passes; a rejected step is never deleted.
"""

import logging
import os
import shutil
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path
from typing import Any, NamedTuple

import jax
import numpy as np

from fedjax_rl.federation.placement import is_first
from fedjax_rl.host.exits import CannotWrite, ConfigError, NoCheckpoint
from fedjax_rl.host.files import explain
from fedjax_rl.runs import digest
from fedjax_rl.runs.arrays import flatten, flatten_shapes, unflatten
from fedjax_rl.runs.digest import saved_config, steps
from fedjax_rl.runs.mending import set_aside
from fedjax_rl.runs.rundir import CHECKPOINTS, KEEP, PROBE

__all__ = [
    "CannotSave",
    "NoCheckpoint",
    "asked_step",
    "best_step",
    "probe",
    "restore",
    "save",
    "saved_config",
    "set_aside_after",
    "set_score",
    "steps",
]

UNUSABLE = frozenset("[]|\\")  # in a path: patterns, pipelines and another system's separator to the storage library


class CannotSave(CannotWrite):
    """A step could not be written; the older ones are as they were."""


class Restored(NamedTuple):
    """A state and the step it was saved at."""

    state: Any
    step: int


def save(
    directory: Path, step: int, state: Any, score: float | None = None, *, config: str = "", keep_every: int = 0
) -> None:
    """Write one step, then its digest, then drop the steps no longer kept.

    `score` decides which step is the best; `config` is the configuration's text, kept beside the state; multiples of
    `keep_every` are never dropped (0: none).
    """
    if not is_first():
        return
    try:
        _write(directory, step, state, score, config)
        _retain(directory, keep_every)
    except OSError as error:
        raise CannotSave(f"cannot save checkpoint {directory / str(step)}: {explain(error)}") from error
    except Exception as error:  # orbax raises whatever its storage layer met
        reason = str(error).strip().split(": ")[-1] or type(error).__name__
        raise CannotSave(f"cannot save checkpoint {directory / str(step)}: {reason}") from error


def probe(run: Path) -> None:
    """See that checkpoints can be kept in a run's directory, which is to be made, and leave nothing there.

    Raises:
      ConfigError: they cannot.
    """
    if not is_first():
        return
    where = run.absolute()
    if UNUSABLE & set(str(where)) or not _is_utf8(where):
        raise ConfigError(
            f"--out {run}: the storage library can keep no checkpoints below a path with {' '.join(sorted(UNUSABLE))} "
            "or bytes that are not UTF-8; choose another name"
        )
    places = (*reversed(where.parents), where, where / CHECKPOINTS, where / CHECKPOINTS / PROBE)
    made = [path for path in places[:-1] if not os.path.lexists(path)]
    try:
        shutil.rmtree(places[-1], ignore_errors=True)  # of a process that was killed here
        _write(places[-1], 0, {"x": np.arange(3.0)}, None, "")
    except Exception as error:  # orbax raises whatever its storage layer met
        reason = explain(error) if isinstance(error, OSError) else (str(error).strip().splitlines() or ["?"])[-1][:200]
        raise ConfigError(f"--out {run}: checkpoints cannot be kept there: {reason}; choose another place") from None
    finally:
        shutil.rmtree(places[-1], ignore_errors=True)
        with suppress(OSError):  # one that is not empty is another run's by now
            for path in reversed(made):
                path.rmdir()


def _is_utf8(path: Path) -> bool:
    try:
        return bool(str(path).encode())
    except UnicodeEncodeError:
        return False


def _write(directory: Path, step: int, state: Any, score: float | None, config: str) -> None:
    path = directory / str(step)
    directory.mkdir(parents=True, exist_ok=True)
    _set_aside(directory, step)
    arrays = {key: value for key, value in flatten(state).items() if value.size}
    with _manager(directory, cleanup=True) as manager:
        manager.save(step, args=_orbax().args.PyTreeSave(arrays))
        manager.wait_until_finished()
        manager.check_for_errors()
        back = manager.restore(step, args=_orbax().args.PyTreeRestore(arrays))
    for key, value in arrays.items():
        if back[key].tobytes() != value.tobytes():
            raise ValueError(f"{key} is not what was written when it is read back")
    record = {"step": step, "score": score, "config": config, "files": digest.hashes(path)}
    digest.write(directory, record)


def restore(
    directory: Path,
    like: Any,
    say: Callable[[str], None],
    step: int | None = None,
    *,
    at_most: int | None = None,
    part: bool = False,
) -> Restored:
    """The newest good step (or the one asked for), shaped as `like`; `say` gets one line for each rejected step.

    Newer steps than `at_most` are passed over. With `part`, `like` may lack arrays that were saved: only what it has is
    read.
    """
    kept = steps(directory)
    if step is not None and kept and step not in kept:
        raise NoCheckpoint(f"no checkpoint of round {step} in {directory}; there are {sorted(kept)}", directory.parent)
    wanted = [s for s in kept if at_most is None or s <= at_most]
    lost = [s for s in digest.unfinished(directory) if step is None and s > max(wanted, default=-1)]
    rejected = [f"checkpoint {directory / str(s)} rejected: it has no digest, so its saving did not end" for s in lost]
    for candidate in wanted if step is None else [step]:
        try:
            state = _load(directory, candidate, like, part)
        except Exception as error:  # orbax raises whatever its storage layer met
            reason = str(error).strip().splitlines() or [type(error).__name__]
            rejected.append(f"checkpoint {directory / str(candidate)} rejected: {reason[0]}")
            continue
        for line in rejected:
            say(f"{line}; using step {candidate} instead")
        return Restored(state, candidate)
    for line in rejected:
        say(line)
    which = f" for step {step}" if step is not None else ""
    raise NoCheckpoint(f"no usable checkpoint in {directory}{which}", directory.parent)


def asked_step(directory: Path, step: int | None, best: bool) -> int | None:
    """The step that somebody wants: that one, the best one, or None for the newest good one."""
    if best and (step := best_step(directory)) is None:
        raise NoCheckpoint(f"no checkpoint in {directory} was evaluated, so none is the best", directory.parent)
    return step


def best_step(directory: Path) -> int | None:
    """The step with the highest score; the earliest of equals; None if none has a score."""
    scores = {step: _score(directory, step) for step in steps(directory)}
    scored = [(score, -step) for step, score in scores.items() if score is not None]
    return -max(scored)[1] if scored else None


def set_aside_after(directory: Path, step: int) -> None:
    """Move the finished steps past `step` out of the way: they were rejected, and will be written again."""
    if not is_first():
        return
    for newer in {*steps(directory), *digest.unfinished(directory)}:
        if newer > step:
            _set_aside(directory, newer)


def set_score(directory: Path, step: int, score: float) -> None:
    """Record the score of a step that was saved before it was evaluated."""
    if not is_first():
        return
    try:
        digest.write(directory, {**digest.read(directory, step), "score": score})
    except ValueError:  # what is damaged keeps its digest, and has no score
        return


def _load(directory: Path, step: int, like: Any, part: bool) -> Any:
    digest.verify(directory, step)
    want = {key: value for key, value in flatten_shapes(like).items() if value.size}
    with _manager(directory) as manager:
        stored = manager.item_metadata(step)
        _same_shapes({key: stored[key] for key in stored if key in want or not part}, want)
        arrays = manager.restore(step, args=_orbax().args.PyTreeRestore(want, partial_restore=part))
    return unflatten(arrays, like)


def _same_shapes(have: Any, want: dict[str, np.ndarray]) -> None:
    """Refuse a checkpoint of another network, algorithm or federation, naming the first array that differs."""
    stored = {key: (tuple(have[key].shape), str(have[key].dtype)) for key in have}
    wanted = {key: (value.shape, str(value.dtype)) for key, value in want.items()}
    for key in sorted(stored.keys() | wanted.keys()):
        if stored.get(key) != wanted.get(key):
            raise ValueError(f"{key} is {stored.get(key)} there and {wanted.get(key)} in this configuration")


def _retain(directory: Path, keep_every: int) -> None:
    """Keep the newest KEEP steps, the best one and multiples of `keep_every`."""
    keep = {*steps(directory)[:KEEP], best_step(directory)}
    for step in steps(directory):
        if step not in keep and not (keep_every and step % keep_every == 0):
            digest.path_of(directory, step).unlink()
            shutil.rmtree(directory / str(step), ignore_errors=True)


def _set_aside(directory: Path, step: int) -> None:
    """Move an unfinished or rejected step of the same number out of the way, never deleting it."""
    path, record = directory / str(step), digest.path_of(directory, step)
    if path.exists() or record.exists():
        set_aside(directory.parent, path, record)


def _score(directory: Path, step: int) -> float | None:
    try:
        return digest.read(directory, step).get("score")
    except ValueError:
        return None


def _orbax() -> Any:
    import orbax.checkpoint as ocp  # imported late: it takes seconds

    logging.getLogger("absl").setLevel(logging.CRITICAL)  # whatever goes wrong arrives as an exception too
    return ocp


def _manager(directory: Path, *, cleanup: bool = False) -> Any:
    """Orbax's manager; only a writer may clean up, lest a reader removes what is being written."""
    ocp = _orbax()
    me = jax.process_index()  # every process reads by itself, the first one writes: nobody waits for anybody
    alone = ocp.options.MultiprocessingOptions(
        primary_host=me, active_processes={me}, barrier_sync_key_prefix=f"process{me}"
    )
    policy = ocp.checkpoint_managers.preservation_policy.PreserveAll()
    options = ocp.CheckpointManagerOptions(
        create=False,
        enable_async_checkpointing=False,
        cleanup_tmp_directories=cleanup,
        preservation_policy=policy,
        multiprocessing_options=alone,
    )
    return ocp.CheckpointManager(directory.absolute(), options=options, item_handlers=ocp.PyTreeCheckpointHandler())

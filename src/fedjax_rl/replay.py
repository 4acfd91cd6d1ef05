"""One client's part of one round, written down when its numbers ceased to be finite, and done again alone."""

import traceback
from pathlib import Path
from typing import Any

import jax
import numpy as np

import fedjax_rl
from fedjax_rl import rundir
from fedjax_rl.arrays import flatten, unflatten
from fedjax_rl.build import Run, abstract_state, make_run
from fedjax_rl.config import Config, ConfigError
from fedjax_rl.layers import loads, to_toml
from fedjax_rl.numerics import pinned
from fedjax_rl.simulate import State

DUMPS = "nan"  # directory of the dumps in a run directory


def dump(run: Run, config: Config, state: State, client: int, directory: Path) -> Path | None:
    """Write what the client works with in the round that begins with `state`; None when there are enough dumps."""
    ids, shared, *rows = run.simulation.cohort(state)  # on all processes: they compute together
    out = directory / DUMPS
    if rundir.is_reader() or len(list(out.glob("*.npz"))) >= config.nan_dump:
        return None
    place = int(np.flatnonzero(np.asarray(ids) == client)[0])
    arrays = flatten((shared, *jax.tree.map(lambda x: x[place], rows)))
    number = int(state.round) + 1
    out.mkdir(exist_ok=True)
    path = out / f"round{number}-client{client}.npz"
    np.savez(path, **{f"work.{name}": value for name, value in arrays.items()}, about=[to_toml(config), number, client])
    return path


@pinned()
def replay(path: Path) -> str:
    """What happens to the client of a dump when it works alone and nothing is compiled, for people to read."""
    config, number, client, arrays = _read(path)
    run = make_run(config)
    _, shared, *rows = jax.eval_shape(run.simulation.cohort, abstract_state(run))
    row = jax.tree.map(lambda x: jax.eval_shape(lambda a: a[0], x), rows)
    args = unflatten(arrays, (shared, *row))
    title = f"client {client} in round {number}: {config.algorithm} on {config.env}"
    with jax.disable_jit():
        try:
            with jax.debug_nans(True):
                done = run.simulation.work(*args)
            first = "no operation gives a NaN"
        except FloatingPointError as error:
            first = f"first NaN: {str(error).splitlines()[0]}, {_where(error)}"
            done = run.simulation.work(*args)
        (message, _), (own, _), metrics = done
    numbers = {"received": args[0], "own state before": args[1][0], "message": message, "own state after": own}
    lines = [f"{name}: {_summary(tree)}" for name, tree in numbers.items()]
    return "\n".join([title, first, *lines, *[f"{name}: {float(value):g}" for name, value in metrics.items()]])


def _read(path: Path) -> tuple[Config, str, str, dict[str, np.ndarray]]:
    try:
        with np.load(path, allow_pickle=False) as file:
            text, number, client = file["about"]
            arrays = {name.removeprefix("work."): file[name] for name in file.files if name != "about"}
    except (OSError, ValueError, KeyError):
        what = "is not a dump" if path.exists() else "does not exist"
        raise ConfigError(
            f"{path} {what}; train, sweep and resume write dumps to RUN/{DUMPS} with --nan-dump"
        ) from None
    return loads(str(text)), number, client, arrays


def _where(error: Exception) -> str:
    """The innermost line of this package that the error went through."""
    home = str(Path(fedjax_rl.__file__).parent)
    frames = [frame for frame in traceback.extract_tb(error.__traceback__) if frame.filename.startswith(home)]
    inner = frames[-1]
    return f"{inner.filename}:{inner.lineno} in {inner.name}: {inner.line}"


def _summary(tree: Any) -> str:
    values = np.concatenate([np.ravel(x) for x in flatten(tree).values()] or [np.zeros(0)]).astype(float)
    finite = values[np.isfinite(values)]
    largest = np.abs(finite).max() if finite.size else 0.0
    return f"{values.size} numbers, {values.size - finite.size} not finite, the largest of the others {largest:g}"

"""One client's part of one round, written down when its numbers ceased to be finite, and done again alone."""

import io
import math
import traceback
import zipfile
import zlib
from pathlib import Path
from typing import Any

import jax
import numpy as np

import fedjax_rl
from fedjax_rl.config import Config, ConfigError
from fedjax_rl.config.sources import loads, to_toml
from fedjax_rl.federation.simulate import State
from fedjax_rl.host.files import explain, write_bytes
from fedjax_rl.host.numerics import pinned
from fedjax_rl.runs import rundir
from fedjax_rl.runs.arrays import flatten, flatten_shapes, unflatten
from fedjax_rl.runs.assemble import Assembled, abstract_state, make_run

DUMPS = "nan"  # directory of the dumps in a run directory


def dump(run: Assembled, config: Config, state: State, client: int, directory: Path) -> Path | None:
    """Write what the client works with in the round that begins with `state`; None when there are enough dumps."""
    ids, *rows = run.simulation.cohort(state)  # on all processes: they compute together
    out = directory / DUMPS
    if rundir.is_reader() or len(list(out.glob("*.npz"))) >= config.nan_dump:
        return None
    place = int(np.flatnonzero(np.asarray(ids) == client)[0])
    arrays = flatten(tuple(jax.tree.map(lambda x: x[place], rows)))
    number = int(state.round) + 1
    out.mkdir(exist_ok=True)
    path = out / f"round{number}-client{client}.npz"
    kept: dict[str, Any] = {f"work.{name}": value for name, value in arrays.items()}
    content = io.BytesIO()
    np.savez(content, **kept, about=np.array([to_toml(config), number, client]))
    write_bytes(path, content.getvalue())
    return path


@pinned()
def replay(path: Path) -> str:
    """What happens to the client of a dump when it works alone and nothing is compiled, for people to read."""
    config, number, client, arrays = _read(path)
    run = make_run(config)
    _, *rows = jax.eval_shape(run.simulation.cohort, abstract_state(run))
    like = tuple(jax.tree.map(lambda x: jax.eval_shape(lambda a: a[0], x), rows))
    wanted = {name: (zeros.shape, zeros.dtype) for name, zeros in flatten_shapes(like).items() if zeros.size}
    if wanted != {name: (array.shape, array.dtype) for name, array in arrays.items() if array.size}:
        raise ConfigError(f"{path} is damaged: its arrays are not those of its configuration")
    args = unflatten(arrays, like)
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
    hint = f"train, sweep and resume write dumps to RUN/{DUMPS} with --nan-dump"
    try:
        with zipfile.ZipFile(path) as file:  # np.load would trust a header, and allocate what it says
            arrays = {name.removesuffix(".npy"): _array(file.read(name)) for name in file.namelist()}
        text, number, client = (str(part) for part in arrays.pop("about"))
    except FileNotFoundError:
        raise ConfigError(f"{path} does not exist; {hint}") from None
    except OSError as error:
        raise ConfigError(f"{path} cannot be read: {explain(OSError(error.errno, error.strerror))}; {hint}") from None
    except (ValueError, KeyError, EOFError, MemoryError, RuntimeError, SyntaxError, zipfile.BadZipFile, zlib.error):
        raise ConfigError(f"{path} is not a dump, or is damaged; {hint}") from None
    config = rundir.with_engine(loads(text, f"the configuration in {path}"), path.parent.parent / rundir.ENV)
    return config, number, client, {name.removeprefix("work."): array for name, array in arrays.items()}


def _array(content: bytes) -> np.ndarray:
    """An array of a dump, whose header may not promise more than there is."""
    stream = io.BytesIO(content)
    version = np.lib.format.read_magic(stream)
    read = {(1, 0): np.lib.format.read_array_header_1_0, (2, 0): np.lib.format.read_array_header_2_0}[version]
    shape, _, dtype = read(stream)
    if dtype.hasobject or math.prod(shape) * dtype.itemsize != len(content) - stream.tell():
        raise ValueError("the header and the content differ")
    return np.load(io.BytesIO(content), allow_pickle=False)


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

"""Tasks drawn by identity: client i's task depends on the key and on i, never on how many clients there are."""

from collections.abc import Callable, Mapping

import jax
import jax.numpy as jnp
import numpy as np

from fedjax_rl.types import Array, Key


def directions(key: Key, n: int) -> Array:
    """[n]: +1, -1, +1, ... by the client's number: balanced for every even n. The key is unused."""
    del key
    return 1.0 - 2.0 * (jnp.arange(n) % 2).astype(jnp.float32)


def say_direction(task: Array) -> str:
    """A direction in words."""
    return "forwards" if task > 0 else "backwards"


def say_speed(task: Array) -> str:
    """A speed in words."""
    return f"{float(task):.2f} m/s"


def uniform(low: float | Array, high: float | Array, shape: tuple[int, ...] = ()) -> Callable[[Key, int], Array]:
    """(key, n) -> [n, *shape] ~ U[low, high), client i's from the key folded with i."""

    def draw(key: Key, i: Array) -> Array:
        return jax.random.uniform(jax.random.fold_in(key, i), shape, minval=low, maxval=high)

    return lambda key, n: jax.vmap(draw, in_axes=(None, 0))(key, jnp.arange(n))


def ranges(fields: Mapping[str, tuple[float, float]]) -> tuple[Callable[[Key, int], Array], Callable[[Array], str]]:
    """(sample_tasks, describe) of tasks [F] with an entry U[low, high) for each field; without fields, of the task 0.

    >>> draw, say = ranges({"length": (0.1, 0.9)})
    >>> draw(jax.random.key(0), 3).shape, say(jnp.array([0.43]))
    ((3, 1), 'length 0.43')
    """
    if not fields:
        return lambda key, n: jnp.zeros(n), lambda task: "the one task"
    low, high = (np.array(ends, np.float32) for ends in zip(*fields.values(), strict=True))
    say = lambda task: ", ".join(f"{field} {float(x):.3g}" for field, x in zip(fields, task, strict=True))
    return uniform(low, high, (len(fields),)), say

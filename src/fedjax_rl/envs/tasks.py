"""Tasks drawn by identity: client i's task depends on the key and on i, never on how many clients there are."""

from collections.abc import Callable, Mapping

import jax
import jax.numpy as jnp
import numpy as np

from fedjax_rl.types import Array, Key


def directions(key: Key, n: int) -> Array:
    """Directions of n clients: +1, -1, +1, ... by the client's number, so that every even n is balanced.

    Args:
      key: not used.
      n: the number of clients.

    Returns:
      Tasks [n] float32.

    >>> tasks.directions(None, 3).tolist()
    [1.0, -1.0, 1.0]
    """
    del key
    return 1.0 - 2.0 * (jnp.arange(n) % 2).astype(jnp.float32)


def forwards(key: Key, n: int) -> Array:
    """The direction +1 of n clients: one task for all.

    Args:
      key: not used.
      n: the number of clients.

    Returns:
      Tasks [n] float32.

    >>> tasks.forwards(None, 2).tolist()
    [1.0, 1.0]
    """
    del key
    return jnp.ones(n)


def say_direction(task: Array) -> str:
    """Say a direction in words.

    Args:
      task: (), as `directions` makes it.

    Returns:
      The words.

    >>> tasks.say_direction(-1.0)
    'backwards'
    """
    return "forwards" if task > 0 else "backwards"


def say_speed(task: Array) -> str:
    """Say a speed in words.

    Args:
      task: () in m/s.

    Returns:
      The words.

    >>> tasks.say_speed(1.5)
    '1.50 m/s'
    """
    return f"{float(task):.2f} m/s"


def uniform(
    low: float | Array | np.ndarray, high: float | Array | np.ndarray, shape: tuple[int, ...] = ()
) -> Callable[[Key, int], Array]:
    """Make a function that draws the clients' tasks uniformly, each entry from U[low, high).

    Client i's task depends on the key and on i, never on how many clients there are.

    Args:
      low: the smallest value; a number, or an array like `shape`.
      high: the end of the range, itself not drawn; likewise.
      shape: of one task; () is a number.

    Returns:
      A function (key, n) -> tasks [n, *shape] float32.

    >>> import jax
    >>> draw = tasks.uniform(-1.0, 1.0, (2,))
    >>> bool((draw(jax.random.key(0), 5)[:3] == draw(jax.random.key(0), 3)).all())
    True
    """

    def draw(key: Key, i: Array) -> Array:
        return jax.random.uniform(jax.random.fold_in(key, i), shape, minval=low, maxval=high)

    return lambda key, n: jax.vmap(draw, in_axes=(None, 0))(key, jnp.arange(n))


def ranges(fields: Mapping[str, tuple[float, float]]) -> tuple[Callable[[Key, int], Array], Callable[[Array], str]]:
    """Make tasks [F] of F named numbers, each drawn uniformly from U[low, high); without fields, the one task 0.

    Args:
      fields: (low, high) by name.

    Returns:
      (sample_tasks, describe), as an `Env` has them.

    >>> import jax, jax.numpy as jnp
    >>> draw, say = tasks.ranges({"length": (0.1, 0.9)})
    >>> draw(jax.random.key(0), 3).shape, say(jnp.array([0.43]))
    ((3, 1), 'length 0.43')
    """
    if not fields:
        return lambda key, n: jnp.zeros(n), lambda task: "the one task"
    low, high = (np.array(ends, np.float32) for ends in zip(*fields.values(), strict=True))
    say = lambda task: ", ".join(f"{field} {float(x):.3g}" for field, x in zip(fields, task, strict=True))
    return uniform(low, high, (len(fields),)), say

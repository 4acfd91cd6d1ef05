"""How long a client works: its speed, the noise of a job, its links; in ticks of a virtual clock."""

from collections.abc import Callable

import jax
import jax.numpy as jnp
import numpy as np

from fedjax_rl.types import Array, Key

TICKS = 2**14  # of a unit of time, which the fastest client of `linear` needs for a job
Duration = Callable[[Array, Array], Array]  # (client, job) -> ticks, of the same shape

SPEEDS: dict[str, Callable[[Key, Array, int, float], Array]] = {
    "equal": lambda key, ids, n, ratio: jnp.ones(ids.shape),
    "linear": lambda key, ids, n, ratio: 1.0 + (ratio - 1.0) * ids / max(n - 1, 1),
    "uniform": lambda key, ids, n, ratio: _by_id(
        lambda k: jax.random.uniform(k, (), jnp.float32, 1.0, ratio), key, ids
    ),
    "lognormal": lambda key, ids, n, ratio: _by_id(lambda k: ratio ** (jax.random.normal(k) / 4), key, ids),
    "sqrt": lambda key, ids, n, ratio: jnp.sqrt(ids + 1.0),
    "one_slow": lambda key, ids, n, ratio: jnp.where(ids == n - 1, ratio, 1.0),
    "alternate": lambda key, ids, n, ratio: jnp.where(ids % 2 == 1, ratio, 1.0),
}
NOISES: dict[str, Callable[[Key], Array]] = {  # all but the log-normal of mean 1
    "none": lambda key: jnp.ones(()),
    "lognormal": lambda key: jnp.exp(0.25 * jax.random.normal(key)),
    "shifted": lambda key: 0.5 + 0.5 * jax.random.exponential(key),
    "exponential": jax.random.exponential,
    "pareto": lambda key: jax.random.pareto(key, 1.5) / 3.0,
}


def _by_id(draw: Callable[[Key], Array], key: Key, ids: Array) -> Array:
    return jax.vmap(lambda id: draw(jax.random.fold_in(key, id)))(ids)


def durations(key: Key, speed: Array, noise: str, link: Array | float = 0.0) -> Duration:
    """(client, job) -> max(1, round(TICKS (t_i x_ij + link_i))): ticks of a job.

    Args:
      key: of the noise x_ij, which follows from the client and his job.
      speed: t [N], units of time that a job of each client takes.
      noise: of NOISES.
      link: [N] or (), units of time for what is sent and received.
    """
    on_links = jnp.broadcast_to(link, speed.shape)

    def one(client: Array, job: Array) -> Array:
        x = NOISES[noise](jax.random.fold_in(jax.random.fold_in(key, job), client))
        return jnp.maximum(1, jnp.round(TICKS * (speed[client] * x + on_links[client]))).astype(jnp.int32)

    return lambda client, job: jnp.vectorize(one)(client, job)


def wait_of_idle(speed: np.ndarray, in_flight: int) -> float:
    """w of sum_i t_i / (t_i + w) = C: under "idle" client i makes a share of the arrivals in proportion to 1/(t_i + w).

    Args:
      speed: t [N].
      in_flight: C, at most N; for C = N it is 0.
    """
    low, high = 0.0, float(len(speed) * np.max(speed))
    for _ in range(200):
        w = (low + high) / 2
        low, high = (w, high) if np.sum(speed / (speed + w)) > in_flight else (low, w)
    return low

"""How long a client works: its speed, the noise of a job, its links; in ticks of a virtual clock."""

from collections.abc import Callable
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from fedjax_rl.types import Array, Key

TICKS = 2**14  # of a unit of time, which the fastest client of `linear` needs for a job
LONGEST = 2**13  # units of time that a job takes at most: the times of a plan stay far below 2^31 ticks
Duration = Callable[[Array, Array], Array]  # (client, job) -> ticks, of the same shape

SPEEDS: dict[str, Callable[[Key, Array, int, Array | float], Array]] = {
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


class Pace(NamedTuple):
    """How fast the clients and their links are.

    Attributes:
      speed: of SPEEDS: t_i, units of time that a job takes client i.
      ratio: of the slowest client's time to the fastest one's, where the speeds ask for it.
      noise: of NOISES: x_ij, by which the time of a job is multiplied.
      up, down: bandwidth of the links [bytes a unit of time]; 0 for links that take no time.
      link: what sending a message takes besides [t_i].
    """

    speed: str = "equal"
    ratio: Array | float = 4.0
    noise: str = "none"
    up: Array | float = 0.0
    down: Array | float = 0.0
    link: Array | float = 0.0

    def speeds(self, key: Key, num_clients: int) -> Array:
        """t [N], each client's by its number."""
        return SPEEDS[self.speed](key, jnp.arange(num_clients), num_clients, self.ratio)

    def links(self, speeds: Array, down: float, up: float) -> tuple[Array, Array]:
        """Units of time [N] in which each client receives and sends so many bytes."""
        return _taken(down, self.down) + jnp.zeros_like(speeds), _taken(up, self.up) + self.link * speeds


EQUAL = Pace()


def _taken(size: float, bandwidth: Array | float) -> Array:
    return jnp.where(bandwidth == 0, 0.0, size / jnp.maximum(bandwidth, jnp.finfo(jnp.float32).tiny))


def durations(key: Key, speed: Array, noise: str, link: Array | float = 0.0) -> Duration:
    """(client, job) -> max(1, round(TICKS (t_i x_ij + link_i))): ticks of a job, at most LONGEST units.

    Args:
      key: of the noise x_ij, which follows from the client and his job.
      speed: t [N], units of time that a job of each client takes.
      noise: of NOISES.
      link: [N] or (), units of time for what is sent and received.
    """
    on_links = jnp.broadcast_to(link, speed.shape)

    def one(client: Array, job: Array) -> Array:
        x = NOISES[noise](jax.random.fold_in(jax.random.fold_in(key, job), client))
        units = jnp.minimum(speed[client] * x + on_links[client], LONGEST)
        return jnp.maximum(1, jnp.round(TICKS * units)).astype(jnp.int32)

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

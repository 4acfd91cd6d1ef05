"""Attacks on messages: what malicious clients send in place of their own work.

They see every honest message of the round before they send. mu and s are the mean and, per coordinate, the standard
deviation (n - 1) of the honest messages that arrived; `own` is what a malicious client would have sent.
"""

from collections.abc import Callable
from typing import NamedTuple

import jax
import jax.numpy as jnp
from jax.flatten_util import ravel_pytree
from jax.scipy.special import ndtri

from fedjax_rl.federation.robust import as_rows
from fedjax_rl.federation.rules import mean_of, squared_distances
from fedjax_rl.types import Aggregator, Array, Key, Message


class Known(NamedTuple):
    """What the malicious know.

    Attributes:
      rows: [M, d] what all would have sent.
      honest: [M] bool, the others that were heard.
      malicious: [M] bool.
      mean: [d] mu.
      std: [d] s; 0 where there are fewer than two honest messages.
      strength: () of the attack.
      key: of the round.
      aggregate: rows [M, d] -> [d], what the server would make of them.
    """

    rows: Array
    honest: Array
    malicious: Array
    mean: Array
    std: Array
    strength: Array | float
    key: Key
    aggregate: Callable[[Array], Array]


def forge(
    name: str, strength: Array | float, aggregator: Aggregator
) -> Callable[[Message, Array, Array, Key], Message]:
    """What the malicious clients of an attack send.

    | name | a malicious message |
    |---|---|
    | `sign_flip` | -a own |
    | `boost` | -10 a own |
    | `zero`, `nan` | zeros; NaN, which an engine drops |
    | `noise` | own + a N(0, I) norm(own) / sqrt(d) |
    | `alie` | mu - a s; a = 0 stands for z, see below |
    | `ipm` | -a mu |
    | `min_max` | mu - g s; it is as far from any honest message as two of these are from each other, at most |
    | `min_sum` | mu - g s; the sum of its squared distances to the honest ones is that of one of these, at most |
    | `mimic` | that of the first honest client of the cohort |
    | `adaptive_alie` | mu - a s, with the a of 0, 0.25, ..., 10 that moves the aggregate furthest from mu |
    | `adaptive_ipm` | -a mu, with the a of 0, 0.25, ..., 10 that moves the aggregate furthest from mu |

    a is `strength`; where the formula has none, or finds its own, it is not used. g is the largest possible.
    z: of n clients f are malicious, so they need h = floor(n/2) + 1 - f honest ones for a majority. If messages are
    normal, that many are below mu - z s in a coordinate, where normal_cdf(z) = (n - f - h) / (n - f).

    Source: alie: Baruch, Baruch and Goldberg, "A Little Is Enough: Circumventing Defenses for Distributed Learning",
    NeurIPS 2019. ipm: Xie, Koyejo and Gupta, "Fall of Empires: Breaking Byzantine-tolerant SGD by Inner Product
    Manipulation", UAI 2019. min_max, min_sum: Shejwalkar and Houmansadr, "Manipulating the Byzantine: Optimizing Model
    Poisoning Attacks and Defenses for Federated Learning", NDSS 2021; they search for g, which has a closed form.
    mimic: Karimireddy, He and Jaggi, "Byzantine-Robust Learning on Heterogeneous Datasets via Bucketing", ICLR 2022.

    Args:
      name: of ATTACKS.
      strength: a.
      aggregator: the server's, which the adaptive attacks try out: with unit weights, and as at a run's beginning.

    Returns:
      (messages [M, ...], honest [M] bool, malicious [M] bool, key) -> messages [M, ...], as `types.Attack.forge` is.
    """

    def forged(messages: Message, honest: Array, malicious: Array, key: Key) -> Message:
        rows, message_of = as_rows(messages)

        def aggregate(rows: Array) -> Array:
            start = aggregator.init(message_of(jnp.zeros_like(rows[0])))
            weights = (honest | malicious).astype(rows.dtype)
            return ravel_pytree(aggregator.update(jax.vmap(message_of)(rows), weights, start, key)[0])[0]

        mean = mean_of(rows, honest)
        squares = jnp.where(honest[:, None], jnp.square(rows - mean[None]), 0.0)
        std = jnp.sqrt(squares.sum(axis=0) / jnp.maximum(honest.sum() - 1, 1))
        known = Known(rows, honest, malicious, mean, std, strength, key, aggregate)
        return jax.vmap(message_of)(_replaced(known, ATTACKS[name](known)))

    return forged


def is_malicious(key: Key, num_clients: int, share: Array | float) -> Array:
    """[N] bool, who is malicious: share * N of the clients, rounded up, drawn by the key.

    With one key those of a smaller share are among those of a larger one.

    Args:
      key: the draw.
      num_clients: N.
      share: 0 to 1.
    """
    # a millionth less: a share such as 0.3 is rounded, and 10 times it must not be a bit more than 3
    return jax.random.permutation(key, num_clients) < num_clients * (share - 1e-6)


def _replaced(known: Known, new: Array) -> Array:
    """Rows [M, d] with those of the malicious replaced by `new`, [M, d] or, the same for all, [d]."""
    new = jnp.broadcast_to(new, known.rows.shape).astype(known.rows.dtype)
    return jnp.where(known.malicious[:, None], new, known.rows)


def _noise(known: Known) -> Array:
    norms = jnp.linalg.norm(known.rows, axis=1, keepdims=True) / jnp.sqrt(known.rows.shape[1])
    return known.rows + known.strength * norms * jax.random.normal(known.key, known.rows.shape, known.rows.dtype)


def _alie(known: Known) -> Array:
    honest, f = known.honest.sum(), known.malicious.sum()
    supporters = (honest + f) // 2 + 1 - f  # honest ones that a majority with the malicious needs
    covered = jnp.clip((honest - supporters) / jnp.maximum(honest, 1), 1e-3, 1 - 1e-3)  # finite where all is covered
    z = jnp.where(known.strength > 0, known.strength, ndtri(covered))
    return known.mean - z * known.std


def _direction(known: Known) -> Array:
    return known.std / jnp.maximum(jnp.linalg.norm(known.std), jnp.finfo(known.std.dtype).tiny)


def _min_max(known: Known) -> Array:
    """Along the unit vector p = s/|s|: the smallest root g of |mu - g p - x_i| = R, over honest i."""
    p, away = _direction(known), known.mean[None] - known.rows
    b = -jnp.tensordot(away, p, axes=1, precision="highest")
    c = jnp.square(away).sum(axis=1) - _honest_distances(known).max()
    roots = jnp.sqrt(jnp.maximum(b**2 - c, 0.0)) - b
    g = jnp.min(jnp.where(known.honest, roots, jnp.inf), initial=jnp.inf)
    return known.mean - jnp.where(known.honest.any(), g, 0.0) * p


def _min_sum(known: Known) -> Array:
    """Along p: sum_i |mu - g p - x_i|^2 = sum_i |mu - x_i|^2 + n g^2, over honest i."""
    away = jnp.where(known.honest[:, None], known.mean[None] - known.rows, 0.0)
    room = _honest_distances(known).sum(axis=1).max() - jnp.square(away).sum()
    g = jnp.sqrt(jnp.maximum(room, 0.0) / jnp.maximum(known.honest.sum(), 1))
    return known.mean - g * _direction(known)


def _honest_distances(known: Known) -> Array:
    """Squared [M, M]; 0 where one of the two is not honest."""
    return jnp.where(known.honest[:, None] & known.honest[None], squared_distances(known.rows), 0.0)


def _worst(known: Known, start: Array, direction: Array) -> Array:
    """start + a direction, with the a that moves the aggregate furthest from mu."""

    def harm(a: Array) -> Array:
        return jnp.linalg.norm(known.aggregate(_replaced(known, start + a * direction)) - known.mean)

    strengths = jnp.linspace(0.0, 10.0, 41, dtype=start.dtype)
    return start + strengths[jnp.argmax(jax.lax.map(harm, strengths))] * direction


ATTACKS: dict[str, Callable[[Known], Array]] = {
    "sign_flip": lambda known: -known.strength * known.rows,
    "boost": lambda known: -10 * known.strength * known.rows,
    "zero": lambda known: jnp.zeros_like(known.mean),
    "noise": _noise,
    "nan": lambda known: jnp.full_like(known.mean, jnp.nan),
    "alie": _alie,
    "ipm": lambda known: -known.strength * known.mean,
    "min_max": _min_max,
    "min_sum": _min_sum,
    "mimic": lambda known: known.rows[jnp.argmax(known.honest)],
    "adaptive_alie": lambda known: _worst(known, known.mean, -known.std),
    "adaptive_ipm": lambda known: _worst(known, jnp.zeros_like(known.mean), -known.mean),
}

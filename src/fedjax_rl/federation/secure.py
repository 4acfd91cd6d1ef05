"""Secure sums: a server that sees only the sum of the messages, in fixed-point numbers.

Masks between pairs of clients hide each message, and cancel in the sum to the last bit. So a round does without them.
It computes what changes learning: the rounding, the range, and the smallest cohort. The masks are here to show this.
"""

import math
from typing import NamedTuple

import jax
import jax.numpy as jnp

from fedjax_rl.federation.robust import as_rows
from fedjax_rl.host.exits import ConfigError
from fedjax_rl.types import Aggregator, Array, Key


class FixedPoint(NamedTuple):
    """Numbers from -R to R as whole levels from -(2^(B-1) - 1) to 2^(B-1) - 1, summed modulo 2^32.

    Attributes:
      bits: B, 2 to 24, as many as float32 has. Static.
      scale_range: R, in the messages' own unit. It may be traced.
    """

    bits: int
    scale_range: Array | float

    @property
    def most(self) -> int:
        """The largest level."""
        return 2 ** (self.bits - 1) - 1

    def lengthening(self, d: int) -> Array | float:
        """sqrt(d) R / (2^(B-1) - 1): by how much the rounding of d numbers can lengthen a vector, at most."""
        return math.sqrt(d) * self.scale_range / self.most

    def total(self, rows: Array, key: Key) -> Array:
        """The sum [d] of rows [M, d] in units of R. Of a number beyond 1 in size only 1 is left.

        Raises:
          ConfigError: so many rows overflow 32 bits.
        """
        if len(rows) * self.most >= 2**31:
            fits = (2**31 - 1) // self.most
            raise ConfigError(f"bits = {self.bits}: {len(rows)} clients overflow 32 bits; at most {fits} fit")
        keys = jax.vmap(jax.random.fold_in, in_axes=(None, 0))(key, jnp.arange(len(rows)))
        levels = jax.vmap(self.encode)(rows, keys).sum(axis=0, dtype=jnp.uint32)
        return jax.lax.bitcast_convert_type(levels, jnp.int32).astype(rows.dtype) / self.most

    def encode(self, values: Array, key: Key) -> Array:
        """The levels [d] of numbers [d] in units of R, as uint32: y rounded up with the probability of its fraction."""
        y = jnp.clip(values, -1.0, 1.0) * self.most
        below = jnp.floor(y)
        up = jax.random.uniform(key, y.shape) < y - below
        return jax.lax.bitcast_convert_type((below + up).astype(jnp.int32), jnp.uint32)


def scaled(rows: Array, factors: Array, numbers: FixedPoint) -> tuple[Array, Array]:
    """(f_i m_i / R of messages m as rows [M, d] and factors f [M]; () int32, how many rows have an entry beyond 1)."""
    rows = rows * (factors.astype(rows.dtype) / numbers.scale_range)[:, None]
    return rows, (jnp.abs(rows) > 1.0).any(axis=1).sum(dtype=jnp.int32)


def secure_mean(numbers: FixedPoint, *, at_least: int) -> Aggregator:
    """The weighted mean of messages of which the server sees only sums: sum_i w_i m_i / sum_i w_i, in fixed point.

    A client multiplies its message by its weight, clips each number to the range, rounds it, and sends its weight as
    one number more. A weight above 1 counts as 1. The metric "health/secagg_clipped" counts the messages that the range
    cut off: those of a round's first exchange where it has several, and the last count where no sum was opened.

    Source: Bonawitz et al., "Practical Secure Aggregation for Privacy-Preserving Machine Learning", CCS 2017.

    Args:
      numbers: the fixed-point numbers.
      at_least: the clients that must be heard: with fewer the sum cannot be opened, and the server stays.

    Raises:
      ConfigError: at the first use, when the sum of so many clients overflows 32 bits.
    """

    def update(messages, weights, state, key):
        del state
        rows, message_of = as_rows(messages)
        weights = jnp.minimum(weights, 1.0)
        rows, clipped = scaled(rows, weights, numbers)
        sums = numbers.total(jnp.concatenate([rows, weights[:, None].astype(rows.dtype)], axis=1), key)
        total, weight = sums[:-1] * numbers.scale_range, sums[-1]
        return message_of(jnp.where(weight > 0, total / jnp.where(weight > 0, weight, 1.0), 0.0)), clipped

    return Aggregator(
        init=lambda message: jnp.zeros((), jnp.int32),
        update=update,
        at_least=at_least,
        show=lambda clipped: {"health/secagg_clipped": clipped},
    )


def pairwise_masks(key: Key, ids: Array, d: int) -> Array:
    """What n clients add to their levels so that nobody can read them: uint32 [n, d], which sums to 0 modulo 2^32.

    Args:
      key: of the round.
      ids: [n], the clients' numbers, all different.
      d: how many levels each sends.
    """
    return jax.lax.map(lambda id: pairwise_mask(key, id, ids, d), ids)


def pairwise_mask(key: Key, id: Array | int, ids: Array, d: int) -> Array:
    """One client's mask, uint32 [d]: the sum over the others j of PRG(id, j) where id < j, and of -PRG(id, j) else.

    PRG(i, j) is drawn with a key that only i and j have. Where a client drops out after the others have masked, they
    give its keys away. The server computes this mask of it and adds it to the sum, whose masks then cancel.

    Source: Bonawitz et al., "Practical Secure Aggregation for Privacy-Preserving Machine Learning", CCS 2017.

    Args:
      key: of the round.
      id: the client's number, one of `ids`.
      ids: [n], the clients' numbers, all different.
      d: how many levels each sends.
    """

    def add(mask: Array, other: Array) -> tuple[Array, None]:
        pair = jax.random.fold_in(jax.random.fold_in(key, jnp.minimum(id, other)), jnp.maximum(id, other))
        drawn = jax.random.bits(pair, (d,), jnp.uint32)
        return mask + jnp.where(id == other, jnp.uint32(0), jnp.where(id < other, drawn, -drawn)), None

    return jax.lax.scan(add, jnp.zeros(d, jnp.uint32), ids)[0]


def secure_bytes(d: int, bits: int, clients: int) -> float:
    """Bytes that one of M clients sends: ceil((B + ceil(log2 M)) (d + 1) / 8) + 64 + 94 (M - 1).

    d numbers and the weight, each with enough bits for the sum. The rest is an estimate of the protocol's own: two
    public keys, and for every other client its encrypted shares of two secrets.

    Args:
      d: how many numbers a message has.
      bits: B.
      clients: M.
    """
    width = bits + math.ceil(math.log2(clients))
    return float(math.ceil(width * (d + 1) / 8) + 64 + 94 * (clients - 1))

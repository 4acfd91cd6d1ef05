"""Replay memory: the last C transitions of a client, in a ring."""

from typing import NamedTuple

import jax
import jax.numpy as jnp

from fedjax_rl.types import Array, Key, Transition, Tree


class Replay(NamedTuple):
    """A ring of C rows.

    Attributes:
      rows: transitions, leaves [C, ...]. Row i holds the newest transition whose number is i modulo C.
      pushed: () int32, how many transitions were ever pushed.
    """

    rows: Tree
    pushed: Array


def empty(capacity: int, like: Transition) -> Replay:
    """An empty ring of C = `capacity` rows with the shapes and types of `like`."""
    return Replay(jax.tree.map(lambda x: jnp.zeros((capacity, *x.shape), x.dtype), like), jnp.zeros((), jnp.int32))


def push(replay: Replay, row: Transition) -> Replay:
    """The ring with one transition more, in the place of the oldest where it is full."""
    capacity = len(replay.rows[0])
    rows = jax.tree.map(lambda all, one: all.at[replay.pushed % capacity].set(one), replay.rows, row)
    return Replay(rows, replay.pushed + 1)


def held(replay: Replay) -> Array:
    """() int32, how many transitions the ring holds: min(pushed, C)."""
    return jnp.minimum(replay.pushed, len(replay.rows[0]))


def sample(replay: Replay, key: Key, size: int) -> Transition:
    """`size` transitions [size, ...] drawn with replacement, all that are held being equally likely."""
    chosen = jax.random.randint(key, (size,), 0, held(replay))
    return jax.tree.map(lambda x: x[chosen], replay.rows)

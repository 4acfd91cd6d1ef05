"""Robust rules on rows: how the messages of M clients become one where some of them may be malicious.

A rule is (rows [M, d], weights [M], f (), state, key) -> (row [d], state). `robust.robust` makes an aggregator of it.
Rows of weight 0 were not heard, and no rule looks at them. n rows were heard; f of these are assumed to be malicious.
A rule that says nothing of weights counts every row that was heard as one. Of equal scores the first row's comes first.

Everything is written for traced n and f: ranks are compared with them, and no shape depends on them.
"""

import math
from collections.abc import Callable

import jax
import jax.numpy as jnp

from fedjax_rl.types import Array, Key, Tree

Rule = Callable[[Array, Array, Array, Tree, Key], tuple[Array, Tree]]


def median(rows: Array, weights: Array, f: Array, state: Tree, key: Key) -> tuple[Array, Tree]:
    """Per coordinate the median; of an even n the mean of the middle two."""
    del f, key
    return median_of(rows, weights > 0), state


def trimmed(rows: Array, weights: Array, f: Array, state: Tree, key: Key) -> tuple[Array, Tree]:
    """Per coordinate the mean without the f smallest and the f largest. It needs n >= 2f + 1."""
    del key
    heard = weights > 0
    n, rank = heard.sum(), jnp.arange(len(rows))[:, None]
    ascending = jnp.sort(jnp.where(heard[:, None], rows, jnp.inf), axis=0)
    kept = (rank >= f) & (rank < n - f)
    return jnp.where(kept, ascending, 0.0).sum(axis=0) / jnp.maximum(n - 2 * f, 1), state


def meamed(rows: Array, weights: Array, f: Array, state: Tree, key: Key) -> tuple[Array, Tree]:
    """Per coordinate the mean of the n - f values closest to the median. It needs n >= 2f + 1."""
    del key
    heard = weights > 0
    return _mean_around_median(rows, heard, heard.sum() - f), state


def krum(rows: Array, weights: Array, f: Array, state: Tree, key: Key) -> tuple[Array, Tree]:
    """The row whose n - f - 2 nearest others are nearest, by the sum of squared distances. It needs n >= 2f + 3."""
    del key
    heard = weights > 0
    scores = _krum_scores(*_neighbours(rows), heard, f)
    return rows[_order(scores, heard)[0]], state


def multi_krum(rows: Array, weights: Array, f: Array, state: Tree, key: Key) -> tuple[Array, Tree]:
    """The mean of the n - f rows with the lowest scores of `krum`. It needs n >= 2f + 3."""
    del key
    heard = weights > 0
    scores = _krum_scores(*_neighbours(rows), heard, f)
    return mean_of(rows, _ranks(scores, heard) < heard.sum() - f), state


def bulyan(rows: Array, weights: Array, f: Array, state: Tree, key: Key) -> tuple[Array, Tree]:
    """`krum`'s best of the rest, n - 2f times; then per coordinate the mean of the n - 4f closest to their median.

    It needs n >= 4f + 3.
    """
    del key
    heard = weights > 0
    n, (distances, numbers) = heard.sum(), _neighbours(rows)

    def pick(i: Array, left: Array) -> Array:
        best = _order(_krum_scores(distances, numbers, left, f), left)[0]
        return left.at[best].set(left[best] & (i >= n - 2 * f))

    left = jax.lax.fori_loop(0, len(rows), pick, heard)
    return _mean_around_median(rows, heard & ~left, n - 4 * f), state


def weiszfeld(steps: int) -> Rule:
    """The geometric median argmin_z sum_i w_i |z - x_i| by steps of the smoothed Weiszfeld algorithm.

      z <- sum_i b_i x_i / sum_i b_i,   b_i = w_i / max(1e-6, |z - x_i|)

    z starts at the mean, or as `norm_clip` where the mean is more than three times as long as the median row. The
    reason: malicious rows that are long enough take the mean so far that a few steps do not bring it back. With a
    quarter of such rows each step leaves a third of the distance.
    """

    def rule(rows: Array, weights: Array, f: Array, state: Tree, key: Key) -> tuple[Array, Tree]:
        mean, norms = mean_of(rows, weights), _norms(rows)
        short = jnp.linalg.norm(mean) <= 3 * median_of(norms, weights > 0)
        start = jnp.where(short, mean, norm_clip(rows, weights, f, (), key)[0])

        def step(_: Array, z: Array) -> Array:
            return mean_of(rows, weights / jnp.maximum(_norms(rows - z[None]), 1e-6))

        return jax.lax.fori_loop(0, steps, step, start), state

    return rule


def centered_clip(radius: Array | float) -> Rule:
    """Five times v <- v + mean_i (x_i - v) min(1, radius / |x_i - v|), with weights; v is the state [d].

    A radius of 0 stands for the median of |x_i - v|, anew each time.
    """

    def rule(rows: Array, weights: Array, f: Array, state: Tree, key: Key) -> tuple[Array, Tree]:
        del f, key

        def step(_: Array, v: Array) -> Array:
            away = rows - v[None]
            norms = _norms(away)
            bound = jnp.where(radius > 0, radius, median_of(norms, weights > 0))
            return v + mean_of(away * _shrink(norms, bound), weights)

        v = jax.lax.fori_loop(0, 5, step, state)
        return v, v

    return rule


def norm_clip(rows: Array, weights: Array, f: Array, state: Tree, key: Key) -> tuple[Array, Tree]:
    """The mean of x_i min(1, m / |x_i|), with weights; m is the median of |x_i|."""
    del f, key
    norms = _norms(rows)
    return mean_of(rows * _shrink(norms, median_of(norms, weights > 0)), weights), state


def fedpg_filter(sigma: Array | float, episodes: int) -> Rule:
    """The mean of the rows within a radius of a centre; zero where there is no centre.

    A row is central if more than n/2 rows, itself included, are within the radius of it. The centre is the central row
    closest to the mean of the central ones. The radius is 2 sigma sqrt(V / B), V = 2 ln(2n / 0.6). Where fewer than
    n - f rows are within it of the centre, all is done again with 2 sigma.
    """

    def rule(rows: Array, weights: Array, f: Array, state: Tree, key: Key) -> tuple[Array, Tree]:
        del key
        heard = weights > 0
        n, distances = heard.sum(), jnp.sqrt(squared_distances(rows))

        def within(radius: Array | float) -> Array:
            near = (distances <= radius) & heard[:, None] & heard[None]
            central = 2 * near.sum(axis=1) > n
            off = _norms(rows - mean_of(rows, central)[None])
            return near[_order(off, central)[0]] & central.any()

        first = within(2 * sigma * jnp.sqrt(2 * jnp.log(2 * jnp.maximum(n, 1) / 0.6) / episodes))
        return mean_of(rows, jnp.where(first.sum() >= n - f, first, within(2 * sigma))), state

    return rule


def nnm(rule: Rule) -> Rule:
    """A rule after nearest-neighbour mixing: x_i <- the mean of the n - f rows nearest to x_i, itself included."""

    def mixed(rows: Array, weights: Array, f: Array, state: Tree, key: Key) -> tuple[Array, Tree]:
        heard = weights > 0
        n, distances = heard.sum(), squared_distances(rows)
        near = _ranks(distances, jnp.broadcast_to(heard[None], distances.shape)) < n - f
        return rule(jax.vmap(mean_of, in_axes=(None, 0))(rows, near), heard.astype(rows.dtype), f, state, key)

    return mixed


def bucket(rule: Rule) -> Rule:
    """A rule on the weighted means of pairs drawn at random; an odd row stays alone. A pair weighs what its rows do."""

    def paired(rows: Array, weights: Array, f: Array, state: Tree, key: Key) -> tuple[Array, Tree]:
        pairs = math.ceil(len(rows) / 2)
        first = _order(jax.random.uniform(key, weights.shape), weights > 0)  # those heard, in a random order
        place = jnp.argsort(first) // 2
        shares = jnp.where(place[None] == jnp.arange(pairs)[:, None], weights[None], 0.0)
        both = shares.sum(axis=1)
        return rule(jax.vmap(mean_of, in_axes=(None, 0))(rows, shares), both, f, state, key)

    return paired


def mean_of(rows: Array, weights: Array) -> Array:
    """sum_i w_i x_i / sum_i w_i of rows [M, d] -> [d]; zero where every weight is. Weights [M] may be true or false."""
    weights = weights.astype(rows.dtype)
    shares = weights / jnp.maximum(weights.sum(), jnp.finfo(rows.dtype).tiny)
    return jnp.tensordot(shares, rows, axes=1, precision="highest")


def median_of(values: Array, heard: Array) -> Array:
    """Median over the first axis of the values [M, ...] of those heard [M]; infinite where nobody was."""
    n = heard.sum()
    last = jnp.where(heard.reshape(heard.shape + (1,) * (values.ndim - 1)), values, jnp.inf)
    ascending = jnp.sort(last, axis=0)
    return 0.5 * ascending[(n - 1) // 2] + 0.5 * ascending[n // 2]


def squared_distances(rows: Array) -> Array:
    """|x_i - x_j|^2 [M, M] of rows [M, d].

    By differences: |x_i|^2 + |x_j|^2 - 2 x_i.x_j is faster, but of close rows float32 would leave no digit.
    """
    return jax.lax.map(lambda row: jnp.square(rows - row[None]).sum(axis=1), rows)


def _norms(rows: Array) -> Array:
    return jnp.linalg.norm(rows, axis=1)


def _shrink(norms: Array, bound: Array) -> Array:
    """[M, 1], what brings norms [M] down to a bound; an infinite norm becomes 0."""
    return jnp.minimum(1.0, bound / jnp.maximum(norms, jnp.finfo(norms.dtype).tiny))[:, None]


def _order(scores: Array, heard: Array) -> Array:
    """Rows by ascending score, those heard first; scores may be infinite."""
    return jnp.lexsort((scores, ~heard))


def _ranks(scores: Array, heard: Array) -> Array:
    """The place of each along the last axis in `_order`."""
    return jnp.argsort(_order(scores, heard), axis=-1)


def _neighbours(rows: Array) -> tuple[Array, Array]:
    """(Squared distances of each row to all rows [M, M], ascending; the numbers of these rows)."""
    distances = squared_distances(rows)
    numbers = jnp.argsort(distances, axis=1)
    return jnp.take_along_axis(distances, numbers, axis=1), numbers


def _krum_scores(distances: Array, numbers: Array, heard: Array, f: Array) -> Array:
    """Of each row the sum of its n - f - 2 smallest distances to others; to one other at least."""
    others = heard[numbers] & (numbers != jnp.arange(len(heard))[:, None])
    among_nearest = jnp.cumsum(others, axis=1) <= jnp.maximum(heard.sum() - f - 2, 1)
    return jnp.where(others & among_nearest, distances, 0.0).sum(axis=1)


def _mean_around_median(rows: Array, heard: Array, count: Array) -> Array:
    """Per coordinate the mean of the `count` values of those heard that are closest to their median."""
    middle = median_of(rows, heard)
    away = jnp.where(heard[:, None], jnp.abs(rows - middle[None]), jnp.inf)
    _, closest = jax.lax.sort((away, rows), dimension=0, num_keys=1)
    kept = jnp.arange(len(rows))[:, None] < count
    return jnp.where(kept, closest, 0.0).sum(axis=0) / jnp.maximum(count, 1)

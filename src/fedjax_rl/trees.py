"""Operations on stacked pytrees that optax.tree lacks."""

from collections.abc import Callable

import jax
import jax.numpy as jnp

from fedjax_rl.types import Array, Tree


def take(tree: Tree, ids: Array | int) -> Tree:
    """Rows `ids` [M] of every leaf [N, ...] -> [M, ...]."""
    return jax.tree.map(lambda x: x[ids], tree)


def put(tree: Tree, ids: Array, rows: Tree) -> Tree:
    """Every leaf [N, ...] with its rows `ids` [M] replaced by `rows` [M, ...]; ids are unique."""
    return jax.tree.map(lambda x, r: x.at[ids].set(r, unique_indices=True), tree, rows)


def axpy(a: Array | float, x: Tree, y: Tree) -> Tree:
    """a * x + y, leaf by leaf, in the dtype of y."""
    return jax.tree.map(lambda p, q: (a * p + q).astype(q.dtype), x, y)


def sub(x: Tree, y: Tree) -> Tree:
    """x - y, leaf by leaf."""
    return jax.tree.map(jnp.subtract, x, y)


def select(chosen: Array, x: Tree, y: Tree) -> Tree:
    """x where `chosen`, else y. `chosen` is () or [M], broadcast from the left; unlike a product, safe for NaN."""

    def leaf(p, q):
        if jax.dtypes.issubdtype(p.dtype, jax.dtypes.prng_key):
            return jnp.where(chosen, p, q)
        return jnp.where(chosen.reshape(chosen.shape + (1,) * (p.ndim - chosen.ndim)), p, q)

    return jax.tree.map(leaf, x, y)


def where_path(wanted: Callable[[set[str]], bool], tree: Tree) -> Tree:
    """The tree with None (no leaf) in place of every leaf whose path, as a set of names, is not `wanted`."""

    def parts(path) -> set[str]:
        return {str(getattr(entry, "key", getattr(entry, "name", None))) for entry in path}

    return jax.tree_util.tree_map_with_path(lambda path, x: x if wanted(parts(path)) else None, tree)


def merge(tree: Tree, other: Tree) -> Tree:
    """Two complementary results of `where_path` as one tree."""
    return jax.tree.map(lambda x, y: y if x is None else x, tree, other, is_leaf=lambda x: x is None)


def all_finite(tree: Tree) -> Array:
    """() bool: every floating-point entry of every leaf is finite."""
    leaves = [x for x in jax.tree.leaves(tree) if jnp.issubdtype(x.dtype, jnp.floating)]
    return jnp.stack([jnp.all(jnp.isfinite(x)) for x in leaves]).all() if leaves else jnp.array(True)


def num_bytes(tree: Tree) -> int:
    """Bytes of all leaves (shapes are enough)."""
    return sum(x.size * x.dtype.itemsize for x in jax.tree.leaves(tree))

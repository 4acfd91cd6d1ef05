"""Operations on stacked pytrees that optax.tree lacks, and the seam between sampling and learning."""

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


def chunked(fn: Callable, client_batch: int | None) -> Callable:
    """Make a `vmap` over a function run a few clients at a time.

    Sampling wants the whole cohort in one batch: one physics call a step. Learning wants one client at a time on a CPU:
    it is faster, and takes a fraction of the memory. This is the seam between the two.

    Args:
      fn: a function of one client; its arguments and results are pytrees of arrays.
      client_batch: how many clients at a time; None: all at once.

    Returns:
      The same function, mapped in another way.

    >>> import jax, jax.numpy as jnp
    >>> jax.vmap(parts.chunked(lambda x: 2 * x, 2))(jnp.arange(5)).tolist()
    [0, 2, 4, 6, 8]
    """
    if client_batch is None:
        return fn

    def call(*args: Tree) -> Tree:
        # traced hyperparameters that fn closes over become arguments: a sweep maps over them
        converted, hoisted = jax.closure_convert(fn, *args)
        return _mapped_in_chunks(converted, client_batch)(*args, *hoisted)

    return call


def _mapped_in_chunks(fn: Callable, client_batch: int) -> Callable:
    mapped = jax.custom_batching.custom_vmap(fn)

    @mapped.def_vmap
    def rule(axis_size: int, in_batched: Tree, *args: Tree) -> tuple[Tree, Tree]:
        leaves, treedef = jax.tree.flatten(args)
        flags = jax.tree.leaves(in_batched)
        # a further vmap (the members of a sweep) goes through the same loop, unless chunks are mapped already
        inner = mapped if client_batch == 1 else fn

        def one(batched_rows: Tree) -> Tree:
            rows = iter(batched_rows)
            return inner(
                *jax.tree.unflatten(treedef, [next(rows) if b else x for x, b in zip(leaves, flags, strict=True)])
            )

        batched = [x for x, b in zip(leaves, flags, strict=True) if b]
        # a chunk of one needs no vmap inside, which keeps the matrix products plain
        out = jax.lax.map(one, batched, batch_size=None if client_batch == 1 else min(client_batch, axis_size))
        return out, jax.tree.map(lambda _: True, out)

    return mapped

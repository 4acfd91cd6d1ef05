"""The seam between sampling and learning: a `vmap` that runs a few clients at a time."""

from collections.abc import Callable

import jax

from fedjax_rl.types import Tree


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

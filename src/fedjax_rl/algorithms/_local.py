"""What the algorithms share: the local SGD loop, its chunking over clients, and the default server."""

from collections.abc import Callable

import jax
import jax.numpy as jnp
import optax

from fedjax_rl import meta, trees
from fedjax_rl.types import Algorithm, Params, Problem, Server, Tree


def chunked(fn: Callable, client_batch: int | None) -> Callable:
    """`fn`, except that a `vmap` over it runs `client_batch` clients at a time (None: all at once).

    Sampling wants the whole cohort in one batch, one physics call a step; learning steps run faster on a CPU, and in a
    fraction of the memory, one client at a time. This is the seam between the two.
    """
    if client_batch is None:
        return fn
    mapped = jax.custom_batching.custom_vmap(fn)

    @mapped.def_vmap
    def rule(axis_size, in_batched, *args):
        leaves, treedef = jax.tree.flatten(args)
        flags = jax.tree.leaves(in_batched)

        def one(rows):
            rows = iter(rows)
            return fn(
                *jax.tree.unflatten(treedef, [next(rows) if b else x for x, b in zip(leaves, flags, strict=True)])
            )

        batched = [x for x, b in zip(leaves, flags, strict=True) if b]
        # a chunk of one needs no vmap inside, which keeps the matrix products plain
        out = jax.lax.map(one, batched, batch_size=None if client_batch == 1 else min(client_batch, axis_size))
        return out, jax.tree.map(lambda _: True, out)

    return mapped


def local_change(
    gradient: Callable[..., Params],
    client_opt: optax.GradientTransformation,
    local_steps: int,
    client_batch: int | None,
) -> Callable[..., Params]:
    """(start, *data) -> theta_T - theta_0 after `local_steps` steps of `client_opt` on gradient(theta, *data).

    The data is never resampled between the steps.
    """

    def change(start: Params, *data: Tree) -> Params:
        def step(carry, _):
            params, opt_state = carry
            updates, opt_state = client_opt.update(gradient(params, *data), opt_state, params)
            return (optax.apply_updates(params, updates), opt_state), None

        (params, _), _ = jax.lax.scan(step, (start, client_opt.init(start)), length=local_steps)
        return trees.sub(params, start)

    return chunked(change, client_batch)


def one_model(
    problem: Problem,
    client_update: Callable,
    server_opt: optax.GradientTransformation,
    inner_lr,
    client_batch: int | None,
) -> Algorithm:
    """An algorithm whose clients keep nothing and whose server holds one model, moved by `server_opt`.

    The server treats minus the mean change as a gradient (Reddi et al., "Adaptive Federated Optimization", ICLR 2021).
    Adaptation is one gradient step of rate `inner_lr`.
    """

    def init(key):
        params = problem.init(key)
        return Server(shared=params, private=server_opt.init(params))

    def server_update(server, aggregate, key):
        del key
        pseudo_gradient = jax.tree.map(jnp.negative, aggregate.message)
        updates, private = server_opt.update(pseudo_gradient, server.private, server.shared)
        return Server(optax.apply_updates(server.shared, updates), private)

    adapt = chunked(lambda params, batch: meta.adapt(problem.loss, params, batch, inner_lr), client_batch)
    return Algorithm(
        init=init,
        init_client=lambda shared, key: (),
        client_update=client_update,
        server_update=server_update,
        personal_params=lambda shared, client: shared,
        adapt=lambda shared, client, params, batch: adapt(params, batch),
    )

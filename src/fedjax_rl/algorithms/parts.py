"""What the algorithms share: the local SGD loop, its chunking over clients, and the default server."""

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import optax

from fedjax_rl import meta, trees
from fedjax_rl.types import (
    NONFINITE_ENVS,
    STRAGGLERS,
    Aggregate,
    Algorithm,
    Array,
    Key,
    Metrics,
    Params,
    Problem,
    Server,
    Stats,
    Tree,
    Upload,
)


def chunked(fn: Callable, client_batch: int | None) -> Callable:
    """`fn`, except that a `vmap` over it runs `client_batch` clients at a time (None: all at once).

    Sampling wants the whole cohort in one batch, one physics call a step; learning steps run faster on a CPU, and in a
    fraction of the memory, one client at a time. This is the seam between the two.
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


def local_change(
    gradient: Callable[..., Any],
    client_opt: optax.GradientTransformation,
    local_steps: int,
    client_batch: int | None,
    *,
    has_aux: bool = False,
) -> Callable[..., Any]:
    """(start, *data) -> theta_T - theta_0 after `local_steps` steps of `client_opt` on gradient(theta, *data).

    The data is never resampled between the steps. With `has_aux`, gradient returns (gradient, aux) and the result is
    (theta_T - theta_0, aux [T, ...]).
    """

    def change(start: Params, *data: Tree) -> Any:
        def step(carry: Tree, _: None) -> tuple[Tree, Tree]:
            params, opt_state = carry
            out = gradient(params, *data)
            direction, aux = out if has_aux else (out, ())
            updates, opt_state = client_opt.update(direction, opt_state, params)
            return (optax.apply_updates(params, updates), opt_state), aux

        (params, _), aux = jax.lax.scan(step, (start, client_opt.init(start)), length=local_steps)
        moved = trees.sub(params, start)
        return (moved, aux) if has_aux else moved

    return chunked(change, client_batch)


_STRAGGLE = 1 << 20  # apart from the keys that algorithms make of theirs: who straggles changes no other draw


def measured(*stats: Stats, also: Stats | None = None) -> Metrics:
    """A client's metrics from what each of its batches showed: before adaptation, after a step, ...

    Where a batch is sampled anew in every local step its stats are [T], and the first step's return stands for it.
    `also`: a further batch, whose return is not of the model that is measured.
    """
    returns = {f"return/adapt_{j}": jnp.ravel(s.returned)[0] for j, s in enumerate(stats)}
    counts = [jnp.sum(s.nonfinite_envs) for s in (*stats, also) if s is not None]
    # a float, as everything that a client reports: a round on several devices gathers all of it at once
    return {**returns, NONFINITE_ENVS: jnp.stack(counts).sum().astype(stats[0].returned.dtype)}


def one_model(
    problem: Problem,
    client_update: Callable,
    server_opt: optax.GradientTransformation,
    inner_lr: Array | float,
    client_batch: int | None,
    *,
    init_shared: Callable[[Params], Tree] = lambda params: params,
) -> Algorithm:
    """An algorithm whose clients keep nothing and whose server holds one model, moved by `server_opt`.

    The server treats minus the mean change as a gradient (Reddi et al., "Adaptive Federated Optimization", ICLR 2021).
    Adaptation is one gradient step of rate `inner_lr`. Algorithms that differ in a part replace that part.
    `init_shared` makes what is broadcast from the problem's initial parameters; messages have its structure.
    """

    def init(key: Key) -> Server:
        shared = init_shared(problem.init(key))
        return Server(shared=shared, private=server_opt.init(shared))

    def server_update(server: Server, aggregate: Aggregate, key: Key) -> Server:
        del key
        pseudo_gradient = jax.tree.map(jnp.negative, aggregate.message)
        updates, private = server_opt.update(pseudo_gradient, server.private, server.shared)
        return Server(optax.apply_updates(server.shared, updates), private)

    adapt = chunked(lambda params, batch: meta.adapt(problem.loss, params, batch, inner_lr), client_batch)
    return Algorithm(
        init=init,
        init_client=lambda shared, key, id: (),
        client_update=client_update,
        server_update=server_update,
        personal_params=lambda shared, client: shared,
        adapt=lambda shared, client, params, batch: adapt(params, batch),
    )


def keep_on_client(algorithm: Algorithm, names: tuple[str, ...]) -> Algorithm:
    """The same algorithm, except that the parameters under `names` are each client's own and are never sent.

    A leaf is kept when a part of its path is one of `names`. The algorithm's messages must be changes of the model
    that it was sent. A client starts from a fresh draw of its own part, trains it with the rest, and keeps it.

    Source: Collins et al., "Exploiting Shared Representations for Personalized Federated Learning", ICML 2021, where
    the part kept is the head.
    """

    def drop(tree: Tree) -> Tree:
        return trees.where_path(lambda parts: not parts & set(names), tree)

    def own(params: Params) -> Tree:
        return trees.where_path(lambda parts: bool(parts & set(names)), params)

    def init_client(shared: Tree, key: Key, id: Array) -> Tree:
        fresh_key, client_key = jax.random.split(key)
        kept = own(algorithm.init(fresh_key).shared)
        return {"kept": kept, "client": algorithm.init_client(trees.merge(shared, kept), client_key, id)}

    def client_update(shared: Tree, client: Tree, task: Tree, key: Key) -> tuple[Upload, Tree, Metrics]:
        whole = trees.merge(shared, client["kept"])
        upload, inner, metrics = algorithm.client_update(whole, client["client"], task, key)
        kept = trees.axpy(1.0, own(upload.message), client["kept"])
        return upload._replace(message=drop(upload.message)), {"kept": kept, "client": inner}, metrics

    def whole(shared: Tree, client: Tree) -> tuple[Tree, Tree]:
        return trees.merge(shared, client["kept"]), client["client"]

    return Algorithm(
        init=lambda key: drop(algorithm.init(key)),
        init_client=init_client,
        client_update=client_update,
        server_update=algorithm.server_update,
        personal_params=lambda shared, client: algorithm.personal_params(*whole(shared, client)),
        adapt=lambda shared, client, params, batch: algorithm.adapt(*whole(shared, client), params, batch),
    )


def with_stragglers(
    make: Callable[[optax.GradientTransformation], Algorithm],
    client_opt: optax.GradientTransformation,
    local_steps: int,
    share: Array | float,
) -> Algorithm:
    """The algorithm make(client_opt), some of whose clients are too slow to take all their local steps.

    In every round a client straggles with probability `share`: it takes s steps of `client_opt`, s uniform on
    1..local_steps - 1, and its message weighs s / local_steps. (What it does with other optimisers, such as Ditto's
    personal steps, is not cut.) Its "health/stragglers" is 1.

    Source: partial work as in Li et al., "Federated Optimization in Heterogeneous Networks", MLSys 2020, section 5.2,
    which weighs it like whole work.
    """

    def client_update(shared: Tree, client: Tree, task: Tree, key: Key) -> tuple[Upload, Tree, Metrics]:
        who_key, steps_key = jax.random.split(jax.random.fold_in(key, _STRAGGLE))
        straggles = jax.random.uniform(who_key) < share
        steps = jax.random.randint(steps_key, (), 1, local_steps)
        # floats: what the algorithm closes over must be one to go through its chunks
        taken = jnp.where(straggles, steps / local_steps, 1.0)
        last = jnp.where(straggles, steps.astype(jnp.float32), jnp.inf)  # FedRep may take more steps on its head
        upload, client, metrics = make(_first_steps(client_opt, last)).client_update(shared, client, task, key)
        upload = upload._replace(weight=upload.weight * taken)
        return upload, client, {**metrics, STRAGGLERS: straggles.astype(upload.weight.dtype)}

    return make(client_opt)._replace(client_update=client_update)


def _first_steps(opt: optax.GradientTransformation, count: Array) -> optax.GradientTransformation:
    """`opt`, which stands still after `count` steps."""

    def update(updates: Tree, state: Tree, params: Params | None = None) -> tuple[Tree, Tree]:
        step, inner = state
        updates, inner = opt.update(updates, inner, params)
        return jax.tree.map(lambda u: jnp.where(step < count, u, 0.0), updates), (step + 1.0, inner)

    return optax.GradientTransformation(lambda params: (jnp.zeros(()), opt.init(params)), update)

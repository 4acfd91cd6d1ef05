"""What the algorithms share: the local SGD loop, its chunking over clients, and the default server.

Also for algorithms of your own: these names stay what they are.
"""

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import optax

from fedjax_rl import meta, trees
from fedjax_rl.trees import chunked
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

__all__ = ["chunked", "keep_on_client", "local_change", "measured", "one_model", "with_stragglers"]


def local_change(
    gradient: Callable[..., Any],
    client_opt: optax.GradientTransformation,
    local_steps: int,
    client_batch: int | None,
    *,
    has_aux: bool = False,
) -> Callable[..., Any]:
    """Make a client's local steps: theta_0 = start, then K steps of an optimizer on the same data.

    The result is theta_K - theta_0, with K = local_steps. Source: McMahan et al., "Communication-Efficient Learning of
    Deep Networks from Decentralized Data", AISTATS 2017, Algorithm 1, ClientUpdate, on one batch.

    Args:
      gradient: (theta, *data) -> the gradient at theta; with `has_aux`, (gradient, aux).
      client_opt: the optimizer; its state begins anew in each round.
      local_steps: K.
      client_batch: clients at a time, as for `chunked`.
      has_aux: does `gradient` give something else too?

    Returns:
      A function (start, *data) -> theta_K - theta_0; with `has_aux`, -> (theta_K - theta_0, aux [K, ...]).

    >>> import jax, optax
    >>> change = parts.local_change(jax.grad(lambda x, task: (x - task) ** 2), optax.sgd(0.25), 2, None)
    >>> float(change(0.0, 1.0))
    0.75
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
    """Make a client's metrics from what its batches showed.

    Args:
      stats: of its batches: before adaptation, after one step, ... Where a batch is sampled anew in every local step
        they are [K], and the first step's return is taken.
      also: of one more batch, whose return is not of the model that is measured.

    Returns:
      "return/adapt_0", "return/adapt_1", ... and "health/nonfinite_envs", the sum over all batches; () each.

    >>> import jax.numpy as jnp
    >>> sorted(parts.measured(Stats(jnp.ones(()), jnp.int32(0))))
    ['health/nonfinite_envs', 'return/adapt_0']
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
    """Make an algorithm whose clients keep nothing and whose server holds one model.

    The server takes minus the mean change for a gradient: theta' = theta + server_opt(-mean change). Adaptation is one
    gradient step: theta - inner_lr grad L(theta). An algorithm that differs in a part replaces it, say by
    `._replace(adapt=...)`.

    Source: Reddi et al., "Adaptive Federated Optimization", ICLR 2021, Algorithm 1.

    Args:
      problem: the problem.
      client_update: (shared, client, task, key) -> (upload, client, metrics); the message is a change of the model.
      server_opt: the server's optimizer.
      inner_lr: rate of the adaptation.
      client_batch: clients at a time, as for `chunked`.
      init_shared: the problem's initial parameters -> what clients are sent; messages have its structure.

    Returns:
      The algorithm.
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
    """Make some of an algorithm's parameters each client's own, which are never sent.

    A client starts from a fresh draw of its own part. It trains it with the rest, and keeps it.

    Source: Collins et al., "Exploiting Shared Representations for Personalized Federated Learning", ICML 2021, where
    the part kept is the head.

    Args:
      algorithm: its messages must be changes of the model that it was sent.
      names: a leaf is kept when a part of its path is one of them.

    Returns:
      The other algorithm.

    Raises:
      ValueError: the algorithm has more than one exchange in a round.
    """
    if algorithm.exchanges is not None:
        raise ValueError("keep_on_client: exchanges after the first do not know of what is kept; take another critic")

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
        idle=algorithm.idle,
    )


def with_stragglers(
    make: Callable[[optax.GradientTransformation], Algorithm],
    client_opt: optax.GradientTransformation,
    local_steps: int,
    share: Array | float,
) -> Algorithm:
    """Make some clients of an algorithm too slow to take all their local steps.

    In every round a client straggles with probability `share`. It then takes s steps, s uniform on 1..local_steps - 1,
    and its message weighs s / local_steps. Its metric "health/stragglers" is 1. Steps of other optimizers, such as
    Ditto's personal ones, are not cut.

    Source: partial work as in Li et al., "Federated Optimization in Heterogeneous Networks", MLSys 2020, section 5.2,
    which weighs it like whole work.

    Args:
      make: the local steps' optimizer -> the algorithm.
      client_opt: that optimizer.
      local_steps: how many steps a client takes that is not slow.
      share: the probability, 0 to 1.

    Returns:
      The algorithm with stragglers.
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

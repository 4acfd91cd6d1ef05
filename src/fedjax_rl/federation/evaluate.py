"""Scores before adaptation and after each of its steps, client by client."""

from collections.abc import Callable, Sequence
from typing import Any

import jax
import jax.numpy as jnp
from jax.sharding import Mesh

from fedjax_rl import trees
from fedjax_rl.federation.placement import jit, map_clients
from fedjax_rl.types import Algorithm, Array, Key, Problem, Shared, Tree

AT_ONCE = 1000  # clients evaluated together: at the paper's size these take 2 GiB


def make_steps(make: Callable[[Any], tuple[Problem, Algorithm]], mesh: Mesh | None = None) -> tuple[Callable, Callable]:
    """The two programs of which an evaluation consists, for n clients at once.

    Args:
      make: values -> (problem, algorithm); called while tracing, so that the values may be numbers that differ from
        step to step and from run to run without a second compilation.
      mesh: the devices that share the clients; None for one.

    Returns:
      start: (values, shared, clients [n], tasks [n]) -> models [n], each client's personal_params.
      column: (values, shared, clients [n], models [n], tasks [n], keys [n]) -> (returns [n], models [n]): E fresh
        episodes of each model, their mean return, and the model after a step of `adapt` on those episodes. A model that
        is not finite has the return NaN: no episode of it has a step, and 0 may be the best that there is.
    """

    def start(values, shared: Shared, clients: Tree, tasks: Tree):
        size = jax.tree.leaves(tasks)[0].shape[0]
        return jax.vmap(make(values)[1].personal_params, in_axes=(None, 0), axis_size=size)(shared, clients)

    def column(values, shared: Shared, clients: Tree, models: Tree, tasks: Tree, keys: Key):
        problem, algorithm = make(values)

        def one(client, params, task, client_key):
            batch, stats = problem.sample(params, task, client_key)
            returned = jnp.where(trees.all_finite(params), stats.returned, jnp.nan)
            return returned, algorithm.adapt(shared, client, params, batch)

        return map_clients(one)(clients, models, tasks, keys)

    return jit(start, mesh), jit(column, mesh)


def column_keys(key: Key, j: int, ids: Array) -> Key:
    """The keys [n] of clients ids [n] in column j: fold_in(fold_in(key, j), id)."""
    return jax.vmap(jax.random.fold_in, in_axes=(None, 0))(jax.random.fold_in(key, j), ids)


def make_evaluate(
    make: Callable[[Any], tuple[Problem, Algorithm]],
    mesh: Mesh | None = None,
    pause: Callable[[], None] = lambda: None,
    at_once: int = AT_ONCE,
) -> Callable[[Sequence[Any], Shared, Tree, Tree, Key], Array]:
    """Evaluation of n clients, trained or new, `at_once` at a time.

    For every client: model_0 = personal_params; for j = 0..k: sample E fresh episodes with model_j, whose mean return
    is column j; model_{j+1} = adapt(model_j) on those episodes.

    Args:
      make, mesh: as for `make_steps`.
      pause: called before every column, which may take minutes; it may end the evaluation by raising.

    Returns:
      (values of each column [k+1], shared, clients [n], tasks [n], key) -> returns [n, k+1] in the undiscounted return
      of an episode. Client i draws from `column_keys`, so that its score does not depend on n.
    """
    start, column = make_steps(make, mesh)

    def some(values: Sequence[Any], shared: Shared, clients: Tree, tasks: Tree, key: Key, ids: Array) -> Array:
        models = start(values[0], shared, clients, tasks)
        columns = []
        for j, now in enumerate(values):
            pause()
            # the step after the last column is not needed; taking it costs less than compiling a second program
            returned, models = column(now, shared, clients, models, tasks, column_keys(key, j, ids))
            columns.append(returned)
        return jnp.stack(columns, axis=1)

    def evaluate(values: Sequence[Any], shared: Shared, clients: Tree, tasks: Tree, key: Key) -> Array:
        ids = jnp.arange(jax.tree.leaves(tasks)[0].shape[0])
        parts = []
        for first in range(0, len(ids), at_once):
            own, task, now = jax.tree.map(lambda x: x[first : first + at_once], (clients, tasks, ids))
            parts.append(some(values, shared, own, task, key, now))
        return jnp.concatenate(parts)

    return evaluate

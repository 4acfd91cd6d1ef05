"""Scores before adaptation and after each of its steps, client by client."""

from collections.abc import Callable, Sequence
from typing import Any

import jax
import jax.numpy as jnp
from jax.sharding import Mesh

from fedjax_rl.placement import jit, map_clients
from fedjax_rl.types import Algorithm, Array, Key, Problem, Shared, Tree


def make_evaluate(
    make: Callable[[Any], tuple[Problem, Algorithm]],
    mesh: Mesh | None = None,
) -> Callable[[Sequence[Any], Shared, Tree, Tree, Key], Array]:
    """Evaluation of n clients at once, trained or new.

    For every client: model_0 = personal_params; for j = 0..k: sample E fresh episodes with model_j, whose mean return
    is column j; model_{j+1} = adapt(model_j) on those episodes.

    Args:
      make: values -> (problem, algorithm); called while tracing, so that the values may be numbers that differ from
        step to step and from run to run without a second compilation.
      mesh: the devices that share the clients; None for one.

    Returns:
      (values of each column [k+1], shared, clients [n], tasks [n], key) -> returns [n, k+1] in the undiscounted return
      of an episode. Client i draws from fold_in(fold_in(key, j), i), so that its score does not depend on n.
    """

    def start(values, shared: Shared, clients: Tree, tasks: Tree):
        size = jax.tree.leaves(tasks)[0].shape[0]
        return jax.vmap(make(values)[1].personal_params, in_axes=(None, 0), axis_size=size)(shared, clients)

    def column(values, shared: Shared, clients: Tree, models: Tree, tasks: Tree, key: Key):
        problem, algorithm = make(values)

        def one(client, params, task, client_key):
            batch, returned = problem.sample(params, task, client_key)
            return returned, algorithm.adapt(shared, client, params, batch)

        ids = jnp.arange(jax.tree.leaves(tasks)[0].shape[0])
        keys = jax.vmap(jax.random.fold_in, in_axes=(None, 0))(key, ids)
        return map_clients(one)(clients, models, tasks, keys)

    start, column = jit(start, mesh), jit(column, mesh)

    def evaluate(values: Sequence[Any], shared: Shared, clients: Tree, tasks: Tree, key: Key) -> Array:
        models = start(values[0], shared, clients, tasks)
        columns = []
        for j, now in enumerate(values):
            # the step after the last column is not needed; taking it costs less than compiling a second program
            returned, models = column(now, shared, clients, models, tasks, jax.random.fold_in(key, j))
            columns.append(returned)
        return jnp.stack(columns, axis=1)

    return evaluate

"""Scores before adaptation and after each of its steps, client by client."""

from collections.abc import Callable

import jax
import jax.numpy as jnp

from fedjax_rl.types import Algorithm, Array, Key, Params, Problem, Shared, Tree


def make_evaluate(
    problem: Problem, algorithm: Algorithm, adapts: tuple[Callable, ...]
) -> Callable[[Shared, Tree, Tree, Key], Array]:
    """Evaluation of n clients at once, trained or new.

    For every client: model_0 = personal_params; for j = 0..k: sample E fresh episodes with model_j, whose mean return
    is column j; model_{j+1} = adapts[j](model_j) on those episodes.

    Args:
      problem: its `sample` draws the episodes.
      algorithm: whose personal models start.
      adapts: the k steps of adaptation, usually (algorithm.adapt,) * k; each is compiled once.

    Returns:
      (shared, clients [n], tasks [n], key) -> returns [n, k+1] in the undiscounted return of an episode. Client i draws
      from fold_in(fold_in(key, j), i), so that its score does not depend on n.
    """

    def score(adapt, shared: Shared, clients: Tree, models: Params, tasks: Tree, key: Key):
        def one(client, params, task, client_key):
            batch, returned = problem.sample(params, task, client_key)
            return returned, params if adapt is None else adapt(shared, client, params, batch)

        ids = jnp.arange(jax.tree.leaves(tasks)[0].shape[0])
        keys = jax.vmap(jax.random.fold_in, in_axes=(None, 0))(key, ids)
        return jax.vmap(one)(clients, models, tasks, keys)

    compiled = {adapt: jax.jit(lambda *args, adapt=adapt: score(adapt, *args)) for adapt in (*adapts, None)}

    def evaluate(shared: Shared, clients: Tree, tasks: Tree, key: Key) -> Array:
        size = jax.tree.leaves(tasks)[0].shape[0]
        models = jax.vmap(algorithm.personal_params, in_axes=(None, 0), axis_size=size)(shared, clients)
        columns = []
        for j in range(len(adapts) + 1):
            # the step after the last column is not needed; taking it costs less than compiling a second program
            adapt = adapts[min(j, len(adapts) - 1)] if adapts else None
            returned, models = compiled[adapt](shared, clients, models, tasks, jax.random.fold_in(key, j))
            columns.append(returned)
        return jnp.stack(columns, axis=1)

    return evaluate

"""No federation: every client learns alone. What any federation has to beat."""

import jax
import jax.numpy as jnp
import optax

from fedjax_rl import trees
from fedjax_rl.algorithms.parts import local_change, measured, one_model
from fedjax_rl.types import Algorithm, Problem, Server, Upload


def independent(
    problem: Problem,
    *,
    client_opt: optax.GradientTransformation,
    local_steps: int,
    inner_lr: float,
    client_batch: int | None = None,
) -> Algorithm:
    """D ~ own model; `local_steps` steps of `client_opt` on L(.; D); nothing is sent (the message has no entries).

    All clients start from one draw of the parameters, as in a federation; a new client starts there too. Arguments as
    for `fedavg`, without a server optimiser.
    """
    change = local_change(jax.grad(problem.loss), client_opt, local_steps, client_batch)

    def client_update(shared, client, task, key):
        batch, before = problem.sample(client, task, key)
        trained = trees.axpy(1.0, change(client, batch), client)
        return Upload(jnp.zeros((0,)), jnp.ones(())), trained, measured(before)

    return one_model(problem, client_update, optax.identity(), inner_lr, client_batch)._replace(
        init=lambda key: Server(problem.init(key), ()),
        init_client=lambda shared, key, id: problem.own(shared, id),
        server_update=lambda server, aggregate, key: server,
        personal_params=lambda shared, client: client,
    )

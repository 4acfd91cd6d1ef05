"""FedSign: clients send the signs of their change, the server follows the mean of the votes."""

from typing import Annotated

import jax
import jax.numpy as jnp

from fedjax_rl.algorithms.parts import local_change, measured, one_model
from fedjax_rl.config.guests import Range
from fedjax_rl.types import Algorithm, Upload


def fedsign(
    problem,
    *,
    client_opt,
    server_opt,
    local_steps,
    inner_lr,
    client_batch=None,
    scale: Annotated[float, Range(0, 1)] = 1e-3,
) -> Algorithm:
    """FedSign: clients send the sign of each entry of their change, times `scale`."""
    change = local_change(jax.grad(problem.loss), client_opt, local_steps, client_batch)

    def client_update(shared, client, task, key):
        batch, before = problem.sample(shared, task, key)
        votes = jax.tree.map(lambda x: scale * jnp.sign(x), change(shared, batch))
        return Upload(votes, jnp.ones(())), client, measured(before)

    return one_model(problem, client_update, server_opt, inner_lr, client_batch)

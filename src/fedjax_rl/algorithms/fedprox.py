"""FedProx: FedAvg whose clients are held near the model that they received."""

import jax
import jax.numpy as jnp
import optax

from fedjax_rl import trees
from fedjax_rl.algorithms.parts import local_change, measured, one_model
from fedjax_rl.types import Algorithm, Problem, Upload


def fedprox(
    problem: Problem,
    *,
    client_opt: optax.GradientTransformation,
    server_opt: optax.GradientTransformation,
    local_steps: int,
    inner_lr: float,
    mu: float = 0.01,
    client_batch: int | None = None,
) -> Algorithm:
    """FedAvg on L(theta; D) + mu/2 |theta - theta_k|^2.

    Source: Li et al., "Federated Optimization in Heterogeneous Networks", MLSys 2020, Eq. 2. Arguments as for `fedavg`.
    """

    def gradient(params, received, batch):
        return trees.axpy(mu, trees.sub(params, received), jax.grad(problem.loss)(params, batch))

    change = local_change(gradient, client_opt, local_steps, client_batch)

    def client_update(shared, client, task, key):
        batch, before = problem.sample(shared, task, key)
        return Upload(change(shared, shared, batch), jnp.ones(())), client, measured(before)

    return one_model(problem, client_update, server_opt, inner_lr, client_batch)

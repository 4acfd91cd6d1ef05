"""Ditto: FedAvg, and beside it a personal model on every client, held near the global one."""

import jax
import jax.numpy as jnp
import optax

from fedjax_rl import trees
from fedjax_rl.algorithms.parts import local_change, measured, one_model
from fedjax_rl.types import Algorithm, Problem, Upload


def ditto(
    problem: Problem,
    *,
    client_opt: optax.GradientTransformation,
    server_opt: optax.GradientTransformation,
    local_steps: int,
    inner_lr: float,
    personal_lr: float = 0.01,
    penalty: float = 1.0,
    client_batch: int | None = None,
) -> Algorithm:
    """FedAvg for the global model; the personal model v takes `local_steps` steps of its own a round.

    D ~ theta_k moves the global model as in `fedavg`. D' ~ v, then
    v <- v - personal_lr (grad L(v; D') + penalty (v - theta_k)), with theta_k as received. The client keeps v.

    Source: Li, Hu, Beirami, Smith, "Ditto: Fair and Robust Federated Learning Through Personalization", ICML 2021,
    Algorithm 1. Other arguments as for `fedavg`.
    """

    def pulled(v, received, batch):
        return trees.axpy(penalty, trees.sub(v, received), jax.grad(problem.loss)(v, batch))

    change = local_change(jax.grad(problem.loss), client_opt, local_steps, client_batch)
    personal_change = local_change(pulled, optax.sgd(personal_lr), local_steps, client_batch)

    def client_update(shared, client, task, key):
        global_key, personal_key = jax.random.split(key)
        batch, of_global = problem.sample(shared, task, global_key)
        own_batch, before = problem.sample(client, task, personal_key)
        personal = trees.axpy(1.0, personal_change(client, shared, own_batch), client)
        return Upload(change(shared, batch), jnp.ones(())), personal, measured(before, also=of_global)

    return one_model(problem, client_update, server_opt, inner_lr, client_batch)._replace(
        init_client=lambda shared, key, id: shared, personal_params=lambda shared, client: client
    )

"""FedAvg: local policy-gradient steps, averaged by the server."""

import jax
import jax.numpy as jnp
import optax

from fedjax_rl.algorithms.parts import local_change, measured, one_model
from fedjax_rl.types import Algorithm, Problem, Upload


def fedavg(
    problem: Problem,
    *,
    client_opt: optax.GradientTransformation,
    server_opt: optax.GradientTransformation,
    local_steps: int,
    inner_lr: float,
    client_batch: int | None = None,
) -> Algorithm:
    """One model for all: D ~ theta_k, `local_steps` steps of `client_opt` on L(.; D), upload theta_T - theta_k.

    Source: McMahan et al., "Communication-Efficient Learning of Deep Networks from Decentralized Data", AISTATS 2017;
    as a baseline in Liu et al. 2024, with Fed-Adam on the server. Arguments as for `fmrl`; `inner_lr` is the rate of
    the adaptation that evaluation tries.
    """
    change = local_change(jax.grad(problem.loss), client_opt, local_steps, client_batch)

    def client_update(shared, client, task, key):
        batch, before = problem.sample(shared, task, key)
        return Upload(change(shared, batch), jnp.ones(())), client, measured(before)

    return one_model(problem, client_update, server_opt, inner_lr, client_batch)

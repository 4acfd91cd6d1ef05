"""Reptile: meta-learning by moving towards where several steps of learning lead."""

import jax
import jax.numpy as jnp
import optax

from fedjax_rl import trees
from fedjax_rl.algorithms.parts import chunked, measured, one_model
from fedjax_rl.types import Algorithm, Problem, Upload


def reptile(
    problem: Problem,
    *,
    client_opt: optax.GradientTransformation,
    server_opt: optax.GradientTransformation,
    local_steps: int,
    inner_lr: float,
    client_batch: int | None = None,
) -> Algorithm:
    """`local_steps` times D ~ theta and a step of `client_opt` on L(theta; D); uploads theta_T - theta_k.

    Each step has fresh episodes (on one reused batch it would be FedAvg). As published, one rate serves the local steps
    and the adaptation: the presets set both to the same.

    Source: Nichol, Achiam, Schulman, "On First-Order Meta-Learning Algorithms", arXiv:1803.02999, 2018, Algorithm 1.
    Other arguments as for `fedavg`.
    """

    def learn(params, opt_state, batch):
        updates, opt_state = client_opt.update(jax.grad(problem.loss)(params, batch), opt_state, params)
        return optax.apply_updates(params, updates), opt_state

    learn = chunked(learn, client_batch)

    def client_update(shared, client, task, key):
        def step(carry, step_key):
            params, opt_state = carry
            batch, stats = problem.sample(params, task, step_key)
            return learn(params, opt_state, batch), stats

        start = (shared, client_opt.init(shared))
        (params, _), stats = jax.lax.scan(step, start, jax.random.split(key, local_steps))
        return Upload(trees.sub(params, shared), jnp.ones(())), client, measured(stats)

    return one_model(problem, client_update, server_opt, inner_lr, client_batch)

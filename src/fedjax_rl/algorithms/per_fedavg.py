"""Per-FedAvg: MAML's federation, with fresh episodes for every local step."""

import jax
import jax.numpy as jnp
import optax

from fedjax_rl import meta, trees
from fedjax_rl.algorithms.parts import chunked, measured, one_model
from fedjax_rl.types import Algorithm, Problem, Upload


def per_fedavg(
    problem: Problem,
    *,
    client_opt: optax.GradientTransformation,
    server_opt: optax.GradientTransformation,
    local_steps: int,
    inner_lr: float,
    order: str = "second",
    client_batch: int | None = None,
) -> Algorithm:
    """FMRL without reuse: `local_steps` times D0 ~ theta, D1 ~ theta - inner_lr grad L(theta; D0), one local step.

    A step of `client_opt` follows the gradient of theta -> L(theta - inner_lr grad L(theta; D0); D1). Uploads
    theta_T - theta_k. A client samples 2 `local_steps` batches a round. Departure: the Hessian is that of D0, where the
    paper's has a third batch.

    Source: Fallah, Mokhtari, Ozdaglar, "Personalized Federated Learning with Theoretical Guarantees: A Model-Agnostic
    Meta-Learning Approach", NeurIPS 2020, Algorithm 1. Arguments as for `fmrl`.
    """
    adapt = chunked(lambda params, batch: meta.adapt(problem.loss, params, batch, inner_lr), client_batch)
    meta_gradient = meta.meta_gradient(problem.loss, inner_lr, order)

    def learn(params, opt_state, inner, outer):
        updates, opt_state = client_opt.update(meta_gradient(params, inner, outer), opt_state, params)
        return optax.apply_updates(params, updates), opt_state

    learn = chunked(learn, client_batch)

    def client_update(shared, client, task, key):
        def step(carry, step_key):
            inner_key, outer_key = jax.random.split(step_key)
            params, opt_state = carry
            inner, before = problem.sample(params, task, inner_key)
            outer, after = problem.sample(adapt(params, inner), task, outer_key)
            return learn(params, opt_state, inner, outer), (before, after)

        start = (shared, client_opt.init(shared))
        (params, _), (before, after) = jax.lax.scan(step, start, jax.random.split(key, local_steps))
        upload = Upload(trees.sub(params, shared), jnp.ones(()))
        return upload, client, measured(before, after)

    return one_model(problem, client_update, server_opt, inner_lr, client_batch)

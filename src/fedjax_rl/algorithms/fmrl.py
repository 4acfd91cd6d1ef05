"""FMRL: federated meta reinforcement learning.

Source: Liu, Xu, Wu, Jiang, "Federated Meta Reinforcement Learning for Personalized Tasks", Tsinghua Science and
Technology, 2024, Algorithm 1, Eq. 16-22 and 27-29.
"""

import jax
import jax.numpy as jnp
import optax

from fedjax_rl import meta
from fedjax_rl.algorithms.parts import chunked, local_change, measured, one_model
from fedjax_rl.types import Algorithm, Problem, Upload


def fmrl(
    problem: Problem,
    *,
    client_opt: optax.GradientTransformation,
    server_opt: optax.GradientTransformation,
    local_steps: int,
    inner_lr: float,
    order: str = "second",
    client_batch: int | None = None,
) -> Algorithm:
    """An initialisation that one gradient step turns into each client's own policy.

    A selected client: D0 ~ theta_k; psi = theta_k - inner_lr grad L(theta_k; D0); D1 ~ psi; then `local_steps` steps of
    `client_opt` on the gradient of theta -> L(theta - inner_lr grad L(theta; D0); D1), both batches kept. It uploads
    theta_T - theta_k; the server moves by `server_opt` on minus the mean.

    Args:
      problem: init, sample and loss L = -J.
      client_opt: local optimiser (the paper: SGD of rate beta).
      server_opt: server optimiser of the pseudo-gradient (the paper: Fed-Adam).
      local_steps: local steps a round.
      inner_lr: rate of the adaptation step (the paper's alpha).
      order: "second" for the exact gradient of the fixed batches, "first" to drop the curvature.
      client_batch: clients a chunk of the learning steps; None: all.
    """
    adapt = chunked(lambda params, batch: meta.adapt(problem.loss, params, batch, inner_lr), client_batch)
    change = local_change(meta.meta_gradient(problem.loss, inner_lr, order), client_opt, local_steps, client_batch)

    def client_update(shared, client, task, key):
        inner_key, outer_key = jax.random.split(key)
        inner, before = problem.sample(shared, task, inner_key)
        outer, after = problem.sample(adapt(shared, inner), task, outer_key)
        upload = Upload(change(shared, inner, outer), jnp.ones(()))
        return upload, client, measured(before, after)

    return one_model(problem, client_update, server_opt, inner_lr, client_batch)

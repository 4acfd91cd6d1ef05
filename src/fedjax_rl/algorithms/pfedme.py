"""pFedMe: every client keeps a personal model near the global one, by Moreau envelopes."""

import jax
import jax.numpy as jnp
import optax

from fedjax_rl import trees
from fedjax_rl.algorithms.parts import local_change, measured, one_model
from fedjax_rl.types import Algorithm, Problem, Upload


def pfedme(
    problem: Problem,
    *,
    client_opt: optax.GradientTransformation,
    server_opt: optax.GradientTransformation,
    local_steps: int,
    inner_lr: float,
    personal_steps: int = 5,
    personal_lr: float = 0.01,
    penalty: float = 15.0,
    client_batch: int | None = None,
) -> Algorithm:
    """Local steps on the Moreau envelope of L(.; D), D ~ theta_k sampled once.

    With w_0 = theta_k, `local_steps` times: v = `personal_steps` gradient steps of rate `personal_lr` from w on
    L(v; D) + penalty/2 |v - w|^2; then w by `client_opt` on the envelope's gradient penalty (w - v). Uploads
    w_T - theta_k; the client keeps the last v, its personal model.

    Source: T. Dinh, Tran, Nguyen, "Personalized Federated Learning with Moreau Envelopes", NeurIPS 2020, Algorithm 1;
    the server is `one_model`'s instead of its average. Other arguments as for `fedavg`.
    """

    def envelope_gradient(w, batch):
        def step(v, _):
            pull = trees.axpy(penalty, trees.sub(v, w), jax.grad(problem.loss)(v, batch))
            return trees.axpy(-personal_lr, pull, v), None

        v, _ = jax.lax.scan(step, w, length=personal_steps)
        return jax.tree.map(lambda p, q: penalty * (p - q), w, v), v

    change = local_change(envelope_gradient, client_opt, local_steps, client_batch, has_aux=True)

    def client_update(shared, client, task, key):
        batch, before = problem.sample(shared, task, key)
        moved, personal = change(shared, batch)
        last = jax.tree.map(lambda x: x[-1], personal)
        return Upload(moved, jnp.ones(())), last, measured(before)

    return one_model(problem, client_update, server_opt, inner_lr, client_batch)._replace(
        init_client=lambda shared, key, id: shared, personal_params=lambda shared, client: client
    )

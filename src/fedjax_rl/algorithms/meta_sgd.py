"""Meta-SGD, federated: clients share how they learn, a rate for every parameter, and where they start."""

import jax
import jax.numpy as jnp
import optax

from fedjax_rl.algorithms.parts import chunked, local_change, measured, one_model
from fedjax_rl.types import Algorithm, Problem, Upload


def meta_sgd(
    problem: Problem,
    *,
    client_opt: optax.GradientTransformation,
    server_opt: optax.GradientTransformation,
    local_steps: int,
    inner_lr: float,
    order: str = "second",
    client_batch: int | None = None,
) -> Algorithm:
    """FMRL whose adaptation is theta - r * grad L(theta; D), with a rate r for each parameter, learned and federated.

    D0 ~ theta_k; psi = theta_k - r_k * grad L(theta_k; D0); D1 ~ psi; then `local_steps` steps of `client_opt` in
    (theta, r) on L(theta - r * grad L(theta; D0); D1), both batches kept. Uploads both changes. Every rate starts at
    `inner_lr`; a rate's gradient is -(grad L(theta; D0)) * (grad L(psi; D1)). order="first" drops the curvature in
    theta.

    Source: Li, Zhou, Chen, Li, "Meta-SGD: Learning to Learn Quickly for Few-Shot Learning", arXiv:1707.09835, 2017;
    federated in Chen, Luo, Dong, Li, He, "Federated Meta-Learning with Fast Convergence and Efficient Communication",
    arXiv:1802.07876, 2018. Arguments as for `fmrl`.
    """
    if order not in ("first", "second"):
        raise ValueError(f"order is {order!r}; legal: 'first', 'second'")

    def adapted(shared, params, batch):
        gradient = jax.grad(problem.loss)(params, batch)
        if order == "first":
            gradient = jax.lax.stop_gradient(gradient)
        return jax.tree.map(lambda p, r, g: p - r * g, params, shared["rates"], gradient)

    def objective(shared, inner, outer):
        return problem.loss(adapted(shared, shared["params"], inner), outer)

    adapt = chunked(adapted, client_batch)
    change = local_change(jax.grad(objective), client_opt, local_steps, client_batch)

    def init_shared(params):
        return {"params": params, "rates": jax.tree.map(lambda p: jnp.full_like(p, inner_lr), params)}

    def client_update(shared, client, task, key):
        inner_key, outer_key = jax.random.split(key)
        inner, before = problem.sample(shared["params"], task, inner_key)
        outer, after = problem.sample(adapt(shared, shared["params"], inner), task, outer_key)
        upload = Upload(change(shared, inner, outer), jnp.ones(()))
        return upload, client, measured(before, after)

    model = one_model(problem, client_update, server_opt, inner_lr, client_batch, init_shared=init_shared)
    return model._replace(
        personal_params=lambda shared, client: shared["params"],
        adapt=lambda shared, client, params, batch: adapt(shared, params, batch),
    )

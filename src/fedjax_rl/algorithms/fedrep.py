"""FedRep: a body that all clients learn together, and a head of each client's own."""

import jax
import jax.numpy as jnp
import optax

from fedjax_rl import trees
from fedjax_rl.algorithms.parts import keep_on_client, local_change, measured, one_model
from fedjax_rl.types import Algorithm, Problem, Upload


def fedrep(
    problem: Problem,
    *,
    client_opt: optax.GradientTransformation,
    server_opt: optax.GradientTransformation,
    local_steps: int,
    inner_lr: float,
    head_steps: int = 5,
    head: tuple[str, ...] = ("mean", "std", "log_std", "logits", "value"),
    client_batch: int | None = None,
) -> Algorithm:
    """D ~ (body, own head); `head_steps` steps of `client_opt` on the head, then `local_steps` on the body, on L(.; D).

    The body's change is uploaded, the head stays. `head` names the parameters of the head: a leaf belongs to it when a
    part of its path is among the names (the policy's output layers and log_std, a critic's output layer).

    Source: Collins, Hassani, Mokhtari, Shakkottai, "Exploiting Shared Representations for Personalized Federated
    Learning", ICML 2021, Algorithm 1. Other arguments as for `fedavg`.
    """

    def gradient_of(part_is_head):
        def masked(params, batch):
            gradient = jax.grad(problem.loss)(params, batch)
            part = trees.where_path(lambda names: bool(names & set(head)) == part_is_head, gradient)
            return trees.merge(part, jax.tree.map(jnp.zeros_like, gradient))

        return masked

    head_change = local_change(gradient_of(True), client_opt, head_steps, client_batch)
    body_change = local_change(gradient_of(False), client_opt, local_steps, client_batch)

    def client_update(shared, client, task, key):
        batch, before = problem.sample(shared, task, key)
        moved = head_change(shared, batch)
        moved = trees.axpy(1.0, moved, body_change(trees.axpy(1.0, moved, shared), batch))
        return Upload(moved, jnp.ones(())), client, measured(before)

    return keep_on_client(one_model(problem, client_update, server_opt, inner_lr, client_batch), head)

"""FedAsync: the server mixes every local model that arrives into its own."""

import jax
import jax.numpy as jnp
import optax

from fedjax_rl import trees
from fedjax_rl.algorithms.parts import local_change, measured, one_model
from fedjax_rl.types import Algorithm, Problem, Server, Upload


def fedasync(
    problem: Problem,
    *,
    client_opt: optax.GradientTransformation,
    local_steps: int,
    inner_lr: float,
    mixing: float = 0.6,
    mu: float = 0.005,
    client_batch: int | None = None,
) -> Algorithm:
    """theta' = (1 - a s) theta + a s theta_local, s of the message's age: FedProx's local steps, from an older theta.

    The message is theta_local and the number 1, both of which the schedule multiplies by s. So of several messages in a
    buffer the server takes the mean of s_j (theta_j - theta).

    Source: Xie, Koyejo and Gupta, "Asynchronous Federated Optimization", 2019, Algorithm 1. Other arguments as for
    `fedprox`.

    Args:
      mixing: a, the share of a model that is not old.
    """

    def gradient(params, received, batch):
        return trees.axpy(mu, trees.sub(params, received), jax.grad(problem.loss)(params, batch))

    change = local_change(gradient, client_opt, local_steps, client_batch)

    def client_update(shared, client, task, key):
        batch, before = problem.sample(shared, task, key)
        message = {"params": trees.axpy(1.0, change(shared, shared, batch), shared), "share": jnp.ones(())}
        return Upload(message, jnp.ones(())), client, measured(before)

    def server_update(server, aggregate, key):
        del key
        message = aggregate.message
        moved = jax.tree.map(lambda m, p: m - message["share"].astype(p.dtype) * p, message["params"], server.shared)
        return Server(trees.axpy(mixing, moved, server.shared), server.private)

    model = one_model(problem, client_update, optax.sgd(1.0), inner_lr, client_batch)
    return model._replace(server_update=server_update)

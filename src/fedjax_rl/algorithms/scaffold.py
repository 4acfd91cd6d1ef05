"""SCAFFOLD: local steps corrected by control variates, so that clients do not drift to their own optima."""

import jax
import jax.numpy as jnp
import optax

from fedjax_rl import trees
from fedjax_rl.algorithms.parts import local_change, measured, one_model
from fedjax_rl.types import Algorithm, Problem, Server, Upload


def scaffold(
    problem: Problem,
    *,
    client_opt: optax.GradientTransformation,
    server_opt: optax.GradientTransformation,
    local_steps: int,
    inner_lr: float,
    client_batch: int | None = None,
) -> Algorithm:
    """FedAvg whose local gradients are g - c_i + c, with variates c_i on the client and c on the server.

    D ~ theta_k; y_0 = theta_k; `local_steps` steps of `client_opt` on g(y_t) - c_i + c, g = grad L(.; D). Then
    c_i' = (1/T) sum_t g(y_t), which for SGD of rate b is c_i - c + (theta_k - y_T) / (T b). Uploads y_T - theta_k and
    c_i' - c_i; the server moves by `server_opt` on minus the mean change, and c by the participation times the mean
    change of the variates.

    Source: Karimireddy et al., "SCAFFOLD: Stochastic Controlled Averaging for Federated Learning", ICML 2020,
    Algorithm 1, option II. Other arguments as for `fedavg`.
    """

    def corrected(y, batch, own, common):
        gradient = jax.grad(problem.loss)(y, batch)
        return jax.tree.map(lambda g, i, c: g - i + c, gradient, own, common), gradient

    change = local_change(corrected, client_opt, local_steps, client_batch, has_aux=True)

    def init(key):
        params = problem.init(key)
        shared = {"params": params, "variate": jax.tree.map(jnp.zeros_like, params)}
        return Server(shared, server_opt.init(params))

    def client_update(shared, client, task, key):
        batch, before = problem.sample(shared["params"], task, key)
        moved, gradients = change(shared["params"], batch, client, shared["variate"])
        new = jax.tree.map(lambda g: g.mean(axis=0), gradients)
        message = {"params": moved, "variate": trees.sub(new, client)}
        return Upload(message, jnp.ones(())), new, measured(before)

    model = one_model(problem, client_update, server_opt, inner_lr, client_batch)

    def server_update(server, aggregate, key):
        params, private = model.server_update(
            Server(server.shared["params"], server.private),
            aggregate._replace(message=aggregate.message["params"]),
            key,
        )
        variate = trees.axpy(aggregate.participation, aggregate.message["variate"], server.shared["variate"])
        return Server({"params": params, "variate": variate}, private)

    return model._replace(
        init=init,
        init_client=lambda shared, key, id: jax.tree.map(jnp.zeros_like, shared["params"]),
        server_update=server_update,
        personal_params=lambda shared, client: shared["params"],
    )

"""FedNPG-ADMM: the federation's natural policy gradient, found by all clients with messages of a model's size."""

import jax
import jax.numpy as jnp
import optax

from fedjax_rl import trees
from fedjax_rl.algorithms.npg import fisher, solve
from fedjax_rl.algorithms.parts import chunked, measured, one_model
from fedjax_rl.types import Algorithm, Problem, Server, Upload


def npg_admm(
    problem: Problem,
    *,
    server_opt: optax.GradientTransformation,
    inner_lr: float,
    penalty: float = 0.1,
    cg_steps: int = 10,
    client_batch: int | None = None,
) -> Algorithm:
    """Consensus ADMM on sum_i (y' F_i y / 2 - g_i' y), whose solution is F^-1 g of the mean F and the mean g.

    A round is one iteration on the gradient g_i and Fisher matrix F_i of a fresh batch at theta. A client is sent theta
    and the consensus y. It keeps its own y_i and dual l_i, both 0 at first, and does

        l_i = l_i + penalty (y_i - y),  y_i = (F_i + penalty I)^-1 (g_i - l_i + penalty y), by conjugate gradients,

    and uploads y_i + l_i / penalty. The server takes their mean for y and moves by `server_opt` with y for a gradient.
    The iteration needs everybody: with somebody missing the duals' sum is not 0, and y is biased.

    Source: Lan, Wang, Anderson, Brinton and Aggarwal, "Improved Communication Efficiency in Federated Natural Policy
    Gradient via ADMM-based Gradient Updates", NeurIPS 2023. Here theta moves after every iteration, so that y follows a
    solution that moves too.

    Args:
      problem: init, sample, loss L = -J and kl.
      server_opt: the server's optimizer; plain gradient descent is the natural gradient method.
      inner_lr: rate of the adaptation, which is a plain gradient step.
      penalty: rho, how strongly clients are held to the consensus; it damps F_i too [nats].
      cg_steps: steps of conjugate gradients, a Fisher product each.
      client_batch: clients a chunk of the learning steps; None: all.
    """

    def init(key):
        params = problem.init(key)
        return Server({"params": params, "direction": optax.tree.zeros_like(params)}, server_opt.init(params))

    def init_client(shared, key, id):
        del key, id
        return {name: optax.tree.zeros_like(shared["params"]) for name in ("direction", "dual")}

    def iterate(shared, client, batch):
        params, mean = shared["params"], shared["direction"]
        dual = trees.axpy(penalty, trees.sub(client["direction"], mean), client["dual"])
        pulled = trees.axpy(penalty, mean, trees.sub(jax.grad(problem.loss)(params, batch), dual))
        return {"direction": solve(fisher(problem, params, batch), pulled, penalty, cg_steps), "dual": dual}

    work = chunked(iterate, client_batch)

    def client_update(shared, client, task, key):
        batch, before = problem.sample(shared["params"], task, key)
        new = work(shared, client, batch)
        return Upload(trees.axpy(1.0 / penalty, new["dual"], new["direction"]), jnp.ones(())), new, measured(before)

    def server_update(server, aggregate, key):
        del key
        updates, private = server_opt.update(aggregate.message, server.private, server.shared["params"])
        params = optax.apply_updates(server.shared["params"], updates)
        return Server({"params": params, "direction": aggregate.message}, private)

    model = one_model(problem, client_update, server_opt, inner_lr, client_batch)
    return model._replace(
        init=init,
        init_client=init_client,
        server_update=server_update,
        personal_params=lambda shared, client: shared["params"],
    )

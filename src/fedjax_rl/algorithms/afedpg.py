"""AFedPG: asynchronous federated policy gradients, sampled ahead of the model, in steps of a given length."""

from typing import Any

import jax
import jax.numpy as jnp
import optax

from fedjax_rl import trees
from fedjax_rl.algorithms.fedavg import fedavg
from fedjax_rl.algorithms.fmrl import fmrl
from fedjax_rl.types import Aggregate, Algorithm, Array, Key, Problem, Server, Tree

_TINY = 1e-12  # of a norm that may be zero


def afedpg(
    problem: Problem,
    *,
    client_opt: optax.GradientTransformation,
    local_steps: int = 1,
    inner_lr: float = 0.1,
    momentum: float = 0.1,
    momentum_power: float = 0.0,
    step_length: float = 2**-5,
    length_power: float = 0.0,
    lookahead: bool = True,
    meta: str = "none",
    client_batch: int | None = None,
) -> Algorithm:
    """Normalised policy gradients with momentum; what arrives late was sampled where its weight makes up for that.

    A client is sent the point ahead_k and uploads a direction g, ascent on J from a batch that it samples there. With
    k updates so far, a = alpha_(k - age), and a = 1 for the first:

        d = (1 - a) d + a g,  theta_(k+1) = theta_k + eta_k d / |d|,
        ahead_(k+1) = theta_(k+1) + (1 - alpha_(k+1)) / alpha_(k+1) (theta_(k+1) - theta_k).

    alpha_k is `momentum`, or with a power p max(momentum, (k+1)^-p); eta_k = step_length (k+1)^-q. A direction's length
    does not matter, so neither does the rate of the local steps. Evaluation takes theta.

    Source: Lan, Han, Hashemi, Aggarwal and Brinton, "Asynchronous Federated Reinforcement Learning with Policy Gradient
    Updates: Algorithm Design and Convergence Analysis", ICLR 2025, Algorithms 1 and 2, whose proofs have p = 4/5 and
    q = 1. With constant rates and other schedules: `nigt`.

    Args:
      problem: init, sample and loss L = -J.
      client_opt: optimizer of the local steps.
      local_steps: 1, for the gradient; the change of more steps is a direction too.
      inner_lr: rate of the adaptation.
      momentum: alpha, or the smallest there is with a power.
      momentum_power: p; 0 for a constant alpha.
      step_length: eta_0, the length of a step.
      length_power: q.
      lookahead: False for ahead = theta (the paper's baseline without it).
      meta: "first" or "second", the order of FMRL's meta-gradient, which then takes the place of the gradient.
      client_batch: clients a chunk of the learning steps; None: all.

    Returns:
      The algorithm; `shared` is {"params": theta, "ahead": ahead}.
    """
    usual: dict[str, Any] = {"client_opt": client_opt, "server_opt": optax.sgd(1.0), "local_steps": local_steps}
    usual |= {"inner_lr": inner_lr, "client_batch": client_batch}
    model = fedavg(problem, **usual) if meta == "none" else fmrl(problem, order=meta, **usual)

    def alpha(k: Array) -> Array:
        return jnp.where(momentum_power == 0, momentum, jnp.maximum(momentum, (k + 1.0) ** -momentum_power))

    def init(key: Key) -> Server:
        params = problem.init(key)
        direction = jax.tree.map(jnp.zeros_like, params)
        ahead = jax.tree.map(jnp.copy, params)  # an array of its own, so that the state can be donated
        return Server({"params": params, "ahead": ahead}, {"direction": direction, "updates": jnp.zeros((), int)})

    def client_update(shared: Tree, client: Tree, task: Tree, key: Key) -> Any:
        return model.client_update(shared["ahead"], client, task, key)

    def server_update(server: Server, aggregate: Aggregate, key: Key) -> Server:
        del key
        k, params = server.private["updates"], server.shared["params"]
        # an age counts updates for which nobody was heard too, k does not
        a = jnp.where(k == 0, 1.0, alpha(jnp.maximum(k - aggregate.staleness, 0.0)))
        direction = jax.tree.map(
            lambda d, g: ((1 - a) * d + a * g).astype(d.dtype), server.private["direction"], aggregate.message
        )
        length = step_length * (k + 1.0) ** -length_power / (optax.tree.norm(direction) + _TINY)
        new = trees.axpy(length, direction, params)
        later = alpha(k + 1)
        ahead = trees.axpy((1 - later) / later * lookahead, trees.sub(new, params), new)
        return Server({"params": new, "ahead": ahead}, {"direction": direction, "updates": k + 1})

    return model._replace(
        init=init,
        client_update=client_update,
        server_update=server_update,
        personal_params=lambda shared, client: shared["params"],
    )

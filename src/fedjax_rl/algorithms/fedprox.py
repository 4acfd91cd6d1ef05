"""FedProx: FedAvg whose clients are held near the model that they received."""

import jax
import jax.numpy as jnp
import optax

from fedjax_rl import trees
from fedjax_rl.algorithms.parts import local_change, measured, one_model
from fedjax_rl.types import Algorithm, Problem, Upload


def fedprox(
    problem: Problem,
    *,
    client_opt: optax.GradientTransformation,
    server_opt: optax.GradientTransformation,
    local_steps: int,
    inner_lr: float,
    mu: float = 0.01,
    proximal: str = "parameters",
    client_batch: int | None = None,
) -> Algorithm:
    """FedAvg on L(theta; D) + mu/2 |theta - theta_k|^2, or on L(theta; D) + mu KL(pi_theta_k || pi_theta).

    With the second a client explores around the policy that it received, however far its parameters move for it. The
    divergence [nats] is the mean over the steps of D.

    Source: Li et al., "Federated Optimization in Heterogeneous Networks", MLSys 2020, Eq. 2. A divergence in place of
    the distance is the global one of the two penalties of Xie and Song, "FedKL: Tackling Data Heterogeneity in
    Federated Reinforcement Learning by Penalizing KL Divergence", IEEE Journal on Selected Areas in Communications,
    2023.

    Args:
      mu: weight of the term that holds a client near theta_k.
      proximal: the first ("parameters") or the second ("kl") of the terms; for the second the problem needs `kl`.

    Other arguments as for `fedavg`.

    Raises:
      ValueError: `proximal` is none of these, or the problem has no `kl`.
    """
    kl = problem.kl if proximal == "kl" else None
    if proximal not in ("parameters", "kl") or (proximal == "kl" and kl is None):
        raise ValueError(f"proximal {proximal!r}: 'parameters', or 'kl' where the problem has one")

    def gradient(params, received, batch):
        back = trees.sub(params, received) if kl is None else jax.grad(kl)(params, received, batch)
        return trees.axpy(mu, back, jax.grad(problem.loss)(params, batch))

    change = local_change(gradient, client_opt, local_steps, client_batch)

    def client_update(shared, client, task, key):
        batch, before = problem.sample(shared, task, key)
        return Upload(change(shared, shared, batch), jnp.ones(())), client, measured(before)

    return one_model(problem, client_update, server_opt, inner_lr, client_batch)

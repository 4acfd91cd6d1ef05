"""NPG: natural policy gradients, each client with the Fisher matrix of its own batch."""

from collections.abc import Callable

import jax
import jax.numpy as jnp
import optax
from jax.scipy.sparse.linalg import cg

from fedjax_rl import trees
from fedjax_rl.algorithms.parts import local_change, measured, one_model
from fedjax_rl.types import Algorithm, Array, Batch, Params, Problem, Tree, Upload


def fisher(problem: Problem, params: Params, batch: Batch) -> Callable[[Tree], Tree]:
    """v -> F v, F = Hess_theta KL(pi_params || pi_theta) at theta = params, mean over the batch: never negative."""
    if problem.kl is None:
        raise ValueError("the problem has no `kl`, which natural gradients need")
    kl = problem.kl
    # linearised once: the forward pass is not done again for each product
    return jax.linearize(jax.grad(lambda theta: kl(theta, params, batch)), params)[1]


def solve(product: Callable[[Tree], Tree], b: Tree, damping: Array | float, steps: int) -> Tree:
    """u with (F + damping I) u = b after `steps` steps of conjugate gradients from 0; `product` is v -> F v."""
    # what is left once it is exact in this type is not divided by itself: squares may underflow, and 0 / 0 is NaN
    exact = jnp.finfo(jnp.result_type(*jax.tree.leaves(b))).eps
    return cg(lambda v: trees.axpy(damping, v, product(v)), b, tol=exact, maxiter=steps)[0]


def npg(
    problem: Problem,
    *,
    client_opt: optax.GradientTransformation,
    server_opt: optax.GradientTransformation,
    local_steps: int,
    inner_lr: float,
    damping: float = 0.1,
    max_kl: float = 0.01,
    max_step: float = 10.0,
    cg_steps: int = 10,
    client_batch: int | None = None,
) -> Algorithm:
    """FedAvg whose local gradients are natural ones, as long as the trust region allows.

    On D ~ theta_k each of `local_steps` steps is one of `client_opt` along s u, with g = grad L(theta; D), F the Fisher
    matrix at theta on D, u = (F + damping I)^-1 g by conjugate gradients, s = min(sqrt(2 max_kl / (u' F u)), max_step).
    With rate 1 the KL of a step is max_kl up to third order, or less where max_step binds. The server takes the mean of
    the changes. It is no natural gradient of the federation: the mean of F_i^-1 g_i is not F^-1 g of the means, which
    is what `npg_admm` finds.

    Source: Kakade, "A Natural Policy Gradient", NIPS 2001; the step's length as in Schulman et al., "Trust Region
    Policy Optimization", ICML 2015, appendix C, without its line search.

    Args:
      problem: init, sample, loss L = -J and kl.
      client_opt: optimizer of the local steps; SGD of rate 1 takes the whole step.
      server_opt: the server's optimizer; SGD of rate 1 takes the mean model.
      local_steps: steps on the same batch, each with a trust region of its own.
      inner_lr: rate of the adaptation, which is a plain gradient step.
      damping: what is added to F's diagonal [nats].
      max_kl: KL from the policy before a local step to that after it [nats].
      max_step: the most that s may be, for gradients near 0.
      cg_steps: steps of conjugate gradients, a Fisher product each.
      client_batch: clients a chunk of the learning steps; None: all.
    """

    def direction(params, batch):
        product = fisher(problem, params, batch)
        u = solve(product, jax.grad(problem.loss)(params, batch), damping, cg_steps)
        curvature = optax.tree.vdot(u, product(u))
        longest = jnp.sqrt(2.0 * max_kl / jnp.maximum(curvature, jnp.finfo(curvature.dtype).tiny))
        return optax.tree.scale(jnp.minimum(longest, max_step), u)

    change = local_change(direction, client_opt, local_steps, client_batch)

    def client_update(shared, client, task, key):
        batch, before = problem.sample(shared, task, key)
        return Upload(change(shared, batch), jnp.ones(())), client, measured(before)

    return one_model(problem, client_update, server_opt, inner_lr, client_batch)

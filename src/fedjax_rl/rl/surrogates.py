"""Surrogates of the return on a fixed batch: what is differentiated once by a policy gradient, and twice by MAML.

Each is given by its terms, (logp [E, T] under the current parameters, batch) -> [E, T]; the surrogate is their mean
over valid steps. With G_t = grad log pi(a_t|s_t) and exact advantages, all have the same gradient at the sampling
parameters; their curvatures there are, with sums over steps, H1 = E sum G_t G_t' A_t, H2 = E sum (Hess log pi_t) A_t
and H12 = E sum_{t<u} G_t G_u' A_u:

  ratio  H1 + H2               Liu, Xu, Wu, Jiang (2024), Eq. 8-10, 18; the curvature of ProMP (Rothfuss et al. 2019)
  log    H2                    MAML for reinforcement learning as first published (Finn et al. 2017)
  dice   H1 + H2 + H12 + H12'  loaded DiCE (Farquhar et al. 2019) at its lambda 1: the Hessian of the true return

Away from the sampling parameters they differ in the gradient too: `log` carries no importance weight at all, a bias
that is part of the comparison; `dice` takes its per-decision ratios as constants.
"""

from collections.abc import Callable
from typing import NamedTuple

import chex
import jax
import jax.numpy as jnp

from fedjax_rl.types import Array, Tree


class Batch(NamedTuple):
    """What a loss is taken on.

    obs [E, T, O], action [E, T, A] (int32 where discrete), logp_old [E, T], advantage [E, T] (0 on invalid steps), mask
    [E, T] bool.

    target [E, T]: of a critic, the discounted return-to-go over the effective horizon; () without a critic.

    reward, values [E, T]: from which a learned strategy takes advantages of its own; () where none is learned.
    """

    obs: Array
    action: Array
    logp_old: Array
    advantage: Array
    mask: Array
    target: Tree = ()
    reward: Tree = ()
    values: Tree = ()


Terms = Callable[[Array, Batch], Array]


def ratio(clip: Array | float) -> Terms:
    """min(r A, clip(r, 1 - clip, 1 + clip) A), r = exp(logp - logp_old) (Schulman et al. 2017, Eq. 7).

    At the tie r = 1 both branches are equal, and `minimum` weighs them by halves: gradient and curvature are right.
    """

    def terms(logp: Array, batch: Batch) -> Array:
        chex.assert_equal_shape([logp, batch.logp_old, batch.advantage, batch.mask])
        # Selected before the exponential: an overflow on an invalid step would turn the gradient to NaN.
        r = jnp.exp(jnp.where(batch.mask, logp - batch.logp_old, 0.0))
        return jnp.minimum(r * batch.advantage, jnp.clip(r, 1.0 - clip, 1.0 + clip) * batch.advantage)

    return terms


def log(logp: Array, batch: Batch) -> Array:
    """logp A."""
    chex.assert_equal_shape([logp, batch.advantage])
    return logp * batch.advantage


def dice(logp: Array, batch: Batch) -> Array:
    """c_t A_t (1 + box(w_t) - box(w_{t-1})), w_t = sum_{u<=t} logp_u, box(x) = exp(x - stop(x)).

    box(w_t) - box(w_{t-1}) is 0 in value, G_t in gradient. c_t = stop(prod_{u<=t} pi/pi_old) is the per-decision ratio
    (Precup et al. 2000), 1 at the sampling parameters. The added 1 gives the terms the value c_t A_t.
    """
    chex.assert_equal_shape([logp, batch.logp_old, batch.advantage, batch.mask])
    weight = jnp.exp(jnp.cumsum(jnp.where(batch.mask, jax.lax.stop_gradient(logp) - batch.logp_old, 0.0), axis=1))
    zero = jnp.where(batch.mask, logp - jax.lax.stop_gradient(logp), 0.0)
    upto = jnp.cumsum(zero, axis=1)
    return weight * batch.advantage * (1.0 + jnp.exp(upto) - jnp.exp(upto - zero))


SURROGATES: dict[str, Callable[[Array | float], Terms]] = {
    "ratio": ratio,
    "log": lambda clip: log,
    "dice": lambda clip: dice,
}


def mean_over_valid(terms: Array, mask: Array) -> Array:
    """(1/sum m) sum m x: terms [E, T], mask [E, T] -> ()."""
    chex.assert_equal_shape([terms, mask])
    return jnp.sum(jnp.where(mask, terms, 0.0)) / jnp.maximum(jnp.sum(mask), 1)


def sum_over_valid(terms: Array, mask: Array) -> Array:
    """(1/E) sum m x: terms [E, T], mask [E, T] -> ()."""
    chex.assert_equal_shape([terms, mask])
    return jnp.sum(jnp.where(mask, terms, 0.0)) / len(mask)


REDUCTIONS = {"mean": mean_over_valid, "sum": sum_over_valid}

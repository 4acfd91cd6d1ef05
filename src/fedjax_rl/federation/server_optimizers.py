"""Server optimisers: optax transforms applied to the pseudo-gradient, minus the mean change of the clients.

The name Fed-Adam is used in print for updates that differ. `adam` is bias-corrected and is what learns at the published
rates; `reddi` is the adaptive server optimiser of Reddi et al., "Adaptive Federated Optimization", ICLR 2021, fed with
the smoothed change as in Liu et al. 2024, Eq. 28-29; `as_printed` is Liu et al. 2024, Eq. 27 as typeset.
"""

from collections.abc import Callable
from typing import NamedTuple

import jax
import jax.numpy as jnp
import optax

from fedjax_rl.types import Tree


class ScaleByFedAdamState(NamedTuple):
    """First moment m and second moment v, each like the parameters."""

    mu: Tree
    nu: Tree


def scale_by_fed_adam(
    b1: float = 0.9, b2: float = 0.999, eps: float = 1e-8, *, eps_inside_root: bool = False
) -> optax.GradientTransformation:
    """Fed-Adam without bias correction, second moment of the smoothed change.

      m <- b1 m + (1 - b1) g,   v <- b2 v + (1 - b2) m^2,   update = m / (sqrt(v) + eps)    [or m / sqrt(v + eps)]

    For a constant g and eps = 0 the update starts at 31.6 and decays towards 1. With `eps_inside_root` and the typical
    g of 1e-5, v is far below eps = 1e-8 and the update is momentum SGD of rate 1e4.

    Source: Liu et al. 2024, Eq. 27-29 (Eq. 27 has eps inside the root; Algorithm 1 misprints 1 - b1).
    """

    def init(params):
        return ScaleByFedAdamState(jax.tree.map(jnp.zeros_like, params), jax.tree.map(jnp.zeros_like, params))

    def update(updates, state, params=None):
        del params
        mu = jax.tree.map(lambda m, g: b1 * m + (1 - b1) * g, state.mu, updates)
        nu = jax.tree.map(lambda v, m: b2 * v + (1 - b2) * m**2, state.nu, mu)
        if eps_inside_root:
            scaled = jax.tree.map(lambda m, v: m / jnp.sqrt(v + eps), mu, nu)
        else:
            scaled = jax.tree.map(lambda m, v: m / (jnp.sqrt(v) + eps), mu, nu)
        return scaled, ScaleByFedAdamState(mu, nu)

    return optax.GradientTransformation(init, update)


def reddi(learning_rate: optax.ScalarOrSchedule) -> optax.GradientTransformation:
    """`scale_by_fed_adam` with eps outside the root, times -learning_rate."""
    return optax.chain(scale_by_fed_adam(), optax.scale_by_learning_rate(learning_rate))


def as_printed(learning_rate: optax.ScalarOrSchedule) -> optax.GradientTransformation:
    """`scale_by_fed_adam` with eps inside the root, times -learning_rate."""
    return optax.chain(scale_by_fed_adam(eps_inside_root=True), optax.scale_by_learning_rate(learning_rate))


def yogi(learning_rate: optax.ScalarOrSchedule) -> optax.GradientTransformation:
    """FedYogi: as Adam, but the second moment moves towards g^2 by (1 - b2) g^2 at a time, so that it forgets slowly.

      v <- v - (1 - b2) sign(v - g^2) g^2,   update = m^ / (sqrt(v^) + 1e-8)

    With Adam's eps and an accumulator that starts at eps^2: optax's own defaults (1e-3 and 1e-6) are far above the
    typical g of 1e-5, and would make it momentum SGD.

    Source: Zaheer et al., "Adaptive Methods for Nonconvex Optimization", NeurIPS 2018, as optax has it. Reddi et al.,
    "Adaptive Federated Optimization", ICLR 2021, Algorithm 2, have the smoothed change m in the place of g in v, and
    no bias corrections.
    """
    scaled = optax.scale_by_yogi(b1=0.9, b2=0.999, eps=1e-8, initial_accumulator_value=1e-16)
    return optax.chain(scaled, optax.scale_by_learning_rate(learning_rate))


def avgm(learning_rate: optax.ScalarOrSchedule) -> optax.GradientTransformation:
    """FedAvgM: m <- 0.9 m + g, update = m.

    Source: Hsu, Qi, Brown, "Measuring the Effects of Non-Identical Data Distribution for Federated Visual
    Classification", 2019, Section 4.3.
    """
    return optax.sgd(learning_rate, momentum=0.9)


def rmsprop(learning_rate: optax.ScalarOrSchedule) -> optax.GradientTransformation:
    """v <- 0.99 v + 0.01 g^2, update = g / sqrt(v + 0.1).

    Source: Mnih et al., "Asynchronous Methods for Deep Reinforcement Learning", ICML 2016, Eq. S2 and S3, shared among
    the workers; 0.99 and 0.1 are the constants of its public re-implementations.
    """
    return optax.rmsprop(learning_rate, decay=0.99, eps=0.1, eps_in_sqrt=True)


SERVER_OPTIMIZERS: dict[str, Callable[[optax.ScalarOrSchedule], optax.GradientTransformation]] = {
    "adam": optax.adam,  # b1 .9, b2 .999, eps 1e-8 are its defaults and the paper's constants
    "reddi": reddi,
    "as_printed": as_printed,
    "yogi": yogi,
    "avgm": avgm,
    "rmsprop": rmsprop,
    "sgd": optax.sgd,  # Fed-SGD; at rate 1 the server takes the clients' mean model, which is FedAvg
}

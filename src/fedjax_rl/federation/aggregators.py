"""How the weighted messages of a cohort become one."""

import jax
import jax.numpy as jnp

from fedjax_rl.types import Aggregator


def mean() -> Aggregator:
    """Weighted mean: sum_i w_i m_i / sum_i w_i; zero where every weight is zero.

    Source: McMahan et al., "Communication-Efficient Learning of Deep Networks from Decentralized Data", AISTATS 2017;
    with unit weights Liu et al. 2024, Eq. 28.
    """

    def update(messages, weights, state, key):
        del key
        shares = weights / jnp.maximum(weights.sum(), jnp.finfo(weights.dtype).tiny)
        return jax.tree.map(
            lambda m: jnp.tensordot(shares.astype(m.dtype), m, axes=1, precision="highest"), messages
        ), state

    return Aggregator(init=lambda message: (), update=update)

"""Who takes part in a round."""

import jax
import jax.numpy as jnp

from fedjax_rl.types import Array, Key


def uniform(key: Key, num_clients: int, clients_per_round: int) -> Array:
    """`clients_per_round` ids [M] of 0..num_clients-1, uniformly without replacement, in ascending order.

    The order makes the server's sum independent of the draw's order.
    """
    return jnp.sort(jax.random.choice(key, num_clients, (clients_per_round,), replace=False))

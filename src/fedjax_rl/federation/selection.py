"""Who takes part in a round: (key, N, M) -> ids [M], in an order that does not depend on the draw's."""

import jax
import jax.numpy as jnp

from fedjax_rl.types import Array, Key


def uniform(key: Key, num_clients: int, clients_per_round: int) -> Array:
    """`clients_per_round` ids [M] of 0..num_clients-1, uniformly without replacement.

    Source: McMahan et al., "Communication-Efficient Learning of Deep Networks from Decentralized Data", AISTATS 2017.
    """
    return jnp.sort(jax.random.choice(key, num_clients, (clients_per_round,), replace=False))


def stratified(key: Key, num_clients: int, clients_per_round: int) -> Array:
    """One client of each stratum {i: i mod M = s}, uniformly: where tasks alternate by id, a cohort is balanced.

    With M a divisor of N every client is selected with probability M / N, as under `uniform`, but the cohort's mean
    varies less.

    Source: Fraboni et al., "Clustered Sampling: Low-Variance and Improved Representativity for Clients Selection in
    Federated Learning", ICML 2021, with strata given by the ids.
    """
    return jnp.sort(by_kind(key, num_clients, clients_per_round))


def by_kind(key: Key, num_clients: int, clients_per_round: int) -> Array:
    """As `stratified`, but in the order of the strata: ids [M], id i of stratum i.

    Clients of unlike kinds stand in blocks of M that have each kind at the same places, so a cohort is such a block.
    """
    strata = jnp.arange(clients_per_round)
    sizes = (num_clients - strata + clients_per_round - 1) // clients_per_round
    return strata + clients_per_round * jax.random.randint(key, strata.shape, 0, sizes)


SELECTIONS = {"uniform": uniform, "stratified": stratified, "by_kind": by_kind}

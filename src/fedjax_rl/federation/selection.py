"""Who takes part in a round: (key, round, N, M) -> (ids [C], chosen [C]), in an order that the draw does not decide.

The key is the same in all rounds. C is M, except where the number of clients is itself drawn: C is then the most there
can be, and the rows that are not chosen are filled up with other clients, who do nothing.
"""

import jax
import jax.numpy as jnp

from fedjax_rl.federation.accountant import capacity
from fedjax_rl.types import Array, Key


def uniform(key: Key, round: Array, num_clients: int, clients_per_round: int) -> tuple[Array, Array]:
    """M ids of 0..N-1, uniformly without replacement.

    Source: McMahan et al., "Communication-Efficient Learning of Deep Networks from Decentralized Data", AISTATS 2017.
    """
    key = jax.random.fold_in(key, round)
    return _all(jnp.sort(jax.random.choice(key, num_clients, (clients_per_round,), replace=False)))


def stratified(key: Key, round: Array, num_clients: int, clients_per_round: int) -> tuple[Array, Array]:
    """One client of each stratum {i: i mod M = s}, uniformly: where tasks alternate by id, a cohort is balanced.

    With M a divisor of N every client is selected with probability M / N, as under `uniform`, but the cohort's mean
    varies less.

    Source: Fraboni et al., "Clustered Sampling: Low-Variance and Improved Representativity for Clients Selection in
    Federated Learning", ICML 2021, with strata given by the ids.
    """
    ids, _ = by_kind(key, round, num_clients, clients_per_round)
    return _all(jnp.sort(ids))


def by_kind(key: Key, round: Array, num_clients: int, clients_per_round: int) -> tuple[Array, Array]:
    """As `stratified`, but in the order of the strata: ids [M], id i of stratum i.

    Clients of unlike kinds stand in blocks of M that have each kind at the same places, so a cohort is such a block.
    """
    strata = jnp.arange(clients_per_round)
    sizes = (num_clients - strata + clients_per_round - 1) // clients_per_round
    draw = jax.random.randint(jax.random.fold_in(key, round), strata.shape, 0, sizes)
    return _all(strata + clients_per_round * draw)


def poisson(key: Key, round: Array, num_clients: int, clients_per_round: int) -> tuple[Array, Array]:
    """Every client with probability M / N, each by itself; of more than `capacity`, a uniform subset of that size.

    The number of clients is random, of mean M. It is what the accountants of differential privacy ask for.

    Source: Abadi et al., "Deep Learning with Differential Privacy", CCS 2016, section 3.1 ("lots"); cut to a capacity
    as in Chua et al., "Scalable DP-SGD: Shuffling vs. Poisson Subsampling", NeurIPS 2024.
    """
    drawn_key, order_key = jax.random.split(jax.random.fold_in(key, round))
    drawn = jax.random.uniform(drawn_key, (num_clients,)) < clients_per_round / num_clients
    order = jax.random.uniform(order_key, (num_clients,))
    first = jnp.argsort(jnp.where(drawn, order, 1.0 + order))  # those drawn, in a random order, before the others
    ids = jnp.sort(first[: capacity(num_clients, clients_per_round)])
    return ids, drawn[ids]


def cyclic(key: Key, round: Array, num_clients: int, clients_per_round: int) -> tuple[Array, Array]:
    """The clients in groups of M, drawn once; in round k works group k mod (N / M). N / M must be an integer.

    Everybody works once in N / M rounds, so two rounds of one client are that far apart.

    Source: Choquette-Choo et al., "(Amplified) Banded Matrix Factorization: A unified approach to private training",
    NeurIPS 2023, where such participation is (k, b)-fixed-epoch order.
    """
    groups = jax.random.permutation(key, num_clients).reshape(-1, clients_per_round)
    return _all(jnp.sort(groups[round % len(groups)]))


def _all(ids: Array) -> tuple[Array, Array]:
    return ids, jnp.ones(ids.shape, bool)


SELECTIONS = {
    "uniform": uniform,
    "stratified": stratified,
    "by_kind": by_kind,
    "poisson": poisson,
    "cyclic": cyclic,
}

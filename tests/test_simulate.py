"""Draws by identity, selection, and the aggregator."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from fedjax_rl.federation import aggregators, selection, simulate
from fedjax_rl.federation.placement import map_clients


@pytest.mark.parametrize("name", selection.SELECTIONS)
def test_selection_is_ordered_unique_and_uniform(name):
    """Each of N clients is selected with probability M / N: 4000 draws, six standard deviations.

    The order is that of the ids; by kind, that of the ids modulo M.
    """
    n, m, draws = 12, 4, 4000
    keys = jax.random.split(jax.random.key(0), draws)
    ids, chosen = jax.jit(jax.vmap(lambda k, r: selection.SELECTIONS[name](k, r, n, m)))(keys, jnp.arange(draws))
    assert (np.diff(ids % m if name == "by_kind" else ids, axis=1) > 0).all()
    shares = np.bincount(np.asarray(ids)[np.asarray(chosen)], minlength=n) / draws
    np.testing.assert_allclose(shares, m / n, atol=6 * np.sqrt(m / n * (1 - m / n) / draws))


def test_a_stratified_cohort_is_balanced_and_within_range():
    """Ten clients in four strata: sizes 3, 3, 2, 2; every draw holds one id of each residue, and each id can come."""
    ids, _ = jax.vmap(lambda r: selection.stratified(jax.random.key(1), r, 10, 4))(jnp.arange(500))
    ids = np.asarray(ids)
    np.testing.assert_array_equal(np.sort(ids % 4, axis=1), np.broadcast_to(np.arange(4), ids.shape))
    np.testing.assert_array_equal(np.unique(ids), np.arange(10))


def test_keys_belong_to_clients_not_positions():
    root = jax.random.key(0)
    few, many = (simulate.per_client(simulate.stream(root, simulate.UPDATE, 7), jnp.array(i)) for i in ([5], [2, 5, 9]))
    assert (jax.random.key_data(few[0]) == jax.random.key_data(many[1])).all()


def test_streams_and_rounds_do_not_meet():
    root = jax.random.key(0)
    data = [tuple(np.asarray(jax.random.key_data(simulate.stream(root, s, r)))) for s in range(10) for r in range(50)]
    assert len(set(data)) == 500


def test_mean_is_weighted_and_silent_on_nobody():
    messages = {"x": jnp.array([[1.0, 2.0], [3.0, 4.0], [5.0, 9.0]])}
    update = aggregators.mean().update
    key = jax.random.key(0)
    np.testing.assert_allclose(update(messages, jnp.array([1.0, 0.0, 3.0]), (), key)[0]["x"], [4.0, 7.25], rtol=1e-6)
    np.testing.assert_array_equal(update(messages, jnp.zeros(3), (), key)[0]["x"], [0.0, 0.0])


@pytest.mark.parametrize("num_broadcast", [0, 1])
def test_map_clients_is_a_loop_over_clients(num_broadcast):
    scale, x = jnp.array([2.0, 3.0, 4.0]), jnp.arange(3.0)
    got = map_clients(lambda s, y: s.sum() * y + 1, num_broadcast=num_broadcast)(scale, x)
    want = [(float(scale.sum()) if num_broadcast else float(scale[i])) * i + 1 for i in range(3)]
    np.testing.assert_allclose(got, want)

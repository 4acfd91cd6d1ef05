"""The private sum against NumPy in float64: clipping, the noise in the three forms it has, the adaptive clip."""

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from scipy import linalg, stats

from fedjax_rl.federation.accountant import coefficients
from fedjax_rl.federation.private import local_noise, private
from fedjax_rl.federation.secure import FixedPoint

KEY = jax.random.key(5)


def cohort(rows=6, seed=0):
    """Messages [M, 5] of norms from 0.1 to 10 as a tree, and the same as rows in float64."""
    rng = np.random.default_rng(seed)
    x = rng.standard_normal((rows, 5))
    x = (np.geomspace(0.1, 10.0, rows)[:, None] * x / np.linalg.norm(x, axis=1, keepdims=True)).astype(np.float32)
    return {"a": jnp.asarray(x[:, :2]), "b": {"c": jnp.asarray(x[:, 2:].reshape(rows, 3, 1))}}, x.astype(np.float64)


def one_of(messages, i=0):
    return jax.tree.map(lambda x: x[i], messages)


def as_row(tree):
    return np.concatenate([np.asarray(x, np.float64).ravel() for x in jax.tree.leaves(tree)])


def clipped(rows, clip):
    return rows * np.minimum(1.0, clip / np.linalg.norm(rows, axis=1, keepdims=True))


def without_noise(aggregator, messages, weights, key=KEY):
    """The aggregate less what the same key gives when nobody is heard, as a row."""
    state = aggregator.init(one_of(messages))
    update = jax.jit(aggregator.update)
    found, _ = update(messages, jnp.asarray(weights), state, key)
    nothing, _ = update(jax.tree.map(jnp.zeros_like, messages), jnp.zeros(len(weights)), state, key)
    return as_row(found) - as_row(nothing)


def test_the_sum_is_of_clipped_messages_and_divided_by_a_constant():
    messages, rows = cohort()
    aggregator = private(clip=2.0, noise=0.5, clients_per_round=4)
    w = np.array([1.0, 0.25, 7.0, 0.0, 1.0, 0.5])
    messages = jax.tree.map(lambda x: x.at[3].set(0.0), messages)
    true = (np.minimum(w, 1.0)[:, None] * clipped(rows, 2.0)).sum(axis=0) / 4
    np.testing.assert_allclose(without_noise(aggregator, messages, w), true, atol=3e-6)
    assert aggregator.at_least == 0 and aggregator.show(aggregator.init(one_of(messages))) == {}
    assert jax.tree.leaves(aggregator.init(one_of(messages))) == []


def test_no_message_is_longer_than_the_clip_in_float64():
    """In float32 a message clipped to C would be longer as often as not."""
    x = jax.random.normal(jax.random.key(0), (1000, 1, 300))
    aggregator = private(clip=1.0, noise=1e-30, clients_per_round=1)
    alone = jax.vmap(lambda m: aggregator.update(m, jnp.ones(1), aggregator.init(m[0]), KEY)[0])(x)
    norms = np.linalg.norm(np.asarray(alone, np.float64), axis=1)
    assert 1 - 2e-6 < norms.min() and norms.max() <= 1.0


def test_no_message_moves_the_sum_by_more_than_the_clip():
    """However long it is and whatever weight it claims."""
    aggregator, key = private(clip=0.5, noise=1.0, clients_per_round=3), jax.random.key(0)
    messages = jax.random.normal(key, (4, 7))
    update = jax.jit(lambda m, w: aggregator.update(m, w, aggregator.init(m[0]), key)[0])
    usual = update(messages, jnp.ones(4))
    for factor in (3.0, 1e3, 1e15):
        np.testing.assert_allclose(update(messages.at[1].multiply(factor), jnp.ones(4)), usual, atol=1e-6)
    np.testing.assert_allclose(update(messages, jnp.array([1.0, 7.0, 1e9, 1.0])), usual, atol=1e-6)
    without = update(messages.at[1].set(0.0), jnp.ones(4).at[1].set(0.0))
    assert np.linalg.norm(usual - without) == pytest.approx(0.5 / 3, rel=1e-5)


def test_an_empty_round_is_noise_of_the_claimed_size_in_every_direction():
    aggregator, runs = private(clip=0.5, noise=1.2, clients_per_round=3), 4000
    message = {"a": jnp.zeros((2, 2)), "b": jnp.zeros(3)}
    nobody = jax.tree.map(lambda x: jnp.zeros((6, *x.shape)), message)
    update = jax.jit(jax.vmap(lambda key: aggregator.update(nobody, jnp.zeros(6), aggregator.init(message), key)[0]))
    found = update(jax.random.split(jax.random.key(0), runs))
    rows = np.concatenate([np.asarray(x, np.float64).reshape(runs, -1) for x in found.values()], axis=1)
    rows /= 1.2 * 0.5 / 3
    for squares in (rows**2).sum(axis=0), (rows.sum(axis=1) ** 2 / 7).sum():
        low, high = stats.chi2.ppf([1e-4, 1 - 1e-4], runs)
        assert (low < squares).all() and (squares < high).all()
    np.testing.assert_allclose(np.corrcoef(rows.T), np.eye(7), atol=4.5 / np.sqrt(runs))
    again = update(jax.random.split(jax.random.key(0), runs))
    assert all((again[name] == found[name]).all() for name in found)
    assert np.abs(np.corrcoef(rows[:-1, 0], rows[1:, 0])[0, 1]) < 4.5 / np.sqrt(runs)


def noises(aggregator, messages, keys):
    """Aggregates [K, d] of rounds in which nobody is heard; the state goes on from round to round."""
    nobody = jax.tree.map(jnp.zeros_like, messages)
    weights = jnp.zeros(len(jax.tree.leaves(messages)[0]))
    first = aggregator.init(one_of(messages))

    def step(state, key):
        found, state = aggregator.update(nobody, weights, state, key)
        return state, jnp.concatenate([x.ravel() for x in jax.tree.leaves(found)])

    return np.asarray(jax.jit(lambda keys: jax.lax.scan(step, first, keys)[1])(keys), np.float64)


def test_banded_noise_is_white_noise_divided_by_the_band():
    """X = C^-1 Z solved in float64, from the Z that the white aggregator draws with the same keys."""
    messages, _ = cohort()
    c, keys = coefficients(200, 5), jax.random.split(jax.random.key(1), 200)
    z = noises(private(clip=3.0, noise=4.0, clients_per_round=2), messages, keys)
    x = noises(private(clip=3.0, noise=4.0, clients_per_round=2, coefficients=c), messages, keys)
    matrix = linalg.toeplitz(np.r_[c, np.zeros(195)], np.zeros(200))
    np.testing.assert_allclose(x, linalg.solve_triangular(matrix, z, lower=True), atol=2e-4)
    assert z.std() == pytest.approx(4.0 * 3.0 / 2, rel=0.06)
    kept = private(clip=3.0, noise=4.0, clients_per_round=2, coefficients=c).init(
        jax.tree.map(lambda m: m[0], messages)
    )
    assert [leaf.shape for leaf in jax.tree.leaves(kept)] == [(4, 5)]


def test_sums_of_banded_noise_stay_small():
    """The deviation of the sum of 100 rounds is what the coefficients promise, half of white noise's."""
    c, d = coefficients(100, 10), 4000
    aggregator = private(clip=1.0, noise=1.0, clients_per_round=1, coefficients=c)
    x = noises(aggregator, jnp.zeros((1, d)), jax.random.split(jax.random.key(2), 100))
    inverse = linalg.solve_triangular(linalg.toeplitz(np.r_[c, np.zeros(90)], np.zeros(100)), np.eye(100), lower=True)
    promised = np.sqrt((np.tril(np.ones((100, 100))) @ inverse) ** 2 @ np.ones(100))
    np.testing.assert_allclose(np.cumsum(x, axis=0).std(axis=1), promised, rtol=0.06)
    assert promised[-1] < 0.6 * np.sqrt(100)


def test_one_band_is_white_noise():
    messages, _ = cohort()
    keys = jax.random.split(jax.random.key(1), 5)
    one = private(clip=1.0, noise=1.0, clients_per_round=1, coefficients=coefficients(5, 1))
    white = private(clip=1.0, noise=1.0, clients_per_round=1)
    np.testing.assert_allclose(noises(one, messages, keys), noises(white, messages, keys), rtol=1e-6)


def test_the_noisy_share_and_the_sum_cost_one_multiplier_together():
    """sensitivity^2 / variance of the two, added, is that of a sum with noise z alone."""
    m, z, clip, quantile = 40, 1.5, 3.0, 0.7
    aggregator = private(clip=clip, noise=z, clients_per_round=m, quantile=quantile)
    rows = np.linspace(0.1, 6.0, 30, dtype=np.float32)[:, None] * np.array([0.6, 0.8], np.float32)
    messages, weights = jnp.asarray(rows), jnp.ones(30).at[0].set(0.0)
    state = aggregator.init(messages[0])

    def one(key):
        found, after = aggregator.update(messages, weights, state, key)
        return found, after.clip, after.clipped_share

    found, clips, share = jax.jit(jax.vmap(one))(jax.random.split(KEY, 20_000))
    below = np.linalg.norm(rows[1:], axis=1) <= clip
    true = 1 - (0.5 + (below - 0.5).sum() / m)
    share_error, sum_error = np.asarray(share, np.float64) - true, np.asarray(found) * m
    assert share_error.mean() == pytest.approx(0.0, abs=4 * 0.05 / np.sqrt(20_000))
    costs = 0.5**2 / (share_error * m).var() + clip**2 / sum_error.var(axis=0).mean()
    assert costs == pytest.approx(1 / z**2, rel=0.03)
    assert share_error.std() == pytest.approx(1 / 20, rel=0.02)
    assert np.abs(np.corrcoef(share_error, sum_error.T)[0, 1:]).max() < 4 / np.sqrt(20_000)
    np.testing.assert_allclose(clips, clip * np.exp(-0.2 * (1 - np.asarray(share) - quantile)), rtol=1e-5)


@pytest.mark.parametrize("quantile", [0.3, 0.8])
def test_an_adaptive_clip_finds_the_quantile(quantile):
    norms = np.geomspace(0.01, 10.0, 100, dtype=np.float32)
    messages = jnp.asarray(norms[:, None] * np.array([[0.6, 0.8]], np.float32))
    aggregator = private(clip=100.0, noise=1.0, clients_per_round=100, quantile=quantile)

    def step(state, key):
        _, state = aggregator.update(messages, jnp.ones(100), state, key)
        return state, aggregator.show(state)

    first = aggregator.init(messages[0])
    _, shown = jax.jit(lambda keys: jax.lax.scan(step, first, keys))(jax.random.split(KEY, 600))
    last = np.log(np.asarray(shown["privacy/clip"])[-200:]).mean()
    assert last == pytest.approx(np.log(np.quantile(norms, quantile)), abs=0.1)
    assert np.asarray(shown["privacy/clipped_share"])[-200:].mean() == pytest.approx(1 - quantile, abs=0.01)


def test_a_secure_sum_has_the_noise_of_its_rounding_too():
    messages, rows = cohort()
    numbers = FixedPoint(8, 4.0)
    aggregator = private(clip=2.0, noise=0.5, clients_per_round=4, sums=numbers)
    true = clipped(rows, 2.0).sum(axis=0) / 4
    np.testing.assert_allclose(without_noise(aggregator, messages, np.ones(6)), true, atol=6 * 4.0 / 127 / 4)
    keys = jax.random.split(KEY, 8000)
    step = 4.0 / 127
    assert noises(aggregator, messages, keys).std() == pytest.approx(
        0.5 * (2.0 + np.sqrt(5) * step) / 4, rel=3.5 / np.sqrt(2 * 40_000)
    )
    coarse = private(clip=2.0, noise=1e-30, clients_per_round=1, sums=FixedPoint(8, 1.0))
    levels = without_noise(coarse, messages, np.ones(6)) * 127
    np.testing.assert_allclose(levels, np.round(levels), atol=1e-3)
    state = coarse.update(messages, jnp.ones(6), coarse.init(one_of(messages)), KEY)[1]
    beyond = (np.abs(clipped(rows, 2.0)) > 1.0).any(axis=1).sum()
    assert coarse.show(state) == {"health/secagg_clipped": beyond} and 0 < beyond < 6


def test_clip_noise_and_quantile_may_be_traced():
    messages, _ = cohort()

    def found(clip, noise, quantile):
        aggregator = private(clip=clip, noise=noise, clients_per_round=40, quantile=quantile)
        return aggregator.update(messages, jnp.ones(6), aggregator.init(one_of(messages)), KEY)

    values = jnp.array([[0.5, 1.0, 0.2], [2.0, 3.0, 0.9]])
    both = jax.jit(jax.vmap(found))(*values.T)
    for i, value in enumerate(values.tolist()):
        for a, b in zip(jax.tree.leaves(both), jax.tree.leaves(found(*value)), strict=True):
            np.testing.assert_allclose(a[i], b, rtol=1e-5, atol=1e-6)


def test_float64_messages_get_the_noise_of_float32():
    messages, _ = cohort()
    for options in ({"quantile": 0.5}, {"coefficients": coefficients(4, 2)}):
        found = {}
        for wide in (False, True):
            with jax.enable_x64(wide):
                m = jax.tree.map(lambda x: jnp.asarray(x, jnp.result_type(float)), messages)
                aggregator = private(clip=1.0, noise=1.0, clients_per_round=40, **options)
                found[wide], state = jax.jit(aggregator.update)(m, jnp.ones(6), aggregator.init(one_of(m)), KEY)
                assert {x.dtype for x in jax.tree.leaves(state)} == {jnp.dtype("float32")}
        np.testing.assert_allclose(as_row(found[False]), as_row(found[True]), rtol=1e-5)
        assert {x.dtype for x in jax.tree.leaves(found[True])} == {jnp.dtype("float64")}


def test_local_noise_clips_and_hides_each_message():
    messages, rows = cohort()
    uplink = optax.chain(optax.identity(), local_noise(2.0, 1.5))

    def sent(message, key):
        return uplink.update(message, uplink.init(message), key=key)[0]

    one = one_of(messages, -1)
    found = jax.jit(jax.vmap(lambda key: sent(one, key)))(jax.random.split(KEY, 4000))
    found = np.concatenate([np.asarray(x).reshape(4000, -1) for x in jax.tree.leaves(found)], axis=1)
    np.testing.assert_allclose(found.mean(axis=0), clipped(rows, 2.0)[-1], atol=4.5 * 3.0 / np.sqrt(4000))
    covariance = np.cov(found.T)
    np.testing.assert_allclose(covariance, 9.0 * np.eye(5), atol=4.5 * 9.0 * np.sqrt(2 / 4000))
    short = one_of(messages)
    difference = as_row(sent(short, KEY)) - as_row(sent(jax.tree.map(jnp.zeros_like, short), KEY))
    np.testing.assert_allclose(difference, rows[0], atol=1e-6)

"""Secure sums: the masks, the fixed-point numbers, and the mean made of them, against NumPy in float64."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from scipy import stats

from fedjax_rl.federation.secure import FixedPoint, pairwise_mask, pairwise_masks, secure_bytes, secure_mean
from fedjax_rl.host.exits import ConfigError

IDS = np.array([3, 17, 4, 101, 0, 56])  # in no order
D = 20_000


@pytest.fixture(scope="module")
def levels():
    """Levels [n, D] as uint32, of small numbers of both signs."""
    values = 0.2 * jax.random.normal(jax.random.key(1), (len(IDS), D))
    encode = jax.jit(jax.vmap(FixedPoint(20, 1.0).encode))
    return np.asarray(encode(values, jax.random.split(jax.random.key(2), len(IDS))))


@pytest.fixture(scope="module")
def masks():
    return np.asarray(pairwise_masks(jax.random.key(0), jnp.asarray(IDS), D))


def updated(numbers, messages, weights, key=0, at_least=1):
    """(The mean, the state after it)."""
    aggregator = secure_mean(numbers, at_least=at_least)
    state = aggregator.init(messages)
    return jax.jit(aggregator.update)(messages, jnp.asarray(weights), state, jax.random.key(key))


def test_masks_cancel_to_the_last_bit(levels, masks):
    assert masks.dtype == np.uint32 and (masks != 0).mean() > 0.99
    np.testing.assert_array_equal((levels + masks).sum(axis=0, dtype=np.uint32), levels.sum(axis=0, dtype=np.uint32))
    signed = levels.astype(np.int32).astype(np.int64)  # and this is the true sum, without the modulus
    np.testing.assert_array_equal(levels.sum(axis=0, dtype=np.uint32).astype(np.int32), signed.sum(axis=0))
    assert (signed < 0).any() and (signed > 0).any()


def test_a_mask_is_the_sum_of_what_pairs_agree_on():
    """Each pair's number by itself, in Python's integers: the lower id adds it, the higher subtracts it."""
    key, ids = jax.random.key(0), IDS.tolist()
    expected = np.zeros((len(ids), 3), object)
    for a, i in enumerate(ids):
        for b, j in enumerate(ids):
            if i < j:
                pair = jax.random.fold_in(jax.random.fold_in(key, i), j)
                drawn = np.asarray(jax.random.bits(pair, (3,), jnp.uint32)).astype(object)
                expected[a] += drawn
                expected[b] -= drawn
    masks_of = jax.jit(lambda key: pairwise_masks(key, jnp.asarray(IDS), 3))
    np.testing.assert_array_equal(np.asarray(masks_of(key)).astype(object), expected % 2**32)
    assert (masks_of(jax.random.key(1)) != masks_of(key)).all()


def test_one_masked_message_is_uniform_and_tells_nothing_of_itself(levels, masks):
    for sent in levels + masks:
        for part in (sent >> 24, (sent >> 8) & 0xFF, sent & 0xFF):
            assert stats.chisquare(np.bincount(part, minlength=256)).pvalue > 1e-4
    assert stats.chisquare(np.bincount(levels[0] >> 24, minlength=256)).pvalue < 1e-9  # which it was not before
    assert abs(stats.spearmanr(levels[0], levels[0] + masks[0]).statistic) < 0.03


def test_the_mask_of_who_dropped_out_is_recovered(levels, masks):
    gone = 2
    rest = [i for i in range(len(IDS)) if i != gone]
    arrived = (levels + masks)[rest].sum(axis=0, dtype=np.uint32)
    true = levels[rest].sum(axis=0, dtype=np.uint32)
    assert (arrived != true).mean() > 0.99
    recovered = np.asarray(pairwise_mask(jax.random.key(0), int(IDS[gone]), jnp.asarray(IDS), D))
    np.testing.assert_array_equal(arrived + recovered, true)


@pytest.mark.parametrize("bits", [4, 24])
def test_rounding_is_to_a_neighbour_and_without_bias(bits):
    numbers = FixedPoint(bits, 3.0)
    values = jnp.array([-1.0, -0.4321, -1e-3, 0.0, 0.2345, 1.0])
    draw = jax.jit(jax.vmap(lambda key: numbers.encode(values, key)))
    draws = draw(jax.random.split(jax.random.key(0), 4000))
    levels = np.asarray(draws).astype(np.int32).astype(np.float64)
    y = np.asarray(values, np.float64) * (2 ** (bits - 1) - 1)
    assert np.abs(levels - y).max() < 1.0
    assert (levels[:, [0, 3, 5]] == y[[0, 3, 5]]).all()  # whole levels stay
    fraction = y - np.floor(y)
    allowed = 4.5 * np.sqrt(fraction * (1 - fraction) / 4000) + 0.51 * (bits == 24)  # float32 has no fractions there
    assert (np.abs(levels.mean(axis=0) - y) <= allowed + 1e-9).all()


# The mean of 40 messages of 7000 normal numbers, R = 5 deviations: |mean - true mean| / |true mean|.
RELATIVE = {4: 0.29, 6: 0.065, 8: 0.016, 12: 0.0010, 16: 6e-5, 20: 4e-6}


@pytest.fixture(scope="module")
def normal_rows():
    return 0.01 * jax.random.normal(jax.random.key(0), (40, 7000))


@pytest.mark.parametrize("bits", RELATIVE)
def test_the_error_of_a_mean_falls_with_the_bits(bits, normal_rows):
    found, _ = updated(FixedPoint(bits, 0.05), normal_rows, np.ones(40))
    true = np.asarray(normal_rows, np.float64).mean(axis=0)
    error = np.linalg.norm(found - true) / np.linalg.norm(true)
    assert error == pytest.approx(RELATIVE[bits], rel=0.2)
    closed = np.sqrt(1 / 6) / (2 ** (bits - 1) - 1) * 0.05 / 0.01  # a fraction p errs by p (1 - p), of mean 1/6
    assert error == pytest.approx(closed, rel=0.1)


def test_the_mean_is_weighted_and_clipped_to_the_range():
    rows = np.array([[1.0, -2.0, 1.0], [5.0, -4.5, 2.0], [-3.0, 0.0, 3.0], [0.0, 0.0, 0.0]])
    messages = {"a": jnp.asarray(rows[:, :2]), "b": jnp.asarray(rows[:, 2])}
    found, state = updated(FixedPoint(22, 4.0), messages, [0.5, 1.0, 4.0, 0.0])
    w = np.array([0.5, 1.0, 1.0, 0.0])  # 4 counts as 1
    true = np.clip(w[:, None] * rows, -4.0, 4.0).sum(axis=0) / w.sum()
    np.testing.assert_allclose([*found["a"], found["b"]], true, atol=1e-5)
    aggregator = secure_mean(FixedPoint(22, 4.0), at_least=2)
    assert aggregator.at_least == 2
    assert {name: int(value) for name, value in aggregator.show(state).items()} == {"health/secagg_clipped": 1}


def test_nobody_heard_is_zero_and_every_round_rounds_anew():
    messages, update = jnp.full((3, 400), 0.123), jax.jit(secure_mean(FixedPoint(8, 1.0), at_least=1).update)
    zero, _ = update(jnp.zeros((3, 400)), jnp.zeros(3), jnp.int32(0), jax.random.key(0))
    assert not zero.any()
    one, again, other = (update(messages, jnp.ones(3), jnp.int32(0), jax.random.key(key))[0] for key in (0, 0, 1))
    assert (one == again).all() and (one != other).any()
    assert len(np.unique(one)) == 4  # 0 to 3 of the three clients rounded up: they do not round alike


def test_the_range_may_be_traced():
    messages = jax.random.normal(jax.random.key(0), (5, 30))
    both, _ = jax.vmap(lambda scale_range: updated(FixedPoint(16, scale_range), messages, np.ones(5)))(
        jnp.array([4.0, 8.0])
    )
    for found, scale_range in zip(both, (4.0, 8.0), strict=True):
        true = np.asarray(messages, np.float64).mean(axis=0)
        np.testing.assert_allclose(found, true, atol=scale_range / (2**15 - 1))
        levels = np.asarray(found, np.float64) * 5 * (2**15 - 1) / scale_range
        np.testing.assert_allclose(levels, np.round(levels), atol=0.05)


def test_more_clients_than_fit_are_refused():
    numbers = FixedPoint(24, 1.0)
    assert 256 * numbers.most < 2**31 <= 257 * numbers.most
    exact = numbers.total(jnp.full((256, 2), -1.0), jax.random.key(0))
    assert exact.tolist() == [-256.0, -256.0]
    with pytest.raises(ConfigError, match="bits = 24: 257 clients overflow 32 bits; at most 256 fit"):
        numbers.total(jnp.ones((257, 2)), jax.random.key(0))


def test_bytes_of_a_message():
    assert secure_bytes(7000, 20, 40) == np.ceil(26 * 7001 / 8) + 64 + 94 * 39
    assert secure_bytes(7, 8, 1) == 8 + 64

"""Compression against its bounds, against NumPy, and against an encoder that packs bits."""

import functools
import math

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from fedjax_rl.federation import compress

BIASED = ("top_k", "sign", "low_rank", "top_k+quantise")
NAMES = (*BIASED, "random_k", "quantise")
KNOWN = np.array([3, -1, 0.5, 0, -4, 2, 0.25, -0.1], np.float32)
VALUES = np.random.default_rng(5).normal(size=700).astype(np.float32) ** 3  # two buckets, the second not full


def make(name, ratio=0.1, bits=4, rank=2, **options):
    return compress.compressor(name, ratio=ratio, bits=bits, rank=rank, **options)


def message(seed=0):
    """1,037 numbers: two matrices that `low_rank` makes smaller and one too small, some of them of bfloat16."""
    rng = np.random.default_rng(seed)
    shapes = {"a": (20, 40), "b": (40,), "c": (48, 4), "d": (2, 2), "e": ()}
    dtypes = {"b": jnp.bfloat16, "c": jnp.bfloat16}
    return {k: jnp.asarray(rng.normal(size=v), dtypes.get(k, jnp.float32)) for k, v in shapes.items()}


def flat(tree):
    return np.concatenate([np.asarray(x, np.float64).ravel() for x in jax.tree.leaves(tree)])


@functools.cache
def program(name, **options):
    """(state, what is sent) of a message, compiled."""
    transform = make(name, **options).transform
    return jax.jit(lambda x, state, key: transform.update(x, state, key=key))


def sent(name, x, seed=0, **options):
    options = {"feedback": "none", **options}
    return program(name, **options)(x, make(name, **options).transform.init(x), jax.random.key(seed))[0]


@functools.cache
def program_of_keys(name, **options):
    """What is reconstructed of a message x with each of some keys, compiled."""
    transform = make(name, **options).transform
    one = lambda x, key: transform.update(x, transform.init(x), key=key)[0]
    return jax.jit(jax.vmap(one, in_axes=(None, 0)))


def many(name, x, count, **options):
    """What is reconstructed of x [d] with `count` keys, in float64 [count, d]."""
    run = program_of_keys(name, **{"feedback": "none", **options})
    return np.asarray(run(jnp.asarray(x, jnp.float32), jax.random.split(jax.random.key(9), count)), np.float64)


def assert_mean(samples, mean):
    """The mean of independent samples [count, ...] is `mean` within 5 standard errors, and a rounding of float32."""
    error = samples.std(axis=0, ddof=1) / math.sqrt(len(samples))
    assert (np.abs(samples.mean(axis=0) - mean) <= 5 * error + 1e-6 * np.abs(mean)).all()


def assert_rounded(samples, x, low, step):
    """Samples [count, d] of x [d] are low + a whole number of steps, a neighbour of x, with mean x and its variance."""
    levels, y, count = (samples - low) / step, (x - low) / step, len(samples)
    slack = 1e-6 * (1 + np.abs(y).max())  # a rounding of float32
    assert np.abs(levels - np.round(levels)).max() < slack and np.abs(levels - y).max() < 1 + slack
    variance = y % 1 * (1 - y % 1)
    # 6 standard errors, and 5 of the rare roundings that none of the samples may have
    assert (np.abs(levels.mean(axis=0) - y) < 6 * np.sqrt(variance / count) + 5 / count + slack).all()
    assert ((levels - y) ** 2).mean(axis=0).sum() == pytest.approx(variance.sum(), rel=0.05)
    assert levels.sum(axis=1).var() == pytest.approx(variance.sum(), rel=0.2)  # each is rounded by itself


# --- one by one


def test_known_answers():
    three = np.asarray(sent("top_k", jnp.asarray(KNOWN), ratio=3 / 8))
    assert three.tolist() == [3, 0, 0, 0, -4, 2, 0, 0]
    assert np.sum((three - KNOWN) ** 2) == pytest.approx(1.3225)
    signs = np.asarray(sent("sign", jnp.asarray(KNOWN)))
    assert signs.tolist() == [np.float32(1.35625) * s for s in (1, -1, 1, 1, -1, 1, 1, -1)]  # the sign of 0 is +1
    assert np.sum((signs - KNOWN) ** 2) == pytest.approx(15.6071875)


@pytest.mark.parametrize("ratio", [1e-9, 0.07, 0.5, 1.0])
def test_top_k_keeps_the_largest(ratio):
    x = jnp.asarray(VALUES[:100])
    k = {1e-9: 1, 0.07: 7, 0.5: 50, 1.0: 100}[ratio]  # 0.07 * 100 is 7.000000000000001
    kept = np.argsort(-np.abs(VALUES[:100]), kind="stable")[:k]
    expected = np.zeros(100, np.float32)
    expected[kept] = VALUES[kept]
    once = sent("top_k", x, ratio=ratio)
    assert np.array_equal(once, expected) and np.array_equal(sent("top_k", once, ratio=ratio), expected)
    assert np.sum((expected - x) ** 2) <= (1 - k / 100) * np.sum(x**2)


def test_of_equal_numbers_top_k_keeps_the_first_and_its_bound_is_reached():
    x = 0.5 * jnp.where(jnp.arange(20) % 3 == 0, -1.0, 1.0)
    y = sent("top_k", x, ratio=0.25)
    assert np.array_equal(y, np.where(np.arange(20) < 5, x, 0)) and np.sum((y - x) ** 2) == 0.75 * np.sum(x**2)


def test_random_k_is_unbiased_and_every_set_is_as_likely_as_any_other():
    x = np.array([1.0, -2.0, 0.5, 4.0, 1.5])
    y = many("random_k", x, 20_000, ratio=0.4)
    assert_mean(y, x)
    assert_mean(((y - x) ** 2).sum(axis=1), (5 / 2 - 1) * np.sum(x**2))
    assert set(np.unique(np.round(y / x, 5) + 0.0)) == {0.0, 2.5}
    sets, counts = np.unique((y != 0) @ (1 << np.arange(5)), return_counts=True)
    assert len(sets) == 10 and np.sum((counts - 2000) ** 2 / 2000) < 27.9  # chi-square of 9 degrees, 0.1 %
    z = many("random_k", x, 20_000, ratio=0.4, feedback="classic")
    assert np.array_equal(z != 0, y != 0) and set(np.unique(z / x + 0.0)) == {0.0, 1.0}
    assert_mean(((z - x) ** 2).sum(axis=1), (1 - 2 / 5) * np.sum(x**2))


def test_random_k_of_many_numbers_prefers_no_place():
    kept = np.asarray(jax.jit(lambda key: compress.random_k(key, 1 << 17, 1 << 14))(jax.random.key(0)))
    assert len(np.unique(kept)) == 1 << 14
    counts = np.bincount(kept >> 13, minlength=16)
    assert np.sum((counts - 1024) ** 2 / 1024) < 37.7  # chi-square of 15 degrees, 0.1 %


@pytest.mark.parametrize("bits", [2, 4, 16])
def test_quantise_is_unbiased_with_its_variance(bits):
    s, x, y = 2 ** (bits - 1) - 1, np.asarray(VALUES, np.float64), many("quantise", VALUES, 2000, bits=bits)
    for part, size in ((slice(512), 512), (slice(512, None), 188)):
        norm = np.linalg.norm(x[part])
        assert_rounded(y[:, part], x[part], 0.0, norm / s)
        errors = ((y[:, part] - x[part]) ** 2).sum(axis=1).mean()
        assert errors <= min(size / s**2, math.sqrt(size) / s) * norm**2


def test_quantise_of_zeros_and_of_a_single_number_is_exact():
    for name in ("quantise", "top_k+quantise"):
        assert np.array_equal(sent(name, jnp.zeros(700)), np.zeros(700))
    for value in (1e-30, 3e30, -0.1):  # whose square is not a float32
        x = np.where(np.arange(700) == 600, np.float32(value), np.float32(0))
        np.testing.assert_allclose(many("quantise", x, 2000), np.tile(x, (2000, 1)), rtol=3e-7)


def test_top_k_quantise_rounds_the_kept_numbers_as_one_bucket():
    y = many("top_k+quantise", VALUES, 2000, ratio=0.9)
    kept = np.argsort(-np.abs(VALUES), kind="stable")[:630]
    x = np.asarray(VALUES[kept], np.float64)
    assert_rounded(y[:, kept], x, 0.0, np.linalg.norm(x) / 7)
    assert (np.delete(y, kept, axis=1) == 0).all()


def test_sign_has_its_error_exactly_per_leaf(x64):
    x = {"a": jnp.asarray(VALUES[:60].reshape(6, 10), jnp.float64), "b": jnp.asarray(VALUES[60:61], jnp.float64)}
    y = sent("sign", x)
    expected = sum(np.sum(np.asarray(v) ** 2) - np.sum(np.abs(v)) ** 2 / v.size for v in x.values())
    assert np.sum((flat(y) - flat(x)) ** 2) == pytest.approx(expected, rel=1e-12)
    assert np.array_equal(np.sign(flat(y)), np.sign(flat(x))) and y["b"] == x["b"]


def with_values(singular, n, m, seed=3):
    rng = np.random.default_rng(seed)
    left, right = (np.linalg.qr(rng.normal(size=(size, len(singular))))[0] for size in (n, m))
    return jnp.asarray(left * np.asarray(singular)[None] @ right.T, jnp.float32)


def test_low_rank_is_exact_up_to_its_rank():
    approximate = jax.jit(jax.vmap(lambda x, key: compress.low_rank(x, 4, key), in_axes=(None, 0)))
    keys = jax.random.split(jax.random.key(0), 50)
    for singular in ([5.0, 2.0, 1.0, 0.3], [1.0, 1e-3], [1e-25], [0.0]):
        x = with_values(singular, 20, 30)
        assert np.abs(approximate(x, keys) - x[None]).max() <= 2e-6 * max(singular), singular


def test_low_rank_is_close_to_the_best():
    """The singular values fall by 0.7; the best of rank r leaves those after the r-th."""
    x = with_values(0.7 ** np.arange(20), 30, 20)
    best = math.sqrt(np.sum(0.49 ** np.arange(8, 20)))
    approximate = jax.jit(jax.vmap(lambda x, key: compress.low_rank(x, 8, key), in_axes=(None, 0)))
    errors = np.linalg.norm(approximate(x, jax.random.split(jax.random.key(0), 100)) - x[None], axis=(1, 2))
    assert errors.min() >= best * (1 - 1e-5) and errors.mean() <= 1.1 * best


def test_low_rank_sends_what_is_small_whole():
    x = message()
    y = sent("low_rank", x, feedback="classic")  # the memory is empty
    assert all(np.array_equal(x[name], y[name]) for name in "bde")
    for name, rounding in (("a", 1e-5), ("c", 0.2)):
        assert np.linalg.matrix_rank(np.asarray(y[name], np.float64), tol=rounding) == 2
        assert 1 < np.linalg.norm(flat(x[name]) - flat(y[name])) < np.linalg.norm(flat(x[name]))


# --- memory


@pytest.mark.parametrize("name", NAMES)
def test_the_classic_memory_loses_nothing(name):
    """What was sent and what is kept are together what was to be sent; of bfloat16 too, where sending rounds."""
    step, state = program(name, feedback="classic"), make(name, feedback="classic").transform.init(message())
    total_x, total_sent = 0.0, 0.0
    for i in range(12):
        x = message(seed=i)
        y, state = step(x, state, jax.random.key(i))
        total_x, total_sent = total_x + flat(x), total_sent + flat(y)
        assert np.linalg.norm(flat(state)) > 0.1 and all(v.dtype == jnp.float32 for v in state.values())
        assert jax.tree.map(lambda v: (v.shape, v.dtype), y) == jax.tree.map(lambda v: (v.shape, v.dtype), x)
    np.testing.assert_allclose(total_sent + flat(state), total_x, atol=2e-5)


@pytest.mark.parametrize("name", ["random_k", "quantise", "top_k+quantise"])
def test_the_memory_does_not_grow(name):
    """Two bits of 512 numbers have 22 times the variance of the message: only what is divided by 1 + 22 contracts.

    |e| becomes sqrt(1 - delta) |x + e| at most, in the mean, which stays below 2 |x| / delta.
    """
    transform = make(name, bits=2, ratio=0.5, feedback="classic").transform
    x = message()

    def step(state, key):
        state = transform.update(x, state, key=key)[1]
        return state, optax.tree.norm(state)

    norms = jax.jit(lambda: jax.lax.scan(step, transform.init(x), jax.random.split(jax.random.key(0), 400))[1])()
    delta = {"random_k": 0.5, "quantise": 1 / (1 + math.sqrt(512)), "top_k+quantise": 0.5 / (1 + math.sqrt(519))}[name]
    assert norms.max() < 2 / delta * np.linalg.norm(flat(x)) and norms[-1] < 1.2 * norms[300]


@pytest.mark.parametrize("name", ["top_k", "random_k", "quantise"])
def test_ef21_approaches_what_stays_the_same(name):
    """|x - g|^2 falls by 1 - k/d a round, at least (`top_k`) or in the mean; to nothing in the end."""
    x = jnp.asarray(VALUES[:200])
    transform = make(name, feedback="ef21").transform

    def step(g, key):
        y, g = transform.update(x, g, key=key)
        return g, (y, jnp.sum((x - g) ** 2))

    def run(key):
        return jax.lax.scan(step, transform.init(x), jax.random.split(key, 60))[1]

    y, left = jax.jit(jax.vmap(run))(jax.random.split(jax.random.key(1), 300))
    x, y, left = (np.asarray(v, np.float64) for v in (x, y, left))
    np.testing.assert_allclose(np.sum((y - x) ** 2, axis=2), left, rtol=1e-5, atol=1e-8)  # g is sent
    before = np.concatenate([np.full((300, 1), np.sum(x**2)), left[:, :-1]], axis=1)
    kept = 1 / (1 + math.sqrt(200) / 7) if name == "quantise" else 0.1
    more = left - (1 - kept) * before
    if name == "top_k":
        assert (more <= 1e-6 * before + 1e-10).all() and left[:, -1].max() < 1e-9
    else:
        assert (more.mean(axis=0) <= 5 * more.std(axis=0) / math.sqrt(300) + 1e-10).all()
    if name == "random_k":
        assert_mean(left[:, :10], 0.9 ** np.arange(1, 11) * before[0, 0])


@pytest.mark.parametrize("name", NAMES)
def test_memory_is_kept_of_what_is_biased(name):
    keeps = lambda **options: jax.tree.leaves(make(name, **options).transform.init(message())) != []
    assert keeps() == keeps(feedback="auto") == (name in BIASED)
    assert keeps(feedback="classic") and keeps(feedback="ef21") and not keeps(feedback="none")


def test_unknown_names_are_refused():
    for name, feedback in (("top-k", "auto"), ("top_k", "ef22"), ("random_k+quantise", "none")):
        with pytest.raises(KeyError):
            make(name, feedback=feedback)


# --- all of them


@pytest.mark.parametrize("name", NAMES)
def test_a_client_among_others_is_a_client_alone(name):
    """Among 20 of each of two members of a sweep, bit for bit; but products of matrices have another order there."""
    transform = make(name, feedback="classic").transform
    rows = jax.tree.map(lambda *x: np.stack(x), *(message(seed=i) for i in range(40)))
    state = jax.tree.map(lambda x: np.zeros(x.shape, np.float32), jax.eval_shape(transform.init, rows))
    keys = jax.random.split(jax.random.key(2), 40)
    pairs = lambda tree: jax.tree.map(lambda x: x.reshape(2, 20, *x.shape[1:]), tree)
    together = jax.jit(jax.vmap(jax.vmap(lambda x, state, key: transform.update(x, state, key=key))))
    one = program(name, feedback="classic")
    for _ in range(2):
        after = jax.tree.map(
            lambda x: np.asarray(x).reshape(40, *x.shape[2:]), together(*map(pairs, (rows, state, keys)))
        )
        for i in (0, 17, 39):
            alone = one(*jax.tree.map(lambda x: x[i], (rows, state)), keys[i])
            for a, b in zip(jax.tree.leaves(after), jax.tree.leaves(alone), strict=True):
                if name == "low_rank":  # bfloat16 rounds to 1 in 256
                    np.testing.assert_allclose(a[i], b, rtol=0.01 if b.dtype == jnp.bfloat16 else 0, atol=1e-5)
                else:
                    assert np.array_equal(a[i], b)
        state = after[1]
    assert together._cache_size() == 1


@pytest.mark.parametrize(
    ("name", "feedback"), [*((name, "classic") for name in NAMES), ("random_k", "none"), ("top_k", "ef21")]
)
def test_what_is_not_finite_stays_so(name, feedback):
    """Wherever it is: a message without it would be heard."""
    step, state = program(name, feedback=feedback), make(name, feedback=feedback).transform.init(message())
    for leaf, at in (("a", (3, 4)), ("b", 39), ("e", ())):
        for value in (jnp.nan, jnp.inf, -jnp.inf):
            x = message()
            y, _ = step(x | {leaf: x[leaf].at[at].set(value)}, state, jax.random.key(0))
            assert all(np.isnan(v).all() for v in y.values())
    assert np.isfinite(flat(step(message(), state, jax.random.key(0))[0])).all()


def test_it_stands_in_a_chain():
    """Behind a clip, which knows no keys."""
    chain = optax.chain(optax.clip_by_global_norm(1.0), make("top_k", ratio=0.01).transform)
    x = jnp.asarray(VALUES)
    y, _ = jax.jit(lambda x, s, key: chain.update(x, s, key=key))(x, chain.init(x), jax.random.key(0))
    kept = np.argsort(-np.abs(flat(x)))[:7]
    assert (flat(y) != 0).sum() == 7
    np.testing.assert_allclose(flat(y)[kept], flat(x)[kept] / np.linalg.norm(flat(x)), rtol=1e-5)


# --- bytes


def pack(numbers, bits):
    """Whole numbers >= 0 as a string of bits, most significant first."""
    return "".join(format(int(n), f"0{bits}b") for n in numbers) if bits else ""


def unpack(text, bits):
    return np.array([int(text[i : i + bits], 2) for i in range(0, len(text), bits)])


def as_bits(values):
    return pack(np.asarray(values, np.float32).view(np.uint32), 32)


def as_floats(text):
    return unpack(text, 32).astype(np.uint32).view(np.float32)


@pytest.mark.parametrize("d", [2, 700, 1024])
def test_an_encoder_of_top_k_needs_its_bytes(d):
    x = jnp.asarray(np.resize(VALUES, d))
    y = np.asarray(sent("top_k", x))
    kept, width = np.flatnonzero(y), math.ceil(math.log2(d))
    text = as_bits(y[kept]) + pack(kept, width)
    payload = int(text, 2).to_bytes(math.ceil(len(text) / 8), "big")
    assert 0 <= len(payload) - make("top_k").num_bytes(x) < 1
    text = format(int.from_bytes(payload, "big"), f"0{len(text)}b")
    decoded = np.zeros(d, np.float32)
    decoded[unpack(text[32 * len(kept) :], width)] = as_floats(text[: 32 * len(kept)])
    assert np.array_equal(decoded, y)


@pytest.mark.parametrize(("d", "bits"), [(3, 2), (700, 4), (1025, 11)])
def test_an_encoder_of_quantise_needs_its_bytes(d, bits):
    x, key = jnp.asarray(np.resize(VALUES, d)), jax.random.key(0)
    units, levels = jax.jit(lambda x, key: compress.quantise(x, key, bits, min(d, 512)))(x, key)
    text = as_bits(units) + pack(np.asarray(levels, int).ravel()[:d] % 2**bits, bits)
    payload = int("1" + text, 2).to_bytes(math.ceil((len(text) + 1) / 8), "big")
    assert 0 <= len(text) / 8 - make("quantise", bits=bits).num_bytes(x) < 1e-9
    text = format(int.from_bytes(payload, "big"), "b")[1:]
    count = 32 * math.ceil(d / 512)
    signed = unpack(text[count:], bits)
    signed = np.where(signed >= 2 ** (bits - 1), signed - 2**bits, signed)
    decoded = np.repeat(as_floats(text[:count]), 512)[:d] * signed.astype(np.float32)
    assert np.array_equal(decoded, sent("quantise", x, bits=bits))


def test_an_encoder_of_top_k_quantise_needs_its_bytes():
    x = jnp.asarray(VALUES)
    y = np.asarray(sent("top_k+quantise", x))
    kept = np.argsort(-np.abs(VALUES), kind="stable")[:70]
    unit = np.linalg.norm(VALUES[kept].astype(np.float64)) / 7
    levels = np.round(y[kept] / unit).astype(int)
    text = as_bits([unit]) + pack(kept, 10) + pack(levels % 16, 4)
    assert len(text) / 8 == make("top_k+quantise").num_bytes(x) == 70 * 14 / 8 + 4
    signed = unpack(text[732:], 4)
    decoded = np.zeros(700)
    decoded[unpack(text[32:732], 10)] = as_floats(text[:32]) * np.where(signed >= 8, signed - 16, signed)
    np.testing.assert_allclose(decoded, y, rtol=1e-6)


def test_bytes_follow_from_shapes():
    shapes = jax.tree.map(lambda x: jax.ShapeDtypeStruct(x.shape, x.dtype), message())
    expected = {
        "top_k": 104 * (32 + 11) / 8,
        "random_k": 104 * 4,
        "quantise": 1037 * 4 / 8 + 3 * 4,
        "sign": 1037 / 8 + 5 * 4,
        "low_rank": 4 * (2 * 60 + 2 * 52 + 40 + 4 + 1),
        "top_k+quantise": 104 * (4 + 11) / 8 + 4,
    }
    for name in NAMES:
        for feedback in ("none", "classic", "ef21"):
            assert make(name, feedback=feedback).num_bytes(shapes) == expected[name], name
    one = jax.ShapeDtypeStruct((), jnp.float32)
    assert [make(name).num_bytes(one) for name in ("top_k", "random_k", "quantise", "sign")] == [4, 4, 4.5, 4.125]


# --- the way down


@pytest.mark.parametrize("bits", [2, 16])
def test_the_model_on_its_way_down_is_rounded_without_bias(bits):
    model, keys = VALUES[:300].reshape(10, 30) * np.float32(1e-6), jax.random.split(jax.random.key(4), 2000)
    received = jax.jit(jax.vmap(lambda m, key: compress.quantise_model(m, key, bits), in_axes=(None, 0)))(model, keys)
    x, y = (np.asarray(v, np.float64).reshape(-1, 300) for v in (model, received))
    assert_rounded(y, x[0], x.min(), (x.max() - x.min()) / (2**bits - 1))
    ends = y[:, [x.argmin(), x.argmax()]]
    assert (np.abs(ends - [x.min(), x.max()]) < 1e-6 * np.abs(x).max()).all()


def test_what_cannot_be_rounded_stays_as_it_is():
    model = {
        "same": jnp.full((5,), 0.3),
        "one": jnp.float32(-2.5),
        "count": jnp.arange(6),
        "mask": jnp.array([True, False]),
        "key": jax.random.key(3),
        "broken": jnp.array([1.0, jnp.nan, 2.0]),
        "half": jnp.asarray(VALUES[:8], jnp.bfloat16),
    }
    received = jax.jit(lambda m, key: compress.quantise_model(m, key, 16))(model, jax.random.key(0))
    for name in ("same", "one", "count", "mask"):
        assert np.array_equal(received[name], model[name])
    assert jax.random.key_data(received["key"]).tolist() == jax.random.key_data(model["key"]).tolist()
    assert received["half"].dtype == jnp.bfloat16
    np.testing.assert_allclose(flat(received["half"]), flat(model["half"]), rtol=0.01, atol=1e-3)
    assert np.isnan(received["broken"]).any()
    with jax.debug_nans(True), jax.disable_jit():  # who looks for a NaN elsewhere finds none on the way here
        compress.quantise_model(model["same"], jax.random.key(0), 16)
    # 17 floats of 16 bits, two ends for each of four leaves, 6 int32, 2 bool, a key of 8 bytes
    assert compress.model_bytes(model, 16) == 17 * 2 + 8 * 4 + 24 + 2 + 8
    assert compress.model_bytes(jax.ShapeDtypeStruct((3, 5), jnp.float32), 2) == 15 * 2 / 8 + 8

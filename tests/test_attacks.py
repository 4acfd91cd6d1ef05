"""What malicious clients send, against NumPy forms; test_robust.py has what it does to each rule."""

import math

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from fedjax_rl.federation import aggregators, robust
from fedjax_rl.federation.attacks import ATTACKS, forge, is_malicious
from test_robust import GRID, PLAIN, D, M, X, beyond_max, beyond_sum, on_border, sent

KEY = jax.random.key(5)
COLUMNS = [  # of `sent`
    ("sign_flip", 0.0), ("sign_flip", 1.0), ("boost", 1.0), ("zero", 1.0), ("alie", 0.0), ("alie", 1.5), ("ipm", 0.5),
    ("ipm", 2.0), ("min_max", 1.0), ("min_sum", 1.0), ("mimic", 1.0),
]  # fmt: skip


def masks(f, m=M):
    """(honest, malicious) of a cohort in which all were heard, the last f malicious."""
    malicious = np.arange(m) >= m - f
    return ~malicious, malicious


@pytest.mark.parametrize("column", range(1, len(COLUMNS)))
def test_what_is_sent(column):
    """By 4 and by 10 of 40, in one program. Honest messages stay as they are, to the bit."""
    name, strength = COLUMNS[column]
    forged = jax.jit(forge(name, strength, aggregators.mean()))
    for f in (4, 10):
        out = forged(jnp.asarray(X, jnp.float32), *masks(f), KEY)
        np.testing.assert_allclose(out[M - f :], sent(f)[column], atol=2e-5)
        assert (np.asarray(out[: M - f]) == X[: M - f].astype(np.float32)).all()


def test_unheard_rows_are_no_part_of_it():
    """The 40 rows in the opposite order, with two among them that were not heard."""
    rows = np.zeros((M + 2, D), np.float32)
    place = np.delete(np.arange(M + 2), [7, 30])[::-1]
    rows[place] = X
    honest, malicious = np.zeros((2, M + 2), bool)
    honest[place], malicious[place] = masks(10)
    for column in (1, 5, 8, 9):
        name, strength = COLUMNS[column]
        out = jax.jit(forge(name, strength, aggregators.mean()))(rows, honest, malicious, KEY)
        np.testing.assert_allclose(out[place[M - 10 :]], sent(10)[column], atol=2e-5, err_msg=name)
        assert not np.asarray(out)[[7, 30]].any()


def test_known_answers():
    """Four corners of a square: s = 1.1547, so that mu - s, and what min_max and min_sum send, are known."""
    rows = jnp.array([[0.0, 0], [2, 0], [0, 2], [2, 2], [5, 5]])
    send = lambda name, a: jax.jit(forge(name, a, aggregators.mean()))(rows, *masks(1, 5), KEY)[4]
    np.testing.assert_allclose(send("min_max", 1.0), [0, 0], atol=1e-6)
    np.testing.assert_allclose(send("min_sum", 1.0), [0, 0], atol=1e-6)
    np.testing.assert_allclose(send("alie", 1.5), [-0.7320508, -0.7320508], rtol=1e-6)
    np.testing.assert_allclose(send("mimic", 1.0), rows[0])
    np.testing.assert_allclose(send("boost", 0.5), [-25, -25])
    np.testing.assert_allclose(send("sign_flip", 2.5), [-12.5, -12.5])
    assert np.isnan(send("nan", 1.0)).all()


@pytest.mark.parametrize("scale", [1e-8, 1e-3, 1.0, 1e6])
@pytest.mark.parametrize(("name", "beyond"), [("min_max", beyond_max), ("min_sum", beyond_sum)])
def test_min_max_and_min_sum_go_as_far_as_they_may(name, beyond, scale):
    """The border is where a bisection on the definition finds it, at any size of the messages."""
    draw = np.random.default_rng(0)
    rows = draw.normal(size=(12, 5)) * draw.uniform(0.1, 3, 5)
    found = jax.jit(forge(name, 1.0, aggregators.mean()))(jnp.asarray(scale * rows, jnp.float32), *masks(3, 12), KEY)
    np.testing.assert_allclose(np.asarray(found[9]) / scale, on_border(rows[:9], beyond), atol=2e-6)


def test_noise_is_as_long_as_the_message_times_its_strength():
    draw = np.random.default_rng(0)
    rows = jnp.asarray(draw.normal(size=(200, 400)) * draw.uniform(0.1, 3, (200, 1)), jnp.float32)
    out = jax.jit(forge("noise", 0.5, aggregators.mean()))(rows, *masks(150, 200), KEY)
    noise, norms = np.asarray(out - rows)[50:], np.linalg.norm(rows, axis=1)[50:]
    np.testing.assert_allclose(np.linalg.norm(noise, axis=1) / norms, 0.5, atol=5 * 0.5 / math.sqrt(2 * 400))
    unit = noise / norms[:, None] * math.sqrt(400) / 0.5
    assert abs(unit.mean()) < 5 / math.sqrt(unit.size) and abs(unit.std() - 1) < 5 / math.sqrt(2 * unit.size)
    assert np.abs(np.corrcoef(noise)[np.triu_indices(150, 1)]).max() < 6 / math.sqrt(400)


@pytest.mark.parametrize("f", [4, 10])
@pytest.mark.parametrize("rule", ["trimmed", "krum"])
def test_adaptive_attacks_take_the_worst_strength(rule, f):
    honest = X[: M - f]
    mu, s = honest.mean(0), honest.std(0, ddof=1)
    aggregator = getattr(robust, rule)(byzantine=f / M)
    for name, start, direction in (("adaptive_alie", mu, -s), ("adaptive_ipm", 0 * mu, -mu)):
        moved = [
            np.linalg.norm(PLAIN[rule](np.vstack([honest, np.tile(start + a * direction, (f, 1))]), f, None) - mu)
            for a in GRID
        ]
        out = jax.jit(forge(name, 1.0, aggregator))(jnp.asarray(X, jnp.float32), *masks(f), KEY)
        a = (np.asarray(out)[-1] - start) @ direction / (direction @ direction)
        np.testing.assert_allclose(out[M - f :], np.tile(start + a * direction, (f, 1)), atol=2e-5)
        assert moved[round(float(a) * 4)] == pytest.approx(max(moved), rel=1e-6) and max(moved) > 1.2 * min(moved)


def test_adaptive_attacks_try_out_the_server_with_what_is_heard():
    """The rule is a sum, so the largest strength is the worst; it is zero if the row that was not heard has weight."""
    seen = []

    def update(messages, weights, state, key):
        seen.append((messages["a"].shape, weights.shape, state.shape))
        return {"a": jnp.where(weights[2] > 0, 0.0, state * (weights @ messages["a"]))}, state

    aggregator = aggregators.mean()._replace(init=lambda message: jnp.ones(message["a"].shape), update=update)
    rows = {"a": jnp.array([[1.0, 2], [3, 4], [0, 0], [9, 9]])}
    out = forge("adaptive_ipm", 1.0, aggregator)(rows, np.array([1, 1, 0, 0], bool), np.array([0, 0, 0, 1], bool), KEY)
    assert seen[0] == ((4, 2), (4,), (2,))
    np.testing.assert_allclose(out["a"], [[1, 2], [3, 4], [0, 0], [-20, -30]], rtol=1e-6)


EDGES = {
    "no malicious": (np.ones(5, bool), np.zeros(5, bool)),
    "no honest": (np.zeros(5, bool), np.ones(5, bool)),
    "one honest": (np.arange(5) == 2, np.arange(5) != 2),
    "one honest, one malicious": (np.arange(5) == 2, np.arange(5) == 4),
    "nobody": (np.zeros(5, bool), np.zeros(5, bool)),
    "most are malicious": (np.arange(5) < 2, np.arange(5) >= 2),
    "all honest are equal": (np.arange(5) < 3, np.arange(5) >= 3),
}


@pytest.mark.parametrize("name", [name for name in ATTACKS if name != "nan"])
def test_edges_are_finite(name):
    rows = np.random.default_rng(0).normal(size=(5, 3)).astype(np.float32)
    forged = jax.jit(
        lambda rows, honest, malicious: forge(name, strength, robust.median())(rows, honest, malicious, KEY)
    )
    strength = 0.0 if name == "alie" else 1.0
    for case, (honest, malicious) in EDGES.items():
        given = np.where((honest | malicious)[:, None], rows[:1] if case.startswith("all") else rows, 0)
        out = np.asarray(forged(given, honest, malicious))
        assert np.isfinite(out).all(), case
        assert (out[~malicious] == given[~malicious]).all(), case
        if case.startswith(("all", "one")) and name in ("alie", "min_max", "min_sum", "adaptive_alie"):  # s = 0
            np.testing.assert_allclose(out[malicious], np.tile(given[honest][:1], (malicious.sum(), 1)), rtol=1e-6)


@pytest.mark.parametrize("name", ["sign_flip", "boost", "noise", "alie", "ipm"])
def test_strength_may_be_traced_and_messages_are_trees(name):
    rows, strengths = jnp.asarray(X, jnp.float32), jnp.array([0.0, 0.5, 3.0])
    tree = {"a": rows[:, :20].reshape(M, 4, 5), "b": rows[:, 20:]}
    out = jax.jit(jax.vmap(lambda a: forge(name, a, aggregators.mean())(tree, *masks(4), KEY)))(strengths)
    assert out["a"].shape == (3, M, 4, 5) and out["b"].dtype == jnp.float32
    for i, a in enumerate([0.0, 0.5, 3.0]):
        alone = jax.jit(forge(name, a, aggregators.mean()))(rows, *masks(4), KEY)
        flat = np.concatenate([out["a"][i].reshape(M, 20), out["b"][i]], axis=1)
        np.testing.assert_allclose(flat, alone, rtol=1e-5, atol=1e-6)


def test_messages_keep_their_type(x64):
    rows = jnp.asarray(X, jnp.float32)
    for name in ("alie", "noise", "min_max", "adaptive_ipm"):
        assert forge(name, jnp.float64(0.5), robust.median())(rows, *masks(4), KEY).dtype == jnp.float32


def test_the_malicious_are_a_share_of_the_ids():
    texts = {
        0.25: (40, 10),
        0.3: (100, 30),
        0.1: (40, 4),
        0.2: (200, 40),
        0.0: (40, 0),
        1.0: (40, 40),
        0.05: (30, 2),
        0.15: (200, 30),
    }
    for share, (n, count) in texts.items():
        assert int(is_malicious(KEY, n, share).sum()) == count  # 1.5 is rounded up
        assert int(is_malicious(KEY, n, jnp.float32(share)).sum()) == count
    shares = jnp.arange(0, 201) / 200
    who = np.asarray(jax.vmap(lambda share: is_malicious(KEY, 200, share))(shares))
    assert who.sum(axis=1).tolist() == list(range(201))
    assert (who[:-1] <= who[1:]).all()
    often = jax.jit(jax.vmap(lambda key: is_malicious(key, 10, 0.3)))(jax.random.split(KEY, 1000))
    np.testing.assert_allclose(often.mean(axis=0), 0.3, atol=5 * math.sqrt(0.21 / 1000))

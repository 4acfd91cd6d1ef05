"""Robust rules against NumPy forms written here, in float64, and against a table of how far attacks move them."""

import functools
import math
from fractions import Fraction

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from scipy.special import ndtri

from fedjax_rl.config import trust
from fedjax_rl.federation import robust, rules

# --- rules on the rows that were heard, one after another: (X [n, d], f, w [n]) -> [d]


def to_others(x):
    return np.sum((x[:, None] - x[None]) ** 2, axis=-1)


def trimmed(x, f, w):
    return np.sort(x, axis=0)[f : len(x) - f].mean(axis=0)


def around_median(x, count):
    order = np.argsort(np.abs(x - np.median(x, axis=0)), axis=0, kind="stable")[:count]
    return np.take_along_axis(x, order, axis=0).mean(axis=0)


def krum_scores(x, f):
    d = to_others(x)
    return [np.sort(np.delete(d[i], i))[: max(1, len(x) - f - 2)].sum() for i in range(len(x))]


def multi_krum(x, f, w):
    return x[np.argsort(krum_scores(x, f), kind="stable")[: len(x) - f]].mean(axis=0)


def bulyan(x, f, w):
    left, taken = list(range(len(x))), []
    while len(taken) < len(x) - 2 * f:
        taken.append(left.pop(int(np.argmin(krum_scores(x[left], f)))))
    return around_median(x[sorted(taken)], len(x) - 4 * f)


def weiszfeld(x, f, w, steps=8):
    z = np.average(x, axis=0, weights=w)
    if np.linalg.norm(z) > 3 * np.median(np.linalg.norm(x, axis=1)):
        z = norm_clip(x, f, w)
    for _ in range(steps):
        z = np.average(x, axis=0, weights=w / np.maximum(1e-6, np.linalg.norm(x - z, axis=1)))
    return z


def centered_clip(x, f, w, radius=0.0, steps=5):
    v = np.zeros(x.shape[1])
    for _ in range(steps):
        norms = np.linalg.norm(x - v, axis=1)
        tau = radius or np.median(norms)
        v = v + np.average([(a - v) * min(1, tau / max(r, 1e-300)) for a, r in zip(x, norms, strict=True)], 0, w)
    return v


def norm_clip(x, f, w):
    norms = np.linalg.norm(x, axis=1)
    return np.average([a * min(1, np.median(norms) / r) for a, r in zip(x, norms, strict=True)], 0, w)


def mixed(x, f):
    return np.array([x[np.argsort(row, kind="stable")[: len(x) - f]].mean(axis=0) for row in to_others(x)])


def fedpg_filter(x, f, w, sigma=5.0, episodes=8):
    d, n = np.sqrt(to_others(x)), len(x)

    def good(radius):
        central = [k for k in range(n) if (d[k] <= radius).sum() > n / 2]
        if not central:
            return []
        off = np.linalg.norm(x[central] - x[central].mean(axis=0), axis=1)
        return [k for k in range(n) if d[central[int(np.argmin(off))], k] <= radius]

    kept = good(2 * sigma * math.sqrt(2 * math.log(2 * n / 0.6) / episodes))
    kept = kept if len(kept) >= n - f else good(2 * sigma)
    return x[kept].mean(axis=0) if kept else np.zeros(x.shape[1])


PLAIN = {
    "median": lambda x, f, w: np.median(x, axis=0),
    "trimmed": trimmed,
    "geomed": weiszfeld,
    "krum": lambda x, f, w: x[np.argmin(krum_scores(x, f))],
    "multi_krum": multi_krum,
    "bulyan": bulyan,
    "centered_clip": centered_clip,
    "norm_clip": norm_clip,
    "meamed": lambda x, f, w: around_median(x, len(x) - f),
    "nnm_trimmed": lambda x, f, w: trimmed(mixed(x, f), f, w),
    "nnm_median": lambda x, f, w: np.median(mixed(x, f), axis=0),
    "nnm_geomed": lambda x, f, w: weiszfeld(mixed(x, f), f, np.ones(len(x)), 64),
    "fedpg_br": fedpg_filter,
}
NEEDS = {"krum": (2, 3), "multi_krum": (2, 3), "bulyan": (4, 3)}  # n >= a f + b
COUNTS = {"trimmed", "krum", "multi_krum", "bulyan", "meamed", "nnm_trimmed", "nnm_median", "nnm_geomed"}  # use f

# --- every rule as one program for all tests: 96 federations of 40 rows of 50 numbers side by side, byzantine traced
B, M, D = 96, 40, 50


@functools.cache
def program(name):
    def update(rows, weights, byzantine, key):
        if name == "centered_clip_fixed":
            aggregator = robust.centered_clip(clip_radius=math.sqrt(D))
        elif name == "fedpg_br":
            aggregator = robust.fedpg_br(byzantine=byzantine, filter_sigma=5.0, episodes=8)
        else:
            aggregator = getattr(robust, name)(**({"byzantine": byzantine} if name in COUNTS else {}))
        return aggregator.update(rows, weights, aggregator.init(rows[0]), key)[0]

    return jax.jit(jax.vmap(update))


def combined(name, sets, byzantine, weights=None, seed=0):
    """Of some sets [n, d] with n <= 40 and d <= 50, each with its byzantine, the rows that the rule makes [d]."""
    rows, heard, shares = np.zeros((B, M, D), np.float32), np.zeros((B, M), np.float32), np.zeros(B, np.float32)
    for i, x in enumerate(sets):
        x = np.asarray(x)
        rows[i, : len(x), : x.shape[1]] = x
        heard[i, : len(x)] = 1.0 if weights is None else weights[i]
        shares[i] = byzantine if np.ndim(byzantine) == 0 else byzantine[i]
    out = np.asarray(program(name)(rows, heard, shares, jax.random.split(jax.random.key(seed), B)))
    return [out[i, : np.asarray(x).shape[1]] for i, x in enumerate(sets)]


# --- known answers
S = np.array([[0.0, 0], [2, 0], [0, 1], [1, 1], [10, 10]])
SCALARS = np.array([[0.0], [1], [3], [4], [6], [7], [100]])
SMALL = {
    "median": ((1, 1), 4),
    "trimmed": ((1, 2 / 3), 4.2),
    "geomed": ((0.993172, 0.984065), None),
    "krum": ((0, 1), 3),
    "multi_krum": ((0.75, 0.5), 3.5),
    "meamed": ((0.75, 0.5), 3.5),
    "bulyan": (None, 8 / 3),
    "norm_clip": ((0.682843, 0.6), None),
    "nnm_trimmed": ((0.75, 0.5), None),
    "nnm_median": ((0.75, 0.5), None),
    "nnm_geomed": ((0.75, 0.5), None),
}


@pytest.mark.parametrize("name", SMALL)
def test_small_sets(name):
    pairs, scalars = combined(name, [S, SCALARS], [1 / 5, 1 / 7])
    for found, known in ((pairs, SMALL[name][0]), (scalars, SMALL[name][1])):
        if known is not None:
            np.testing.assert_allclose(found, np.reshape(known, -1), atol=2e-6)


def test_known_answers_of_the_forms_here():
    np.testing.assert_allclose(centered_clip(S, 0, None, 1.0, 1), [0.482843, 0.482843], atol=1e-6)
    np.testing.assert_allclose(centered_clip(S, 0, None, 1.0, 2), [0.725140, 0.673905], atol=1e-6)
    triangle = np.array([[0, 0], [1, 0], [0.5, math.sqrt(0.75)]]) + 3
    np.testing.assert_allclose(combined("geomed", [triangle], 0.0)[0], triangle.mean(axis=0), rtol=1e-6)


def test_fedpg_br_takes_the_wider_radius_where_the_first_leaves_too_few():
    """Six points around 0 and four at 1.6, sigma 0.9: a radius of 1.19 leaves six of ten, and 1.8 leaves all."""
    x = jnp.array([0.0, 0.0, 0.1, -0.1, 0.2, -0.2, 1.6, 1.6, 1.6, 1.6])[:, None]
    for byzantine, known in ((0.4, 0.0), (0.3, 0.64)):
        aggregator = robust.fedpg_br(byzantine=byzantine, filter_sigma=0.9, episodes=16)
        np.testing.assert_allclose(aggregator.update(x, jnp.ones(10), (), None)[0], known, atol=1e-6)


# --- the calibration table: the distance of the rule's row from the mean of the honest rows
PRIMES = [p for p in range(2, 230) if all(p % q for q in range(2, p))]
X = 0.5 + ndtri([[math.modf((i + 1) * math.sqrt(p))[0] for p in PRIMES] for i in range(M)])
GRID = np.linspace(0, 10, 41)
TABLE = {
    4: """
        none sign_flip boost zero alie_z alie ipm_half ipm min_max min_sum mimic worst_alie worst_ipm
        median .560 .832 .726 1.107 .449 1.118 1.118 1.118 1.118 1.118 1.116 1.118 1.118
        trimmed .453 .784 .776 .570 .236 1.303 .789 1.293 1.065 1.053 .806 1.459 1.459
        geomed .373 .595 .503 .779 .472 .787 .781 .783 .786 .786 .832 .789 .785
        krum 5.221 5.221 5.221 3.671 .477 5.221 5.507 5.221 5.221 5.221 5.803 5.221 5.507
        multi_krum .492 0 0 .615 .407 0 .767 0 1.000 .991 .830 .894 1.030
        bulyan 1.055 .891 .806 1.406 .662 1.235 1.712 1.268 1.780 1.772 1.660 1.926 1.925
        centered_clip_fixed .361 .605 .502 .380 .063 .815 .568 .814 .814 .810 .602 .815 .814
        norm_clip .396 .869 .845 .539 .225 1.194 .722 1.271 .962 .952 .627 1.242 1.271
        meamed .837 .974 .429 1.120 .624 1.764 1.303 1.758 1.522 1.512 1.284 1.893 1.758
        nnm_trimmed .373 .180 0 .467 .198 .046 .660 .011 .805 .817 .703 .804 .815
        nnm_geomed .372 0 0 .475 .213 0 .668 0 .851 .855 .704 .811 .834
        nnm_median .377 .076 0 .474 .221 0 .667 0 .829 .832 .715 .813 .822""",
    10: """
        none sign_flip boost zero alie_z alie ipm_half ipm min_max min_sum mimic worst_alie worst_ipm
        median .719 1.866 1.444 3.038 2.339 3.125 3.125 3.125 3.125 3.125 2.725 3.125 3.125
        trimmed .646 1.824 1.589 1.889 1.236 3.548 2.577 3.505 3.228 3.163 2.384 3.758 3.758
        geomed .566 1.547 1.237 2.373 2.104 2.413 2.407 2.412 2.412 2.412 2.604 2.415 2.414
        krum 5.220 5.220 5.220 3.699 2.354 5.220 5.549 5.220 8.066 7.731 5.786 6.910 8.323
        multi_krum .947 0 0 1.523 1.119 3.585 2.099 1.939 2.900 2.791 2.237 3.585 3.527
        centered_clip_fixed .531 1.615 1.299 .953 .605 2.530 1.435 2.535 2.105 2.014 1.501 2.533 2.536
        norm_clip .563 1.925 1.942 1.134 .794 2.794 1.595 2.968 2.219 2.136 1.494 3.012 3.028
        meamed .782 1.950 .777 2.686 1.958 4.820 3.318 4.262 4.148 4.037 3.140 4.820 4.298
        nnm_trimmed .768 .461 0 1.426 .999 .080 2.039 0 2.029 2.362 2.166 2.396 2.489
        nnm_geomed .775 .325 0 1.449 1.036 0 2.047 0 2.114 2.455 2.186 2.430 2.532
        nnm_median .775 .348 0 1.439 1.010 0 2.051 0 2.135 2.423 2.186 2.410 2.525""",
}


def on_border(honest, beyond):
    """mu - g s with the largest g at which it is not beyond what is allowed; by bisection."""
    low, high = 0.0, 10.0
    for _ in range(60):
        g = (low + high) / 2
        low, high = (g, high) if beyond(honest.mean(0) - g * honest.std(0, ddof=1), honest) <= 0 else (low, g)
    return honest.mean(0) - low * honest.std(0, ddof=1)


def beyond_max(x, honest):
    return np.linalg.norm(x - honest, axis=1).max() - math.sqrt(to_others(honest).max())


def beyond_sum(x, honest):
    return np.sum((x - honest) ** 2) - to_others(honest).sum(axis=1).max()


@functools.cache
def sent(f):
    """What the last f of 40 send [f, 50] under each attack, in the table's order; the worst ones are searched for."""
    own, honest = X[M - f :], X[: M - f]
    mu, s = honest.mean(0), honest.std(0, ddof=1)
    z = {4: 0.069685, 10: 0.340695}[f]
    same = [
        mu - z * s,
        mu - 1.5 * s,
        -0.5 * mu,
        -2 * mu,
        *(on_border(honest, b) for b in (beyond_max, beyond_sum)),
        X[0],
    ]
    return [own, -own, -10 * own, 0 * own, *(np.tile(x, (f, 1)) for x in same)]


@pytest.mark.parametrize("f", TABLE)
@pytest.mark.parametrize("name", ["median", "centered_clip_fixed", *list(PLAIN)[1:6], *list(PLAIN)[7:12]])
def test_calibration(name, f):
    lines = {line.split()[0]: line.split()[1:] for line in TABLE[f].strip().splitlines()}
    if name not in lines:
        assert (name, f) == ("bulyan", 10)  # it needs 43 rows
        return
    honest = X[: M - f]
    mu, s = honest.mean(0), honest.std(0, ddof=1)
    all_sent = sent(f) + [np.tile(x, (f, 1)) for x in [mu - a * s for a in GRID] + [-a * mu for a in GRID]]
    out = combined(name, [np.vstack([honest, x]) for x in all_sent], f / M)
    moved = np.linalg.norm(out - mu, axis=1)
    found = [*moved[:11], moved[11:52].max(), moved[52:].max()]
    np.testing.assert_allclose(found, [float(x) for x in lines[name]], atol=1.5e-3)
    if name == "multi_krum":
        assert all(a < 1e-5 for a, known in zip(found, lines[name], strict=True) if known == "0")


# --- any n and f, and what must hold of a rule
def allowed(name, byzantine, n):
    each, more = NEEDS.get(name, (2, 1))
    return max(0, min(int(Fraction(byzantine) * n), (n - more) // each))


@pytest.mark.parametrize("name", PLAIN)
def test_any_number_heard(name):
    """Rows that were not heard, at any places and with anything in them, change nothing; weights where they count.

    Where they do not, a run with stragglers says so: `trust.BY_COUNT`.
    """
    draw = np.random.default_rng(0)
    rows = draw.normal(size=(B, M, D)).astype(np.float32)
    rows *= draw.choice([0.3, 1.0, 4.0], (B, M, 1))
    weights, shares = np.zeros((B, M), np.float32), np.zeros(B, np.float32)
    for i in range(B):
        n = i % M + 1
        weights[i, draw.permutation(M)[:n]] = draw.uniform(0.2, 3.0, n)
        shares[i] = draw.choice([0.0, 0.1, 0.2, 0.25, 0.3, 0.45])
    out, alike = (
        program(name)(rows, w.astype(np.float32), shares, jax.random.split(jax.random.key(0), B))
        for w in (weights, weights > 0)
    )
    assert np.allclose(out, alike, atol=3e-5) == (name.replace("nnm_", "nnm+") in trust.BY_COUNT)
    for i in range(B):
        x, w = rows[i].astype(float)[weights[i] > 0], weights[i].astype(float)[weights[i] > 0]
        f = allowed(name, str(shares[i]), len(x))
        plain = PLAIN[name](x, f if name in COUNTS else allowed(name, "0.2", len(x)), w)
        if name == "fedpg_br":
            plain = fedpg_filter(x, f, w)
        np.testing.assert_allclose(out[i], plain, atol=3e-5, err_msg=f"n = {len(x)}, f = {f}")


@pytest.mark.parametrize("name", [*PLAIN, "bucket_geomed"])
def test_rows_however_far_away_move_a_rule_no_further(name):
    """10 of 40 rows; fewer where a rule is not meant for so many. The honest ones are within 9 of their mean."""
    f = {"bucket_geomed": 5, "bulyan": 9}.get(name, 10)
    far = [size * sign for size in (1e2, 1e6, 1e12, 1e30, 3e38) for sign in (-1, 1)]
    sets = [np.vstack([X[: M - f], np.full((f, D), a)]) for a in far]
    sets += [np.vstack([X[: M - 1], np.full((1, D), a)]) for a in far]
    out = combined(name, sets, 0.25)
    assert np.linalg.norm(out - X[: M - f].mean(0), axis=1).max() < 6


@pytest.mark.parametrize("name", [*PLAIN, "bucket_geomed"])
def test_what_rules_are_equivariant_under(name):
    """The order of rows, translation, scale."""
    draw = np.random.default_rng(1)
    x = draw.normal(size=(23, D))
    plain, permuted, moved, scaled = combined(name, [x, x[draw.permutation(23)], x + 3, 4 * x], 0.2)
    if name == "bucket_geomed":  # another order, other pairs; here both moves draw anew
        moved, scaled = (combined(name, [y], 0.2)[0] for y in (x + 3, 4 * x))
    else:
        np.testing.assert_allclose(permuted, plain, atol=2e-6)
    if name not in ("centered_clip", "norm_clip"):  # zero is a place of its own in these
        np.testing.assert_allclose(moved, plain + 3, atol=1e-5)
    if name != "fedpg_br":  # sigma would have to grow too
        np.testing.assert_allclose(scaled, 4 * plain, atol=1e-5)


# --- the wrapper
def test_f_is_the_share_of_those_heard_and_what_the_rule_allows():
    def f_of(byzantine, n, needs):
        aggregator = robust.robust(lambda x, w, f, state, key: (0 * x[0] + f, state), byzantine=byzantine, needs=needs)
        return aggregator.update(jnp.ones((300, 1)), jnp.where(jnp.arange(300) < n, 1.0, 0.0), (), None)[0][0]

    texts = ["0.1", "0.2", "0.25", "0.29", "0.3", "0.42", "0.49"]  # in float32 0.42 * 150 is 62.999996
    shares, n = jnp.array([float(x) for x in texts]), jnp.arange(301)
    for needs in ((2, 1), (2, 3), (4, 3)):
        program = jax.jit(jax.vmap(lambda b: jax.vmap(lambda n: f_of(b, n, needs))(n)))
        for text, row in zip(texts, program(shares), strict=True):
            known = [max(0, min(int(Fraction(text) * k), (k - needs[1]) // needs[0])) for k in range(301)]
            assert row.astype(int).tolist() == known
    assert [int(f_of(b, 40, (2, 1))) for b in (0.3, 0.2, 0.1, 0.25)] == [12, 8, 4, 10]


@pytest.mark.parametrize("name", [*PLAIN, "bucket_geomed"])
def test_nobody_heard_gives_zero(name):
    zeros, keys = np.zeros((B, M), np.float32), jax.random.split(jax.random.key(0), B)
    assert not np.asarray(program(name)(np.ones((B, M, D), np.float32), zeros, zeros[:, 0], keys)).any()


def test_messages_are_trees_and_a_message_is_one_vector():
    draw = np.random.default_rng(2)
    tree = {"a": jnp.asarray(draw.normal(size=(9, 2, 3)), jnp.float32), "b": jnp.asarray(9 * draw.normal(size=(9,)))}
    rows = np.concatenate([np.reshape(tree["a"], (9, 6)), np.reshape(tree["b"], (9, 1))], axis=1).astype(float)
    aggregator = robust.krum(byzantine=0.3)
    out, state = aggregator.update(tree, jnp.ones(9), aggregator.init(jax.tree.map(lambda x: x[0], tree)), None)
    best = int(np.argmin(krum_scores(rows, 2)))
    assert state == () and best != int(np.argmin(krum_scores(rows[:, :6], 2)))
    assert jax.tree.map(lambda x, y: bool((x == y[best]).all()), out, tree) == {"a": True, "b": True}


def test_centered_clip_goes_on_from_its_last_output():
    aggregator, v = robust.centered_clip(), jnp.zeros(2)
    state, messages = aggregator.init(v), jnp.asarray(S, jnp.float32)
    update = jax.jit(aggregator.update)
    for number in (5, 10, 15):
        v, state = update(messages, jnp.ones(5), state, None)
        np.testing.assert_allclose(v, centered_clip(S, 0, None, steps=number), rtol=1e-5)
        assert (state == v).all()
    out, state = update(jnp.zeros((5, 2)), jnp.zeros(5), state, None)
    assert (state == v).all() and not out.any()


def test_radii_may_be_traced():
    """A fedpg_br of sigma 1 has a radius of 1.677, which leaves three of five; at 0.01 there is no centre."""
    radii = jnp.array([0.0, 0.3, 2.0])
    clip = jax.vmap(
        lambda r: robust.centered_clip(clip_radius=r).update(jnp.asarray(S), jnp.ones(5), jnp.zeros(2), None)[0]
    )
    for r, out in zip([0.0, 0.3, 2.0], clip(radii), strict=True):
        np.testing.assert_allclose(out, centered_clip(S, 0, None, r), rtol=1e-5)

    def kept(sigma, byzantine):
        aggregator = robust.fedpg_br(byzantine=byzantine, filter_sigma=sigma, episodes=8)
        return aggregator.update(jnp.asarray(S), jnp.ones(5), (), None)[0]

    out = jax.vmap(kept)(jnp.array([0.01, 1.0, 1.0, 9.0]), jnp.array([0.4, 0.4, 0.2, 0.4]))
    np.testing.assert_allclose(out, [(0, 0), (1 / 3, 2 / 3), (0.75, 0.5), S.mean(axis=0)], rtol=1e-6)


@pytest.mark.parametrize("heard", [[1] * 7, [0, 1, 1, 0, 1, 1, 1], [1, 0, 1, 1, 1, 1, 0, 0]])
def test_buckets_are_random_pairs_of_those_heard(heard):
    """Rows are unit vectors, so a bucket's row shows who is in it, and with what share."""
    weights = jnp.asarray(heard, jnp.float32) * (1.0 + jnp.arange(len(heard)))
    shown = lambda rows, weights, f, state, key: ((rows, weights), state)
    seen = set()
    for seed in range(20):
        (rows, both), _ = rules.bucket(shown)(jnp.eye(len(heard)), weights, 0, (), jax.random.key(seed))
        rows, both = np.asarray(rows), np.asarray(both)
        np.testing.assert_allclose((rows * both[:, None]).sum(axis=0), weights, rtol=1e-6)
        sizes = sorted((rows > 0).sum(axis=1).tolist(), reverse=True)
        n = sum(heard)
        assert sizes == [2] * (n // 2) + [1] * (n % 2) + [0] * (len(sizes) - (n + 1) // 2)
        np.testing.assert_allclose(both, (rows > 0) @ np.asarray(weights), rtol=1e-6)
        np.testing.assert_allclose(rows.sum(axis=1), both > 0, rtol=1e-6)
        seen.add((rows > 0).tobytes())
    assert len(seen) > 10

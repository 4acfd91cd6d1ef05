"""Advantages against double sums, least squares and closed forms in NumPy float64."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from fedjax_rl.rl import advantages
from fedjax_rl.rl.advantages import normalise, solve_positive
from fedjax_rl.rl.problem import make_batch
from fedjax_rl.rl.rollout import Trajectory

discounted_returns = jax.jit(advantages.discounted_returns)
gae = jax.jit(advantages.gae)
linear_baseline = jax.jit(advantages.linear_baseline)

LENGTHS = [40, 17, 1, 40, 26, 33]


def prefix_mask(steps: int = 40) -> np.ndarray:
    return np.arange(steps)[None, :] < np.asarray(LENGTHS)[:, None]


def test_discounted_returns_is_the_double_sum():
    x = np.random.default_rng(0).normal(size=(6, 40))
    want = [[sum(0.9 ** (k - t) * row[k] for k in range(t, 40)) for t in range(40)] for row in x]
    with jax.enable_x64(True):
        np.testing.assert_allclose(discounted_returns(jnp.asarray(x), 0.9), want, rtol=1e-12)
    np.testing.assert_allclose(discounted_returns(jnp.float32(x), 0.9), want, atol=2e-6)


@pytest.mark.parametrize("gae_lambda", [0.0, 0.6, 1.0])
def test_gae_is_the_double_sum_and_zero_after_the_end(gae_lambda):
    rng = np.random.default_rng(1)
    mask = prefix_mask()
    rewards = rng.normal(size=mask.shape) * mask
    values = rng.normal(size=mask.shape)  # garbage after the end must not leak in
    want = np.zeros(mask.shape)
    for e, length in enumerate(LENGTHS):
        v = [*values[e, :length], 0.0]
        for t in range(length):
            deltas = [rewards[e, k] + 0.99 * v[k + 1] - v[k] for k in range(t, length)]
            want[e, t] = sum((0.99 * gae_lambda) ** i * d for i, d in enumerate(deltas))
    with jax.enable_x64(True):
        got = gae(*map(jnp.asarray, (rewards, values, mask)), 0.99, gae_lambda)
        np.testing.assert_allclose(got, want, rtol=1e-10, atol=1e-13)


def test_gae_at_lambda_one_is_the_return_minus_the_value():
    rng = np.random.default_rng(2)
    mask = prefix_mask()
    rewards, values = rng.normal(size=mask.shape) * mask, rng.normal(size=mask.shape)
    got = gae(jnp.float32(rewards), jnp.float32(values), jnp.asarray(mask), 0.99, 1.0)
    want = mask * (discounted_returns(jnp.float32(rewards), 0.99) - values)
    np.testing.assert_allclose(got, want, atol=1e-5)


def ridge_in_numpy(obs: np.ndarray, returns: np.ndarray, mask: np.ndarray) -> np.ndarray:
    """The same estimator by another route: stacked least squares on the valid rows, constant columns dropped."""
    tau = np.broadcast_to(np.arange(obs.shape[1]) / 100, mask.shape)[..., None]
    x = np.concatenate([obs, obs**2, tau, tau**2, tau**3], axis=-1)[mask]
    x = x[:, x.std(axis=0) > 1e-9]
    z = (x - x.mean(axis=0)) / x.std(axis=0)
    y = returns[mask]
    n, f = z.shape
    rows = np.vstack([z, np.sqrt(n * 1e-5) * np.eye(f)])
    w = np.linalg.lstsq(rows, np.concatenate([y - y.mean(), np.zeros(f)]), rcond=None)[0]
    values = np.zeros(mask.shape)
    values[mask] = y.mean() + z @ w
    return values


def correlated_data(mask: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Observations [E, T, 7] far from the origin, nearly collinear, one of them constant; returns [E, T] near 300."""
    rng = np.random.default_rng(3)
    obs = np.cumsum(rng.normal(size=(*mask.shape, 7)), axis=1) * [1, 0.1, 5, 1, 1, 1, 1] + 20.0
    obs[..., 5] = obs[..., 0] + 0.05 * obs[..., 5]
    obs[..., 6] = 0.5
    returns = 300 + obs[..., 0] - 0.2 * obs[..., 1] ** 2 + 3 * rng.normal(size=mask.shape)
    return obs, returns


def test_linear_baseline_is_the_ridge_solution():
    mask = prefix_mask()
    obs, returns = correlated_data(mask)
    want = ridge_in_numpy(obs, returns, mask)
    obs = np.where(mask[..., None], obs, 1e6)  # what follows an episode's end must not matter
    with jax.enable_x64(True):
        got = linear_baseline(*map(jnp.asarray, (obs, returns, mask)))
        np.testing.assert_allclose(got, want, rtol=1e-9)
    got = linear_baseline(jnp.float32(obs), jnp.float32(returns), jnp.asarray(mask))
    residual = np.sqrt(np.mean((returns - want)[mask] ** 2))
    error = np.sqrt(np.mean((got - want)[mask] ** 2))
    assert error < 0.005 * residual  # measured: 0.0007


def test_solve_positive_is_numpys_solution():
    rng = np.random.default_rng(5)
    x = rng.normal(size=(200, 40)) @ np.diag(np.logspace(0, -2.5, 40))
    a, b = x.T @ x / 200 + 1e-5 * np.eye(40), rng.normal(size=40)
    assert np.linalg.cond(a) > 1e4
    want = np.linalg.solve(a, b)
    with jax.enable_x64(True):
        np.testing.assert_allclose(solve_positive(jnp.asarray(a), jnp.asarray(b)), want, rtol=1e-9)
    got = solve_positive(jnp.float32(a), jnp.float32(b))
    assert np.linalg.norm(got - want) <= 1e-5 * np.linalg.norm(want)  # measured: 2e-7 (LAPACK: 7e-8)


def test_the_baseline_calls_no_library_that_could_wait_for_its_own_threads():
    """Two batched LAPACK calls at a time never end on a CPU whose threads they both occupy."""
    args = (jnp.ones((3, 2, 5, 4)), jnp.ones((3, 2, 5)), jnp.ones((3, 2, 5), bool))
    program = jax.jit(jax.vmap(linear_baseline)).lower(*args).compile().as_text()
    assert "lapack" not in program


def test_linear_baseline_fits_what_it_can_express_and_the_mean_otherwise():
    mask = jnp.ones((4, 50), bool)
    tau = np.tile(np.arange(50) / 100, (4, 1))
    obs = np.random.default_rng(4).normal(size=(4, 50, 2))
    returns = 1000 + 5 * obs[..., 0] - 2 * obs[..., 1] ** 2 + tau**3
    got = linear_baseline(jnp.float32(obs), jnp.float32(returns), mask)
    np.testing.assert_allclose(got, returns, atol=5e-3)
    constant = linear_baseline(jnp.ones((4, 1, 2)), jnp.asarray([[1.0], [2.0], [3.0], [6.0]]), mask[:, :1])
    np.testing.assert_allclose(constant, np.full((4, 1), 3.0), rtol=1e-6)


def test_normalise_has_mean_zero_and_deviation_one_over_valid_steps():
    mask = np.array([[True, True, False], [True, True, False]])
    advantage = np.array([[1.0, 3.0, 100.0], [5.0, 7.0, -50.0]])
    got = normalise(jnp.float32(advantage), jnp.asarray(mask))
    np.testing.assert_allclose(got, np.array([[-3, -1, 0], [1, 3, 0]]) / (np.sqrt(5) + 1e-6), rtol=1e-6)
    assert not np.any(normalise(jnp.full((2, 3), 7.0), jnp.asarray(mask)))


@pytest.mark.parametrize("scale", ["normalised", "whitened"])
def test_advantages_that_are_all_equal_have_a_gradient(scale):
    """d/dx sum_i w_i A_i(x) at equal A is (w - mean w) / epsilon, and elsewhere that of finite differences."""
    epsilon = {"normalised": 1e-6, "whitened": 1e-5}[scale]
    mask, weights = jnp.ones((1, 4), bool), np.array([[1.0, 2.0, -1.0, 4.0]])
    with jax.enable_x64(True):
        value = lambda x: jnp.sum(weights * advantages.SCALES[scale](x, mask))
        got = jax.grad(value)(jnp.full((1, 4), 3.0))
        np.testing.assert_allclose(got, (weights - weights.mean()) / epsilon, rtol=1e-9)
        x = np.array([[0.3, -1.0, 2.0, 0.7]])
        numeric = [(value(x + 1e-6 * e) - value(x - 1e-6 * e)) / 2e-6 for e in np.eye(4)[:, None]]
        np.testing.assert_allclose(jax.grad(value)(jnp.asarray(x))[0], numeric, rtol=1e-6)


def test_a_batchs_advantages_are_normalised_residuals_of_the_discounted_return():
    """At lambda 1: (G - V) standardised, G the discounted return-to-go, V its ridge fit."""
    mask = prefix_mask()
    obs, rewards = correlated_data(mask)
    rewards = (rewards - 300) * mask
    returns = np.asarray([[sum(0.9 ** (k - t) * row[k] for k in range(t, 40)) for t in range(40)] for row in rewards])
    residual = (returns - ridge_in_numpy(obs, returns, mask))[mask]
    with jax.enable_x64(True):
        filler = jnp.zeros((*mask.shape, 1))
        trajectory = Trajectory(
            jnp.asarray(obs), filler, filler[..., 0], jnp.asarray(rewards), jnp.asarray(mask), ~mask
        )
        got = np.asarray(jax.jit(make_batch)(trajectory, 0.9, 1.0).advantage)
    np.testing.assert_allclose(got[mask], (residual - residual.mean()) / residual.std(), rtol=1e-5, atol=1e-6)
    assert not np.any(got[~mask])

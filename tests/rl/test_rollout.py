"""Rollouts in an environment of a counter: every reward, mask and observation is known in advance."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from scipy import stats

from fedjax_rl.envs.base import Env, EnvSpec, EnvState
from fedjax_rl.rl.policies import gaussian_mlp
from fedjax_rl.rl.problem import make_problem
from fedjax_rl.rl.rollout import make_rollout

HORIZON, EPISODES = 8, 5


def counter(horizon: int = HORIZON) -> Env:
    """Counts steps; step t pays t + 1. The task: the step that ends the episode; the step that shows what; what.

    A fourth entry: only episodes whose second observation, drawn at the reset, is at least that much show it.
    """

    def reset(key, task):
        start = jax.random.uniform(key)
        return EnvState(jnp.zeros(()), jnp.stack([0.0 * start, start]), jnp.zeros(()), jnp.zeros((), bool))

    def step(state, action, task):
        count = state.physics + 1.0
        concerned = state.obs[1] >= task[3] if task.size > 3 else True
        shown = jnp.where((count > task[1]) & concerned, task[2], count)
        obs = jnp.stack([shown, state.obs[1]])
        return EnvState(count, obs, count + 0.0 * action[0], count > task[0])

    return Env(reset, step, lambda key, n: jnp.zeros((n, 3)), EnvSpec("counter", 2, 3, horizon, 2))


@functools.cache
def compiled():
    """(policy, parameters, rollout), made once."""
    env = counter()
    policy = gaussian_mlp(env.spec, hidden=(8,))
    params = policy.init(jax.random.key(1))
    params["log_std"] = jnp.asarray([0.5, -1.0, 0.0])
    return policy, params, jax.jit(make_rollout(env, policy, EPISODES))


def roll(last: float, bad: float, what: float = np.nan):
    policy, params, rollout = compiled()
    return policy, params, rollout(params, jnp.asarray([last, bad, what]), jax.random.key(0))


def test_full_episodes_pay_every_step():
    _, _, out = roll(99, 99)
    assert out.mask.all() and out.mask.shape == (EPISODES, HORIZON)
    np.testing.assert_array_equal(out.reward, np.tile(np.arange(1.0, HORIZON + 1), (EPISODES, 1)))
    np.testing.assert_array_equal(out.obs[..., 0], np.tile(np.arange(HORIZON), (EPISODES, 1)))
    assert len(np.unique(out.obs[:, 0, 1])) == EPISODES  # every episode has its own reset


def test_the_step_that_ends_an_episode_counts_and_nothing_after_it():
    _, _, out = roll(3, 99)
    np.testing.assert_array_equal(out.mask, np.tile([1, 1, 1, 1, 0, 0, 0, 0], (EPISODES, 1)))
    np.testing.assert_array_equal(out.reward, np.tile([1, 2, 3, 4, 0, 0, 0, 0], (EPISODES, 1)))
    np.testing.assert_array_equal(out.obs[..., 0], np.tile([0, 1, 2, 3, 4, 4, 4, 4], (EPISODES, 1)))


@pytest.mark.parametrize("what", [np.nan, np.inf, -np.inf, 1.1e10, -1e30])
def test_a_state_that_is_not_finite_ends_the_episode_at_its_last_finite_one(what):
    _, _, out = roll(99, 2, what)
    np.testing.assert_array_equal(out.mask, np.tile([1, 1, 1, 0, 0, 0, 0, 0], (EPISODES, 1)))
    np.testing.assert_array_equal(out.reward, np.tile([1, 2, 0, 0, 0, 0, 0, 0], (EPISODES, 1)))
    np.testing.assert_array_equal(out.obs[..., 0], np.tile([0, 1, 2, 2, 2, 2, 2, 2], (EPISODES, 1)))
    np.testing.assert_array_equal(out.frozen, np.tile([0, 0, 1, 0, 0, 0, 0, 0], (EPISODES, 1)))
    assert all(np.isfinite(x).all() for x in out)


def test_nan_in_one_of_800_environments_leaves_the_others_bit_identical():
    """At step 37, in the episode with the largest first observation: two tasks, one compiled program."""
    clients, episodes = 40, 20
    env = counter(50)
    policy = gaussian_mlp(env.spec, hidden=(8,))
    params, keys = policy.init(jax.random.key(1)), jax.random.split(jax.random.key(2), clients)
    rollout = jax.jit(jax.vmap(make_rollout(env, policy, episodes), in_axes=(None, None, 0)))
    well = rollout(params, jnp.asarray([99.0, 99.0, 0.0, 2.0]), keys)
    first = np.asarray(well.obs[..., 0, 1])
    ill = rollout(params, jnp.asarray([99.0, 36.0, np.nan, first.max()]), keys)
    others = first < first.max()
    assert others.sum() == clients * episodes - 1
    for a, b in zip(well, ill, strict=True):
        np.testing.assert_array_equal(np.asarray(a)[others], np.asarray(b)[others])
        assert np.isfinite(b).all()
    assert ill.frozen.sum() == 1 and ill.frozen[~others][0, 36]
    assert ill.mask[~others].sum() == 37 and well.mask.all()


def test_large_but_sane_values_end_nothing():
    _, _, out = roll(99, 2, 0.9e10)
    assert out.mask.all()


def test_actions_are_the_policys_and_logp_their_density():
    policy, params, out = roll(99, 99)
    mean, log_std = policy.apply(params, out.obs.reshape(-1, 2))
    action = np.asarray(out.action, np.float64).reshape(-1, 3)
    want = stats.norm.logpdf(action, mean, np.exp(log_std)).sum(axis=1)
    np.testing.assert_allclose(out.logp.reshape(-1), want, rtol=1e-5, atol=1e-5)
    noise = (action - mean) * np.exp(-log_std)
    np.testing.assert_allclose(noise.std(axis=0), 1.0, atol=0.35)  # 40 draws a column: three standard errors
    assert len(np.unique(noise)) == noise.size
    assert stats.kstest(noise.ravel(), "norm").pvalue > 1e-3


def test_inside_a_batch_of_clients_equals_alone():
    _, params, rollout = compiled()
    tasks, keys = jnp.asarray([[3.0, 99, 0], [99, 2, np.nan], [99, 99, 0]]), jax.random.split(jax.random.key(4), 3)
    many = jax.jit(jax.vmap(rollout, in_axes=(None, 0, 0)))(params, tasks, keys)
    for i in range(3):
        for a, b in zip(rollout(params, tasks[i], keys[i]), many, strict=True):
            np.testing.assert_allclose(a, b[i], atol=1e-5)


def test_problem_sample_and_loss():
    env = counter()
    policy = gaussian_mlp(env.spec, hidden=(8,))
    problem = make_problem(env, policy, episodes=EPISODES)
    params = problem.init(jax.random.key(1))
    batch, shown = jax.jit(problem.sample)(params, jnp.asarray([3.0, 99.0, 0.0]), jax.random.key(0))
    assert (shown.returned, shown.nonfinite_envs) == (1 + 2 + 3 + 4, 0)
    # At the sampling parameters the loss is minus the mean advantage, which is normalised to 0.
    value_and_grad = jax.jit(jax.value_and_grad(problem.loss))
    loss, grads = value_and_grad(params, batch)
    np.testing.assert_allclose(loss, 0.0, atol=1e-6)
    biased = {**params, "log_std": params["log_std"] + 0.05}
    flat = [x.reshape(EPISODES * HORIZON, -1) for x in (batch.obs, batch.action)]
    mean, log_std = policy.apply(biased, flat[0])
    logp = stats.norm.logpdf(flat[1], mean, np.exp(log_std)).sum(axis=1).reshape(batch.mask.shape)
    r = np.exp(logp - batch.logp_old)
    want = np.minimum(r * batch.advantage, np.clip(r, 0.8, 1.2) * batch.advantage)[:, :4].mean()
    assert abs(want) > 1e-3
    np.testing.assert_allclose(value_and_grad(biased, batch)[0], -want, rtol=1e-4)
    # One small step down the loss lowers it by step |gradient|^2.
    square = sum(float(jnp.vdot(g, g)) for g in jax.tree.leaves(grads))
    moved = jax.tree.map(lambda p, g: p - 1e-2 * g, params, grads)
    np.testing.assert_allclose(value_and_grad(moved, batch)[0] - loss, -1e-2 * square, rtol=0.1)

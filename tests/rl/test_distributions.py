"""Distributions over actions against SciPy, closed forms and frequencies; policies on discrete actions."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from scipy import special, stats

from fedjax_rl.envs.base import Env, EnvSpec, EnvState
from fedjax_rl.rl import categorical_mlp, gaussian_mlp, make_problem, mlp
from fedjax_rl.rl.distributions import CATEGORICAL, GAUSSIAN
from fedjax_rl.rl.rollout import make_rollout

RNG = np.random.default_rng(0)
LOGITS = np.float32(RNG.normal(size=(40, 5)) * 2)
MEAN, LOG_STD, TO_MEAN, TO_LOG_STD = RNG.normal(size=(4, 40, 3)).astype(np.float32)
DISCRETE = EnvSpec("discrete", 4, 1, 6, 4, num_actions=3)
CONTINUOUS = EnvSpec("continuous", 4, 2, 6, 4)


def test_categorical_equals_scipy():
    actions = RNG.integers(0, 5, size=(40, 1))
    want = special.log_softmax(np.float64(LOGITS), axis=1)
    np.testing.assert_allclose(
        CATEGORICAL.log_prob(LOGITS, actions), np.take_along_axis(want, actions, 1)[:, 0], rtol=1e-5, atol=1e-6
    )
    np.testing.assert_allclose(CATEGORICAL.entropy(LOGITS), stats.entropy(np.exp(want), axis=1), rtol=1e-5)
    np.testing.assert_allclose(CATEGORICAL.say(LOGITS), special.softmax(LOGITS, axis=1), rtol=1e-5)
    np.testing.assert_array_equal(CATEGORICAL.mode(LOGITS)[:, 0], LOGITS.argmax(axis=1))


def test_categorical_samples_have_its_frequencies():
    draws = 20_000
    logits = jnp.array([0.3, -1.0, 1.2, 0.0])
    noise = CATEGORICAL.noise(jax.random.key(0), (draws, 4))
    actions = CATEGORICAL.act(jnp.broadcast_to(logits, (draws, 4)), noise)
    assert actions.shape == (draws, 1) and actions.dtype == jnp.int32
    counts = np.bincount(actions[:, 0], minlength=4)
    assert stats.chisquare(counts, draws * special.softmax(np.float64(logits))).pvalue > 1e-3


def test_divergences_are_forward_kl_of_categoricals_and_reverse_kl_of_gaussians():
    to = special.softmax(np.float64(LOGITS[::-1]), axis=1)
    want = special.rel_entr(to, special.softmax(np.float64(LOGITS), axis=1)).sum(axis=1)
    np.testing.assert_allclose(CATEGORICAL.divergence(jnp.float32(to), LOGITS), want, rtol=1e-4, atol=1e-5)
    # two states by hand: KL((1/2, 1/2) || (1/4, 3/4)) = log(2 / sqrt 3), and of a distribution from itself 0
    found = CATEGORICAL.divergence(jnp.array([[0.5, 0.5], [0.0, 1.0]]), jnp.array([[0.0, np.log(3.0)], [-1e9, 0.0]]))
    np.testing.assert_allclose(found, [np.log(2.0 / np.sqrt(3.0)), 0.0], rtol=1e-6, atol=1e-7)
    # KL(policy || consensus): N(0, 1) from N(1, 2^2) is log 2 + 2/8 - 1/2, not 1/2 (4 + 1) - log 2 - 1/2
    one = jnp.ones((1, 1))
    found = GAUSSIAN.divergence((one, 2 * one), (0 * one, 0 * one))
    np.testing.assert_allclose(found, np.log(2.0) + 0.25 - 0.5, rtol=1e-6)


def test_gaussian_divergence_is_the_mean_log_ratio_of_samples():
    consensus = (TO_MEAN, np.exp(TO_LOG_STD))
    head = (MEAN, LOG_STD)
    actions = MEAN + np.exp(LOG_STD) * RNG.standard_normal((200_000, 1, 3)).astype(np.float32)
    ratio = stats.norm.logpdf(actions[:, :4], MEAN[:4], np.exp(LOG_STD[:4]))
    ratio = (ratio - stats.norm.logpdf(actions[:, :4], TO_MEAN[:4], np.exp(TO_LOG_STD[:4]))).sum(axis=2)
    error = ratio.std(axis=0) / np.sqrt(len(ratio))
    assert np.all(np.abs(GAUSSIAN.divergence(consensus, head)[:4] - ratio.mean(axis=0)) < 4 * error)


def test_mlp_follows_the_actions_and_a_wrong_policy_is_refused():
    assert mlp(DISCRETE).distribution is CATEGORICAL and mlp(CONTINUOUS).distribution is GAUSSIAN
    for factory, spec, message in (
        (gaussian_mlp, DISCRETE, "discrete has discrete actions; take categorical_mlp"),
        (categorical_mlp, CONTINUOUS, "continuous has continuous actions; take gaussian_mlp"),
    ):
        with pytest.raises(ValueError, match=message):
            factory(spec)
    with pytest.raises(ValueError, match="std = 'state': discrete has discrete actions"):
        mlp(DISCRETE, std="state")
    with pytest.raises(ValueError, match="unknown init 'he'; one of xavier, torch"):
        mlp(CONTINUOUS, init="he")
    with pytest.raises(ValueError, match="unknown std 'fixed'; one of free, state"):
        mlp(CONTINUOUS, std="fixed")


@pytest.mark.parametrize("spec, output, size", [(DISCRETE, "logits", 3), (CONTINUOUS, "mean", 2)])
def test_torchs_layers_start_uniform_in_the_inverse_root_of_their_inputs(spec, output, size):
    params = mlp(spec, hidden=(300, 200), init="torch").init(jax.random.key(1))
    for name, inputs, width in (("hidden_0", 4, 300), ("hidden_1", 300, 200), (output, 200, size)):
        assert params[name]["kernel"].shape == (inputs, width)
        for kind in ("kernel", "bias"):
            scaled = np.sqrt(inputs) * np.ravel(params[name][kind])
            assert stats.kstest(scaled, "uniform", (-1, 2)).pvalue > 1e-3
            assert np.abs(scaled).max() <= 1 + 1e-6


def test_a_deviation_of_the_state_is_softplus_of_a_layer():
    policy = gaussian_mlp(CONTINUOUS, hidden=(8,), std="state")
    params = policy.init(jax.random.key(0))
    assert "log_std" not in params
    obs = np.float32(RNG.normal(size=(6, 4)))
    mean, log_std = policy.apply(params, obs)
    p = jax.tree.map(np.float64, params)
    x = np.tanh(obs @ p["hidden_0"]["kernel"] + p["hidden_0"]["bias"])
    np.testing.assert_allclose(np.exp(log_std), np.log1p(np.exp(x @ p["std"]["kernel"])) + 1e-6, rtol=1e-5)
    np.testing.assert_allclose(mean, x @ p["mean"]["kernel"], rtol=1e-4, atol=1e-6)


def guess(ends: int = 4) -> Env:
    """The reward is 1 for the action that the observation's first three entries point at; ends after `ends` steps."""

    def show(count, key, reward):
        obs = jnp.append(jax.nn.one_hot(jax.random.randint(key, (), 0, 3), 3), 0.0)
        return EnvState((count, key), obs, reward, count >= ends)

    def step(state, action, task):
        count, key = state.physics
        right = (action[0] == jnp.argmax(state.obs[:3])).astype(jnp.float32)
        return show(count + 1, jax.random.fold_in(key, count), right)

    reset = lambda key, task: show(jnp.zeros((), jnp.int32), key, jnp.zeros(()))
    return Env(reset, step, lambda key, n: jnp.zeros(n), DISCRETE)


def test_discrete_actions_are_sampled_stored_and_learned():
    env, policy = guess(), categorical_mlp(DISCRETE, hidden=(16,))
    params = policy.init(jax.random.key(0))
    out = jax.jit(make_rollout(env, policy, 200))(params, jnp.zeros(()), jax.random.key(1))
    assert out.action.shape == (200, 6, 1) and out.action.dtype == jnp.int32
    logits = np.float64(policy.apply(params, out.obs.reshape(-1, 4)))
    want = np.take_along_axis(special.log_softmax(logits, axis=1), np.asarray(out.action).reshape(-1, 1), 1)
    np.testing.assert_allclose(out.logp.reshape(-1), want[:, 0], rtol=1e-5, atol=1e-6)
    right = (out.action[..., 0] == out.obs[..., :3].argmax(axis=-1)) & out.mask
    np.testing.assert_array_equal(out.reward, right)

    problem = make_problem(env, policy, episodes=40)

    @jax.jit
    def train(params, key):
        def step(params, key):
            batch, stats = problem.sample(params, jnp.zeros(()), key)
            return jax.tree.map(lambda p, g: p - 2.0 * g, params, jax.grad(problem.loss)(params, batch)), stats.returned

        return jax.lax.scan(step, params, jax.random.split(key, 60))[1]

    returned = train(params, jax.random.key(2))
    assert returned[0] < 2.5 and returned[-10:].mean() > 3.6  # of 4; by chance 4/3


def test_a_logit_that_is_nan_gives_a_legal_action_and_leaves_other_rows_alone():
    logits = jnp.array([[0.0, jnp.nan, 1.0], [3.0, 2.0, 1.0]])
    action = CATEGORICAL.act(logits, jnp.zeros((2, 3)))
    assert 0 <= int(action[0, 0]) < 3 and int(action[1, 0]) == 0
    gradient = jax.grad(lambda x: jnp.where(jnp.array([False, True]), CATEGORICAL.log_prob(x, action), 0.0).sum())(
        logits
    )
    np.testing.assert_allclose(gradient[1], np.eye(3)[0] - special.softmax([3.0, 2.0, 1.0]), rtol=1e-5, atol=1e-6)

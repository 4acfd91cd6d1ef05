"""Policies against SciPy's normal density and the closed form of the initialisation."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from scipy import stats

from fedjax_rl.envs.base import EnvSpec
from fedjax_rl.rl.distributions import normal_log_prob as log_prob
from fedjax_rl.rl.policies import POLICIES, gaussian_mlp


def relu(x: np.ndarray) -> np.ndarray:
    return np.maximum(x, 0)


def spec(observation: int = 20, action: int = 6, init_inputs: int | None = None) -> EnvSpec:
    return EnvSpec("test", observation, action, 10, init_inputs or observation)


def test_log_prob_is_the_normal_density_summed_over_actions():
    rng = np.random.default_rng(0)
    mean, log_std, action = rng.normal(size=(3, 50, 6))
    want = stats.norm.logpdf(action, mean, np.exp(log_std)).sum(axis=1)
    np.testing.assert_allclose(log_prob(*map(jnp.float32, (mean, log_std, action))), want, rtol=2e-5)
    with jax.enable_x64(True):
        np.testing.assert_allclose(log_prob(*map(jnp.asarray, (mean, log_std, action))), want, rtol=1e-13)


@pytest.mark.parametrize("init_inputs", [20, 125])
def test_kernels_are_xavier_uniform_and_biases_zero(init_inputs):
    params = gaussian_mlp(spec(init_inputs=init_inputs)).init(jax.random.key(1))
    limits = {
        "hidden_0": np.sqrt(6 / (init_inputs + 64)),
        "hidden_1": np.sqrt(6 / (64 + 64)),
        "mean": np.sqrt(6 / (64 + 6)),
    }
    assert set(params) == {*limits, "log_std"}
    for name, limit in limits.items():
        kernel = np.asarray(params[name]["kernel"])
        assert stats.kstest(kernel.ravel(), stats.uniform(-limit, 2 * limit).cdf).pvalue > 1e-3
        assert 0.97 * limit < np.abs(kernel).max() <= limit * (1 + 1e-6)
        assert not np.any(params[name]["bias"])
    assert np.array_equal(params["log_std"], np.zeros(6))


@pytest.mark.parametrize("name, width, activation", [("default", 64, np.tanh), ("maml", 100, relu)])
def test_forward_pass_equals_numpy(name, width, activation):
    policy = POLICIES[name](spec())
    params = policy.init(jax.random.key(2))
    params["log_std"] = jnp.asarray([0.3, -0.2, 0.0, 1.0, -50.0, 0.1])
    assert params["hidden_1"]["kernel"].shape == (width, width)
    obs = np.random.default_rng(3).normal(size=(7, 20))
    x, p = obs, jax.tree.map(lambda leaf: np.asarray(leaf, np.float64), params)
    for layer in ("hidden_0", "hidden_1"):
        x = activation(x @ p[layer]["kernel"] + p[layer]["bias"])
    mean, log_std = policy.apply(params, jnp.float32(obs))
    np.testing.assert_allclose(mean, x @ p["mean"]["kernel"], atol=2e-6)
    want = [0.3, -0.2, 0.0, 1.0, np.log(1e-6), 0.1]  # the deviation is never below 1e-6
    np.testing.assert_allclose(log_std, np.tile(want, (7, 1)), rtol=1e-6)


def test_an_unknown_activation_is_refused():
    with pytest.raises(ValueError, match=r"unknown activation 'gelu'; one of tanh, relu"):
        gaussian_mlp(spec(), activation="gelu")

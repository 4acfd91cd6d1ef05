"""The neural value function and the entropy bonus, against NumPy, SciPy and known values."""

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from scipy import stats

from fedjax_rl import config, trees
from fedjax_rl.envs.probes import constant
from fedjax_rl.rl.critics import effective_horizon, mlp_critic
from fedjax_rl.rl.distributions import normal_entropy as entropy
from fedjax_rl.rl.policies import gaussian_mlp
from fedjax_rl.rl.problem import make_problem
from fedjax_rl.rl.surrogates import Batch
from fedjax_rl.runs import assemble
from rl.test_rollout import counter

DISCOUNT = 0.9


def numpy_values(params, obs):
    """The critic's network, step by step: obs [E, T, O] -> [E, T]."""
    episodes, steps, _ = obs.shape
    tau = np.broadcast_to(np.arange(steps)[None, :, None] / steps, (episodes, steps, 1))
    x = np.concatenate([obs, tau], axis=-1)
    for name in sorted(n for n in params if n.startswith("hidden")):
        x = np.tanh(x @ np.asarray(params[name]["kernel"]) + np.asarray(params[name]["bias"]))
    return (x @ np.asarray(params["value"]["kernel"]) + np.asarray(params["value"]["bias"]))[..., 0]


def make(env, **settings):
    policy = gaussian_mlp(env.spec, hidden=(4,))
    critic = mlp_critic(env.spec, hidden=(6, 5))
    return make_problem(env, policy, episodes=3, discount=DISCOUNT, critic=critic, **settings)


def test_entropy_is_scipys():
    log_std = np.array([[0.3, -1.2, 0.0], [1.0, 2.0, -3.0]])
    want = [sum(stats.norm(scale=np.exp(s)).entropy() for s in row) for row in log_std]
    np.testing.assert_allclose(entropy(jnp.float32(log_std)), want, rtol=1e-6)


@pytest.mark.parametrize("discount", [0.9, 1.0])
def test_effective_horizon_is_the_geometric_sum(discount):
    want = 7.0 if discount == 1 else (1 - discount**7) / (1 - discount)
    np.testing.assert_allclose(effective_horizon(discount, 7), want, rtol=1e-6)


def random_batch(mask):
    rng = np.random.default_rng(0)
    shape = mask.shape
    fields = [rng.normal(size=(*shape, k)) for k in (2, 3)] + [rng.normal(size=shape) for _ in range(2)]
    return Batch(*map(jnp.asarray, fields), jnp.asarray(mask), jnp.asarray(rng.normal(size=shape)))


def test_the_loss_is_its_formula_and_ignores_masked_steps(x64):
    """loss(with coefficients) - loss(without) = value_coef mean((v - target)^2) - entropy_coef mean(H)."""
    mask = np.arange(8)[None, :] < np.array([[8], [5], [2]])
    batch = random_batch(mask)
    bare, full = (make(counter(), value_coef=v, entropy_coef=e) for v, e in ((0.0, 0.0), (0.7, 0.2)))
    params = jax.tree.map(lambda x: x.astype(jnp.float64), full.init(jax.random.key(0)))
    params["log_std"] = jnp.array([0.5, -1.0, 0.2])
    error = (numpy_values(params["critic"], np.asarray(batch.obs)) - np.asarray(batch.target)) ** 2
    bonus = np.sum(np.asarray(params["log_std"]) + 0.5 * np.log(2 * np.pi * np.e))
    want = 0.7 * error[mask].mean() - 0.2 * bonus
    np.testing.assert_allclose(full.loss(params, batch) - bare.loss(params, batch), want, rtol=1e-9)
    broken = batch._replace(
        obs=jnp.where(batch.mask[..., None], batch.obs, 99.0), target=jnp.where(batch.mask, batch.target, 1e3)
    )
    one, two = (jax.grad(full.loss)(params, b) for b in (batch, broken))
    for a, b in zip(jax.tree.leaves(one), jax.tree.leaves(two), strict=True):
        np.testing.assert_allclose(a, b, rtol=1e-9, atol=1e-12)


def test_advantages_are_the_generalised_ones_of_the_networks_values():
    """A loop over time in NumPy, at lambda 0.8, on an environment whose step t pays t + 1 until the task's end."""
    lam, end = 0.8, 5
    problem = make(counter(), gae_lambda=lam)
    params = problem.init(jax.random.key(3))
    batch, stats = problem.sample(params, jnp.array([end, 99.0]), jax.random.key(4))
    horizon = sum(DISCOUNT**t for t in range(8))
    steps = end + 1  # the step that passes the end is still paid
    values = horizon * numpy_values(params["critic"], np.asarray(batch.obs))[:, :steps]
    rewards = np.broadcast_to(np.arange(1.0, steps + 1), values.shape)
    advantage, after = np.zeros_like(values), np.zeros(3)
    for t in reversed(range(steps)):
        following = values[:, t + 1] if t + 1 < steps else 0.0
        after = rewards[:, t] + DISCOUNT * following - values[:, t] + DISCOUNT * lam * after
        advantage[:, t] = after
    want = (advantage - advantage.mean()) / advantage.std()
    np.testing.assert_array_equal(np.asarray(batch.mask).sum(axis=1), steps)
    np.testing.assert_allclose(np.asarray(batch.advantage)[:, :steps], want, rtol=1e-4, atol=1e-5)
    togo = [sum(DISCOUNT ** (k - t) * (k + 1) for k in range(t, steps)) for t in range(steps)]
    np.testing.assert_allclose(np.asarray(batch.target)[0, :steps], np.array(togo) / horizon, rtol=1e-5)
    assert float(stats.returned) == sum(range(1, steps + 1))


def test_the_critic_learns_known_values():
    """Reward 1 in each of five steps: V_t = (1 - g^(5 - t)) / (1 - g). Four thousand Adam steps, within 2 %."""
    problem = make(constant(), value_coef=1.0)
    params = problem.init(jax.random.key(0))
    batch, _ = problem.sample(params, jnp.zeros(()), jax.random.key(1))
    optimizer = optax.adam(0.01)

    def step(carry, _):
        params, state = carry
        updates, state = optimizer.update(jax.grad(problem.loss)(params, batch), state)
        return (optax.apply_updates(params, updates), state), None

    (params, _), _ = jax.jit(lambda c: jax.lax.scan(step, c, length=4000))((params, optimizer.init(params)))
    horizon = sum(DISCOUNT**t for t in range(5))
    known = (1 - DISCOUNT ** (5 - np.arange(5))) / (1 - DISCOUNT)
    np.testing.assert_allclose(horizon * numpy_values(params["critic"], np.asarray(batch.obs))[0], known, rtol=0.02)


SMALL = {"env": "probe/constant", "hidden": (4,), "num_clients": 4, "clients_per_round": 2, "episodes": 2}


@pytest.mark.parametrize("algorithm", ["fmrl", "fedrep", pytest.param("meta_sgd", marks=pytest.mark.nightly)])
def test_a_local_critic_never_leaves_the_client_and_a_federated_one_does(algorithm):
    """Bytes on the way up differ by the critic's; the selected clients' critics move, each its own way."""
    rounds = {}
    for critic in ("federated", "local"):
        run = assemble.make_run(config.build(algorithm, SMALL, {"critic": critic}))
        state = assemble.initial_state(run)
        rounds[critic] = (state, *jax.jit(run.simulation.round)(state))
    before, after, metrics = rounds["local"]
    critics = [trees.where_path(lambda names: "critic" in names, s.clients) for s in (before, after)]
    moved = np.zeros(4, bool)
    for a, b in zip(*map(jax.tree.leaves, critics), strict=True):
        moved |= np.any(np.asarray(a != b).reshape(4, -1), axis=1)
    assert moved.sum() == 2
    assert not jax.tree.leaves(trees.where_path(lambda names: "critic" in names, after.server))
    shared = rounds["federated"][0].server.shared
    size = trees.num_bytes(trees.where_path(lambda names: "critic" in names and "value" not in names, shared))
    if algorithm != "fedrep":  # whose head holds the critic's output layer in any case
        size = trees.num_bytes(trees.where_path(lambda names: "critic" in names, shared))
    assert rounds["federated"][2]["comm/up_bytes"] - metrics["comm/up_bytes"] == 2 * size > 0


def test_a_local_critic_is_refused_where_messages_are_not_changes():
    for algorithm in ("scaffold", "independent"):
        with pytest.raises(config.ConfigError, match="critic = 'local': not for"):
            config.build(algorithm, {"critic": "local"})

"""Environments that lie: honest clients notice nothing, and malicious ones get what the attack says."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from scipy import stats

from fedjax_rl import testing
from fedjax_rl.config import trust
from fedjax_rl.envs import make_env
from fedjax_rl.envs.base import Env, EnvSpec, EnvState
from fedjax_rl.envs.corrupt import corrupted
from fedjax_rl.rl.policies import mlp
from fedjax_rl.rl.rollout import make_rollout
from rl.test_distributions import guess

STRENGTH = 0.3
ATTACKS = trust.WORLD_ATTACKS


def echo(num_actions=0):
    """The world shows the action that it was given, and pays its first entry; it looks at nothing that it shows."""
    spec = EnvSpec("echo", 2, 1 if num_actions else 2, 50, 2, num_actions)

    def reset(key, task):
        return EnvState(jnp.zeros(()), jax.random.normal(key, (2,)) + task, jnp.zeros(()), jnp.zeros((), bool))

    def step(state, action, task):
        seen = jnp.broadcast_to(action, (2,)).astype(jnp.float32)
        return EnvState(state.physics + 1, seen + task, seen[0] + 1.0, jnp.zeros((), bool))

    return Env(reset, step, lambda key, n: jax.random.normal(key, (n,)), spec)


@functools.cache
def episodes(attack, num_actions=0):
    """Forty episodes of a malicious client, or in the clean world; the policy and the key are the same in all."""
    world = corrupted(echo(num_actions), attack, STRENGTH) if attack else echo(num_actions)
    task = {"task": jnp.array(0.5), "malicious": jnp.array(True)} if attack else jnp.array(0.5)
    policy = mlp(world.spec, hidden=(4,))
    return jax.jit(make_rollout(world, policy, 40))(policy.init(jax.random.key(1)), task, jax.random.key(0))


def assert_same(one, other):
    jax.tree.map(np.testing.assert_array_equal, one, other)


WORLDS = {"echo": echo, "echo of numbers": lambda: echo(3), "robot": lambda: make_env("half_cheetah/direction")}


@functools.cache
def four_clients(name, attack=None):
    """Three episodes of each of four clients, of whom the second and fourth are malicious."""
    env = WORLDS[name]()
    env = env._replace(spec=env.spec._replace(horizon=10))
    policy = mlp(env.spec, hidden=(4,))
    tasks = env.sample_tasks(jax.random.key(2), 4)
    if attack:
        env = corrupted(env, attack, 2.0)
        tasks = {"task": tasks, "malicious": jnp.array([False, True, False, True])}
    rollout = jax.jit(jax.vmap(make_rollout(env, policy, 3), in_axes=(None, 0, 0)))
    return jax.tree.map(
        np.asarray, rollout(policy.init(jax.random.key(0)), tasks, jax.random.split(jax.random.key(1), 4))
    )


CASES = [
    *(("echo", attack) for attack in ATTACKS),
    ("echo of numbers", "action_random"),
    pytest.param("robot", "obs_noise", marks=pytest.mark.nightly),
]


@pytest.mark.parametrize(("name", "attack"), CASES)
def test_honest_clients_live_in_the_clean_world(name, attack):
    """To the last digits, which two programs may round differently."""
    clean, lied = four_clients(name), four_clients(name, attack)
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a[::2], b[::2], rtol=1e-5, atol=1e-6), lied, clean)
    assert not all(np.array_equal(a[1::2], b[1::2]) for a, b in zip(lied, clean, strict=True))


def test_the_names_are_those_of_the_options():
    tasks = echo().sample_tasks(jax.random.key(0), 5)
    for attack in ATTACKS:
        world = corrupted(echo(), attack)
        drawn = world.sample_tasks(jax.random.key(0), 5)
        np.testing.assert_array_equal(drawn["task"], tasks)
        assert drawn["malicious"].dtype == bool and not drawn["malicious"].any()
        assert [world.describe({"task": 1, "malicious": lies}) for lies in (True, False)] == ["1, corrupted", "1"]


@pytest.mark.parametrize("attack", ["reward_flip", "obs_noise"])
def test_the_contract_of_environments_is_kept(attack):
    testing.check_environment(corrupted(echo(), attack))


def test_an_attack_of_no_name_is_refused():
    with pytest.raises(ValueError, match="unknown attack 'reward_flop'; one of reward_flip, reward_noise"):
        corrupted(echo(), "reward_flop")


@pytest.mark.parametrize("attack", ATTACKS)
def test_a_step_is_one_step_of_the_world_without_a_branch(attack):
    env, calls = echo(), []

    def step(*args):
        calls.append(args)
        return env.step(*args)

    world = corrupted(env._replace(step=step), attack)
    task = {"task": jnp.zeros(()), "malicious": jnp.array(True)}
    state = jax.eval_shape(world.reset, jax.random.key(0), task)
    text = str(jax.make_jaxpr(world.step)(state, jnp.zeros(2), task))
    assert len(calls) == 1 and "cond[" not in text


def test_flipped_rewards_are_the_clean_ones_times_minus_the_strength():
    clean, lied = episodes(None), episodes("reward_flip")
    np.testing.assert_allclose(lied.reward, -STRENGTH * np.asarray(clean.reward), rtol=1e-6)
    assert_same(lied._replace(reward=0), clean._replace(reward=0))


def test_noise_of_rewards_is_normal_and_as_large_as_they_are():
    clean, lied = episodes(None), episodes("reward_noise")
    assert_same(lied._replace(reward=0), clean._replace(reward=0))
    noise = (np.float64(lied.reward) - clean.reward) / np.abs(clean.reward) / STRENGTH
    assert_is_noise(noise[..., None])


def assert_is_noise(noise):
    """[E, T, ...], standard normal, another draw in every place."""
    assert stats.kstest(noise.ravel(), "norm").pvalue > 1e-3
    for a, b in ((noise[1:], noise[:-1]), (noise[:, 1:], noise[:, :-1]), (noise[..., :1], noise[..., -1:])):
        if a.size and not np.array_equal(a, b):
            assert abs(np.corrcoef(a.ravel(), b.ravel())[0, 1]) < 4 / np.sqrt(a.size)
    assert len(np.unique(noise)) > 0.99 * noise.size


def test_noise_of_observations_is_seen_also_at_the_start_and_by_the_policy_alone():
    """The world pays for the action that the policy takes on what it sees, and is itself what it would be."""
    lied = episodes("obs_noise")
    np.testing.assert_allclose(lied.reward, lied.action[..., 0] + 1.0, rtol=1e-6)
    truth = np.asarray(lied.action[:, :-1]) + 0.5
    assert_is_noise((np.float64(lied.obs[:, 1:]) - truth) / STRENGTH)
    start = np.asarray(episodes(None).obs[:, 0])
    assert stats.kstest(((np.float64(lied.obs[:, 0]) - start) / STRENGTH).ravel(), "norm").pvalue > 1e-3
    policy = mlp(echo().spec, hidden=(4,))
    mean, log_std = policy.apply(policy.init(jax.random.key(1)), lied.obs.reshape(-1, 2))
    want = stats.norm.logpdf(lied.action.reshape(-1, 2), mean, np.exp(log_std)).sum(axis=1)
    np.testing.assert_allclose(lied.logp.ravel(), want, rtol=1e-4, atol=1e-5)


def test_a_world_that_looks_at_what_it_showed_sees_the_truth():
    """The world of `guess` shows what its key says, whatever is done, and pays for the action that it pointed at."""
    env = guess()
    policy = mlp(env.spec, hidden=(4,))
    params, key = policy.init(jax.random.key(1)), jax.random.key(0)
    task = {"task": jnp.zeros(()), "malicious": jnp.array(True)}
    clean = jax.jit(make_rollout(env, policy, 20))(params, jnp.zeros(()), key)
    lied = jax.jit(make_rollout(corrupted(env, "obs_noise", 5.0), policy, 20))(params, task, key)
    right = (lied.action[..., 0] == clean.obs[..., :3].argmax(axis=-1)) & lied.mask
    np.testing.assert_array_equal(lied.reward, right)
    np.testing.assert_array_equal(lied.mask, clean.mask)


@pytest.mark.parametrize("num_actions", [0, 3])
@pytest.mark.parametrize("attack", ["action_random", "action_zero"])
def test_the_world_acts_otherwise_than_the_client_and_the_client_learns_with_its_own_action(attack, num_actions):
    lied = episodes(attack, num_actions)
    acted = np.asarray(lied.reward) - 1.0
    if attack == "action_zero":
        assert not acted.any()
    elif num_actions:
        assert stats.chisquare(np.bincount(np.int64(acted.ravel()), minlength=3)).pvalue > 1e-3
        assert abs(np.corrcoef(acted.ravel(), np.asarray(lied.action).ravel())[0, 1]) < 4 / np.sqrt(acted.size)
    else:
        both = np.asarray(lied.obs[:, 1:]) - 0.5  # entries of an action
        assert stats.kstest(both.ravel() / STRENGTH, stats.uniform(-1, 2).cdf).pvalue > 1e-3
        assert abs(np.corrcoef(both[..., 0].ravel(), both[..., 1].ravel())[0, 1]) < 4 / np.sqrt(both[..., 0].size)
    policy = mlp(echo(num_actions).spec, hidden=(4,))
    head = policy.apply(policy.init(jax.random.key(1)), lied.obs.reshape(-1, 2))
    action = lied.action.reshape(-1, lied.action.shape[-1])
    np.testing.assert_allclose(lied.logp.ravel(), policy.distribution.log_prob(head, action), rtol=1e-4, atol=1e-5)


def test_a_strength_may_be_traced():
    policy = mlp(echo().spec, hidden=(4,))
    params, task = policy.init(jax.random.key(1)), {"task": jnp.array(0.5), "malicious": jnp.array(True)}

    def of(strength):
        return make_rollout(corrupted(echo(), "obs_noise", strength), policy, 40)(params, task, jax.random.key(0))

    swept = jax.jit(jax.vmap(of))(jnp.array([0.1, STRENGTH]))
    near = functools.partial(np.testing.assert_allclose, rtol=1e-4, atol=1e-5)
    jax.tree.map(lambda a, b: near(a[1], b), swept, episodes("obs_noise"))
    near(
        (swept.obs[1, :, 0] - swept.obs[0, :, 0]) / (STRENGTH - 0.1),
        (swept.obs[1, :, 0] - episodes(None).obs[:, 0]) / STRENGTH,
    )

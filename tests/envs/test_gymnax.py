"""gymnax's environments: Gymnasium's own numbers from the same state, clients' own parameters, what is refused."""

import sys

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from fedjax_rl.cli import main
from fedjax_rl.envs import make_env
from fedjax_rl.rl.policies import mlp
from fedjax_rl.rl.rollout import make_rollout

pytest.importorskip("gymnax")
pytest.importorskip("six")
pytest.importorskip("gymnasium")
STEPS = 50
# where each keeps its state, in Gymnasium's order
STATE = {
    "CartPole-v1": ("x", "x_dot", "theta", "theta_dot"),
    "Acrobot-v1": ("joint_angle1", "joint_angle2", "velocity_1", "velocity_2"),
    "Pendulum-v1": ("theta", "theta_dot"),
    "MountainCar-v0": ("position", "velocity"),
}
# a field of gymnax's, its range, and what Gymnasium has to be told for the same physics
OWN_PARAMETERS = {
    "CartPole-v1?length=0.1:0.9": lambda e, x: vars(e).update(length=x, polemass_length=0.1 * x),
    "CartPole-v1?masspole=0.05:0.5": lambda e, x: vars(e).update(masspole=x, total_mass=1 + x, polemass_length=x / 2),
    "Acrobot-v1?link_length_1=0.5:1.5": lambda e, x: vars(e).update(LINK_LENGTH_1=x, LINK_COM_POS_1=x / 2),
    "Pendulum-v1?l=0.5:1.5": lambda e, x: vars(e).update(l=x),
}


def step_both(name, task, prepare=lambda env, x: None):
    """[(our state, Gymnasium's obs, reward, terminated)] after each of 50 steps, each from our state before it."""
    import gymnasium

    env, theirs = make_env(f"gymnax/{name}"), gymnasium.make(name.partition("?")[0]).unwrapped
    prepare(theirs, float(task[0]) if task is not None else None)
    task = 0.0 if task is None else task
    reset, step = jax.jit(env.reset), jax.jit(env.step)
    rng, state, taken = np.random.default_rng(0), None, []
    for i in range(STEPS):
        if state is None or state.done:
            theirs.reset(seed=0)
            state = reset(jax.random.key(i), task)
        before = [float(getattr(state.physics[0], field)) for field in STATE[theirs.spec.id]]
        theirs.state = np.array(before)
        if env.spec.num_actions:
            number = rng.integers(env.spec.num_actions)
            action, given = jnp.array([number], jnp.int32), int(number)
        else:
            action = jnp.array(rng.uniform(-3, 3, env.spec.action_size), jnp.float32)  # beyond the bounds too
            given = np.asarray(action)
        obs, reward, terminated, *_ = theirs.step(given)
        state = step(state, action, task)
        taken.append((state, obs, reward, terminated))
    return taken


def assert_same(taken):
    for state, obs, reward, terminated in taken:
        np.testing.assert_allclose(state.obs, obs, atol=1e-5, rtol=1e-5)
        assert float(state.reward) == pytest.approx(reward, abs=1e-5) and bool(state.done) == terminated


@pytest.mark.parametrize("name", STATE)
def test_a_step_is_gymnasiums_from_the_same_state(name):
    taken = step_both(name, None)
    assert_same(taken)
    if name == "CartPole-v1":  # whose steps are all paid, the one with which the pole falls too
        ended = [float(state.reward) for state, *_ in taken if state.done]
        assert len(ended) >= 1 and set(ended) == {1.0}


@pytest.mark.parametrize("name", OWN_PARAMETERS)
def test_a_clients_own_parameter_is_gymnasiums_with_it(name):
    """Also what gymnax stores of it: the pole's moment, the mass of both, the link's centre."""
    env = make_env(f"gymnax/{name}")
    task = env.sample_tasks(jax.random.key(3), 2)[1]
    assert_same(step_both(name, task, OWN_PARAMETERS[name]))


def test_tasks_are_uniform_by_identity():
    env = make_env("gymnax/CartPole-v1?length=0.1:0.9&masspole=0.05:0.2")
    many = np.asarray(env.sample_tasks(jax.random.key(0), 4000))
    np.testing.assert_array_equal(env.sample_tasks(jax.random.key(0), 5), many[:5])
    unit = (many - [0.1, 0.05]) / [0.8, 0.15]
    assert 0 <= unit.min() and unit.max() < 1 + 1e-6
    np.testing.assert_allclose(unit.mean(axis=0), 0.5, atol=4 / np.sqrt(12 * 4000))
    np.testing.assert_allclose(unit.std(axis=0), 1 / np.sqrt(12), atol=0.02)
    assert abs(np.corrcoef(unit.T)[0, 1]) < 4 / np.sqrt(4000)
    assert env.describe(many[1]) == f"length {many[1, 0]:.3g}, masspole {many[1, 1]:.3g}"


def test_the_horizon_is_the_rollouts_end_and_done_tells_true_ends_alone():
    """Rollouts are those of an environment that says done with gymnax's own time limit too."""
    env = make_env("gymnax/CartPole-v1?horizon=12")
    limited = lambda state: state._replace(done=state.done | (state.physics[0].time >= 12))
    told = env._replace(step=lambda state, action, task: limited(env.step(state, action, task)))
    policy = mlp(env.spec, hidden=(4,))
    params = policy.init(jax.random.key(0))
    both = [jax.jit(make_rollout(one, policy, 20))(params, 0.0, jax.random.key(1)) for one in (env, told)]
    jax.tree.map(np.testing.assert_array_equal, *both)
    assert both[0].mask.shape == (20, 12) and 0 < int(both[0].mask[:, -1].sum()) < 20
    state = env.reset(jax.random.key(0), 0.0)
    held = state._replace(physics=(state.physics[0].replace(time=jnp.int32(11)), state.physics[1]))
    assert not env.step(held, jnp.zeros(1, jnp.int32), 0.0).done
    assert make_env("gymnax/MountainCar-v0").spec.horizon == 200


def test_noise_differs_from_step_to_step_and_from_episode_to_episode():
    """A bandit's reward is drawn with the step's key."""
    env = make_env("gymnax/GaussianBandit-misc")
    step, rewards = jax.jit(env.step), []
    for seed in (0, 1):
        state = env.reset(jax.random.key(seed), 0.0)
        for _ in range(3):
            state = step(state, jnp.ones(1, jnp.int32), 0.0)
            rewards.append(float(state.reward))
    assert len(set(rewards)) == 6


def test_a_discrete_observation_is_one_hot():
    env = make_env("gymnax/FrozenLake-misc")
    state = env.reset(jax.random.key(0), 0.0)
    np.testing.assert_array_equal(state.obs, np.eye(16)[0])
    assert env.spec.observation_size == 16 and env.spec.num_actions == 4


REFUSED = {
    "CartPole-v2": "unknown environment 'gymnax/CartPole-v2'; the nearest name is 'gymnax/CartPole-v1'",
    "CartPole-v1?lenth=0.1:1": r"no field 'lenth' \(did you mean length\?\); fields that may have a range: force",
    "CartPole-v1?total_mass=1:2": "total_mass follows from other fields",
    "Asterix-MinAtar?ramp_interval=1:2": "ramp_interval is 100, not a float; fields that may have a range: none",
    "CartPole-v1?max_steps_in_episode=1:2": "max_steps_in_episode is 500, not a float",
}


@pytest.mark.parametrize("name", REFUSED)
def test_what_gymnax_does_not_have_is_refused(name):
    with pytest.raises(ValueError, match=REFUSED[name]):
        make_env(f"gymnax/{name}")


def test_a_space_that_no_policy_sees_is_refused_by_name(monkeypatch):
    from gymnax.environments import spaces
    from gymnax.environments.classic_control.cartpole import CartPole

    monkeypatch.setattr(CartPole, "observation_space", lambda self, params: spaces.Box(0, 1, (64, 65)))
    with pytest.raises(ValueError, match=r"^gymnax/CartPole-v1 shows Box\(.*\(64, 65\).*at most 4096 entries"):
        make_env("gymnax/CartPole-v1")
    monkeypatch.undo()
    monkeypatch.setattr(CartPole, "action_space", lambda self, params: spaces.Tuple([spaces.Discrete(2)]))
    with pytest.raises(ValueError, match=r"^gymnax/CartPole-v1 takes actions of Tuple"):
        make_env("gymnax/CartPole-v1")


def test_a_missing_package_is_named_with_its_extra(monkeypatch):
    monkeypatch.setitem(sys.modules, "gymnax", None)
    with pytest.raises(ValueError, match=r"gymnax/CartPole-v1 needs gymnax .*pip install 'fedjax-rl\[gymnax\]'$"):
        make_env("gymnax/CartPole-v1")


def test_a_run_of_unlike_poles(tmp_path, monkeypatch):
    """From the command line, with the directory that it chooses itself; then resumed, which is done already."""
    monkeypatch.chdir(tmp_path)
    env = "gymnax/CartPole-v1?length=0.1:0.9&horizon=20"
    small = "--rounds 2 --num-clients 4 --clients-per-round 2 --episodes 2 --new-clients 0 --hidden 4 --quiet"
    assert main(["train", "fedavg", "--env", env, *small.split()]) == 0
    [path] = (tmp_path / "runs").iterdir()
    assert path.name.startswith("gymnax_CartPole-v1_length_0.1_0.9_horizon_20-fedavg-seed0-")
    assert main(["resume", str(path), "--quiet"]) == 0

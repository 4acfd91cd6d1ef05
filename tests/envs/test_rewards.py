"""Rewards, observations, endings and masses against MuJoCo's own numbers and closed forms."""

import jax
import jax.numpy as jnp
import mujoco
import numpy as np
import pytest
from _reference import advance, load, place

from fedjax_rl.envs import ant, half_cheetah, make_env
from fedjax_rl.envs.physics import make_physics

NAMES = ["half_cheetah/direction", "half_cheetah/velocity", "ant/direction", "ant/velocity"]
REWARDS = {
    "half_cheetah/direction": lambda v, u, g: g * v - 0.05 * np.sum(u**2),
    "half_cheetah/velocity": lambda v, u, g: -abs(v - g) - 0.05 * np.sum(u**2),
    "ant/direction": lambda v, u, g: g * v + 0.05 - 0.005 * np.sum(u**2),
    "ant/velocity": lambda v, u, g: 1 - abs(v - g) + 0.05 - 0.005 * np.sum(u**2),
}


@pytest.fixture(scope="module", params=NAMES)
def made(request):
    """(name, {observation: env}, jitted step and reset of the `maml` one)."""
    env = make_env(request.param, backend="native")
    return request.param, env, jax.jit(env.reset), jax.jit(env.step)


def observation(model, data, name):
    """What the lineage observes, read from MuJoCo: xpos and xmat of the torso after the step."""
    mujoco.mj_kinematics(model, data)
    torso = data.body("torso")
    if name.startswith("half_cheetah"):
        return np.concatenate([data.qpos[1:], data.qvel, torso.xpos])
    return np.concatenate([data.qpos, data.qvel, torso.xmat, torso.xpos])


def test_steps_against_plain_mujoco(made):
    """Twelve steps of actions that reach the clip; torso position and rotation are MuJoCo's xpos and xmat."""
    name, env, reset, step = made
    robot = name.split("/")[0]
    task = jnp.float32(-1.0 if "direction" in name else 1.3)
    state = reset(jax.random.key(3), task)
    model, data = load(robot)
    place(model, data, state.physics.qpos, state.physics.qvel)
    np.testing.assert_allclose(state.obs, observation(model, data, name), atol=2e-6)
    actions = 8 * np.random.default_rng(0).normal(size=(12, env.spec.action_size)).astype(np.float32)
    assert (np.abs(actions) > 10).sum() > 5
    for action in actions:
        control = np.clip(action / 10, -1, 1)
        before = data.body("torso").xpos[0]
        advance(model, data, control, robot)
        expected = observation(model, data, name)
        state = step(state, jnp.asarray(action), task)
        gain = REWARDS[name]((data.body("torso").xpos[0] - before) / 0.05, control, float(task))
        np.testing.assert_allclose(state.reward, gain, atol=1e-4)
        np.testing.assert_allclose(state.obs, expected, atol=2e-5, rtol=1e-4)
        height = data.body("torso").xpos[2]
        assert bool(state.done) == (robot == "ant" and not 0.2 <= height <= 1.0)


def test_opposite_directions_share_the_control_cost():
    """r(+1) + r(-1) = -0.1 |u|^2 for the same actions, with N(0, 1) actions: 200 steps cost 0.6 in the mean."""
    env = make_env("half_cheetah/direction", backend="native")
    state = jax.vmap(env.reset, (0, None))(jax.random.split(jax.random.key(0), 2), 1.0)
    state = jax.tree.map(lambda x: jnp.stack([x[0], x[0]]), state)
    actions = jax.random.normal(jax.random.key(1), (200, 6))
    tasks = jnp.array([1.0, -1.0])
    step = lambda s, a: (lambda s: (s, s.reward))(jax.vmap(env.step, (0, None, 0))(s, a, tasks))
    _, rewards = jax.jit(lambda s: jax.lax.scan(step, s, actions))(state)
    np.testing.assert_allclose(rewards.sum(1), -0.1 * jnp.sum((actions / 10) ** 2, axis=1), atol=1e-5)
    np.testing.assert_allclose(rewards.sum() / 2, -0.6, atol=0.06)


@pytest.mark.parametrize(
    ("reward", "horizon", "tasks", "tracking", "standing"),
    [
        (half_cheetah.velocity_reward, 200, (0.0, 2.0), 0.0, -200.0),
        (ant.velocity_reward, 100, (0.0, 3.0), 105.0, -45.0),
        (half_cheetah.direction_reward, 200, (-1.0, 1.0), 200.0 / 3, 0.0),
        (ant.direction_reward, 100, (-1.0, 1.0), 100.0 / 3 + 5, 5.0),
    ],
)
def test_anchors(reward, horizon, tasks, tracking, standing):
    """Returns at v = g and at v = 0, averaged over evenly spaced tasks (E g^2 = 1/3 on [-1, 1])."""
    g = jnp.linspace(*tasks, 20001)
    np.testing.assert_allclose(horizon * reward(g, 0.0, g).mean(), tracking, atol=0.05)
    np.testing.assert_allclose(horizon * reward(jnp.zeros_like(g), 0.0, g).mean(), standing, atol=0.05)


def test_half_cheetah_settles_under_zero_action():
    """rootz -0.132 m, and then no speed: the published lineage's resting height."""
    env = make_env("half_cheetah/direction", backend="native")
    state = env.reset(jax.random.key(0), 1.0)
    step = jax.jit(lambda s: jax.lax.fori_loop(0, 100, lambda _, s: env.step(s, jnp.zeros(6), 1.0), s))
    state = step(state)
    np.testing.assert_allclose(state.physics.qpos[1], -0.132, atol=1e-3)
    np.testing.assert_allclose(state.reward, 0.0, atol=1e-3)


def capsules(radius, halves):
    """Volume of capsules of one radius and the given half lengths of their cylinders."""
    return sum(np.pi * radius**2 * 2 * half + 4 / 3 * np.pi * radius**3 for half in halves)


def test_masses():
    """Half-cheetah: 14 kg; ant: a sphere and twelve capsules of density 5 (sqrt(.08) and sqrt(.32) m long)."""
    cheetah = load("half_cheetah")[0]
    volume = capsules(0.046, [0.5, 0.15, 0.145, 0.15, 0.094, 0.133, 0.106, 0.07])
    np.testing.assert_allclose(cheetah.body_mass.sum(), 14.0, rtol=1e-12)
    np.testing.assert_allclose(660.8849500774735 * volume, 14.0, rtol=1e-12)
    legs = capsules(0.08, [np.sqrt(0.08) / 2] * 8 + [np.sqrt(0.32) / 2] * 4)
    np.testing.assert_allclose(load("ant")[0].body_mass.sum(), 5 * (4 / 3 * np.pi * 0.25**3 + legs), rtol=1e-12)


@pytest.mark.parametrize(("name", "noise"), [("half_cheetah/direction", 0.1), ("ant/direction", 0.1)])
def test_resets(name, noise):
    """qpos - qpos0 is U(-.1, .1) (variance 1/300), qvel N(0, .01); quaternions have length 1."""
    env = make_env(name, backend="native")
    state = jax.jit(jax.vmap(env.reset, (0, None)))(jax.random.split(jax.random.key(0), 2000), 1.0)
    qpos, qvel = np.asarray(state.physics.qpos), np.asarray(state.physics.qvel)
    free = qpos if name.startswith("half") else np.delete(qpos, [3, 4, 5, 6], axis=1)
    free = free - (0.0 if name.startswith("half") else np.array([0, 0, 0.75] + [0] * 8))
    assert np.abs(free).max() <= noise + 1e-6
    np.testing.assert_allclose(free.var(axis=0), noise**2 / 3, rtol=0.1)
    np.testing.assert_allclose(free.mean(axis=0), 0.0, atol=4 * noise / np.sqrt(3 * 2000))
    np.testing.assert_allclose(qvel.std(axis=0), 0.1, rtol=0.08)
    if name.startswith("ant"):
        np.testing.assert_allclose(np.linalg.norm(qpos[:, 3:7], axis=1), 1.0, rtol=1e-6)


@pytest.mark.parametrize(("height", "done"), [(0.19, True), (0.21, False), (0.99, False), (1.01, True), (np.nan, True)])
def test_ant_ends_outside_its_heights(height, done):
    qpos = jnp.zeros(15).at[2].set(height)
    assert bool(ant.fallen(qpos, jnp.zeros(14))) == done
    assert bool(ant.fallen(qpos, jnp.zeros(14).at[3].set(jnp.inf)))


def test_ant_started_high_is_done_after_its_step():
    """The step's reward counts; the next state is the physics' own (no automatic reset)."""
    env = make_env("ant/direction", backend="native")
    physics = make_physics(ant.ant_model(), "native")
    state = env.reset(jax.random.key(0), 1.0)
    for lift, done in [(0.0, False), (3.0, True)]:
        raised = state.physics.qpos.at[2].add(lift)
        from_there = state._replace(physics=physics.init(raised, state.physics.qvel))
        after = env.step(from_there, jnp.zeros(8), 1.0)
        assert bool(after.done) == done
        speed = (after.physics.qpos[0] - state.physics.qpos[0]) / 0.05
        np.testing.assert_allclose(after.reward, speed + 0.05, rtol=1e-5)


def test_sizes_of_observations():
    for name, sizes in [("half_cheetah/velocity", (20, 17, 20, 17)), ("ant/velocity", (41, 27, 125, 27))]:
        specs = [make_env(name, backend="native", observation=o).spec for o in ("maml", "compact")]
        assert tuple([s.observation_size for s in specs] + [s.init_inputs for s in specs]) == sizes


@pytest.mark.parametrize(("name", "drop"), [("half_cheetah/direction", 1), ("ant/direction", 2)])
def test_compact_observations(name, drop):
    """qpos without the absolute coordinates, and qvel."""
    env = make_env(name, backend="native", observation="compact")
    state = env.reset(jax.random.key(0), 1.0)
    np.testing.assert_array_equal(state.obs, np.concatenate([state.physics.qpos[drop:], state.physics.qvel]))

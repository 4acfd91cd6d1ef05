"""Tasks by identity, navigation, probes, the registry and the Brax adapter."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from fedjax_rl.envs import EnvSpec, make_env, resolve_backend, tasks
from fedjax_rl.envs.base import idle
from fedjax_rl.host import registry


def play(env, actions, task):
    """Rewards [T] and dones [T] of a sequence of actions."""
    state = env.reset(jax.random.key(0), task)
    step = lambda s, a: (lambda s: (s, (s.reward, s.done, s.obs)))(env.step(s, a, task))
    return jax.jit(lambda s, a: jax.lax.scan(step, s, a))(state, actions)[1]


def test_tasks_depend_on_identity_alone():
    """Client 0..199 of 201 have the tasks of 200; both ends of the range are reached; another key, other tasks."""
    draw = tasks.uniform(0.0, 3.0)
    few, more = draw(jax.random.key(0), 200), draw(jax.random.key(0), 201)
    np.testing.assert_array_equal(few, more[:200])
    assert len(np.unique(few)) == 200
    assert few.min() >= 0 and few.min() < 0.1 and few.max() > 2.9 and few.max() < 3
    np.testing.assert_allclose(few.mean(), 1.5, atol=4 * 3 / np.sqrt(12 * 200))
    assert not np.isin(np.asarray(draw(jax.random.key(1), 200)), np.asarray(few)).any()


def test_directions_are_balanced_and_start_forwards():
    np.testing.assert_array_equal(tasks.directions(jax.random.key(0), 5), [1, -1, 1, -1, 1])
    assert tasks.directions(jax.random.key(7), 200).sum() == 0


@pytest.mark.parametrize(("name", "low", "high"), [("half_cheetah/velocity", 0, 2), ("ant/velocity", 0, 3)])
def test_speeds_have_their_range(name, low, high):
    speeds = make_env(name, backend="native").sample_tasks(jax.random.key(0), 1000)
    assert speeds.shape == (1000,) and low <= speeds.min() < low + 0.02 and high - 0.02 < speeds.max() < high


def test_navigation_walks_straight_to_its_goal():
    """Goal (.35, -.2) with full steps towards it: left are (.25, .1), (.15, 0), (.05, 0), (0, 0), ..."""
    env, goal = make_env("navigation"), jnp.array([0.35, -0.2])
    actions = jnp.array([[9.0, -9.0], [0.1, -0.1], [0.1, 0.0], [0.05, 0.0], [0.0, 0.0]])
    rewards, dones, obs = play(env, actions, goal)
    np.testing.assert_allclose(rewards, [-np.hypot(0.25, 0.1), -0.15, -0.05, 0, 0], atol=1e-6)
    np.testing.assert_allclose(obs[0], [0.1, -0.1], rtol=1e-6)
    assert not dones.any() and env.spec.horizon == 100
    goals = env.sample_tasks(jax.random.key(0), 500)
    assert goals.shape == (500, 2) and 0.45 < np.abs(goals).max() <= 0.5


def test_constant_probe_returns_its_horizon():
    rewards, dones, _ = play(make_env("probe/constant"), jnp.zeros((5, 1)), 0.3)
    assert rewards.sum() == 5 == make_env("probe/constant").spec.horizon and not dones.any()


def test_target_probe_has_the_gaussian_value():
    """E -(a - g)^2 = -(m - g)^2 - s^2, over 4000 draws of N(.2, .5^2) and g = -.4: -.36 - .25."""
    env = make_env("probe/target")
    actions = 0.2 + 0.5 * jax.random.normal(jax.random.key(0), (4000, 1, 1))
    rewards, _, _ = jax.vmap(lambda a: play(env, a, -0.4))(actions)
    np.testing.assert_allclose(rewards.mean(), -0.61, atol=4 * 0.7 / np.sqrt(4000))
    np.testing.assert_allclose(play(env, jnp.full((1, 1), -0.1), -0.4)[0], [-0.09], rtol=1e-5)


def test_delayed_probe_pays_at_the_end_for_the_first_action():
    rewards, _, obs = play(make_env("probe/delayed"), jnp.array([[0.5], [9.0], [9.0], [9.0]]), 0.2)
    np.testing.assert_allclose(rewards, [0, 0, 0, -0.09], atol=1e-6)
    np.testing.assert_allclose(obs, [[1, 0.25], [1, 0.5], [1, 0.75], [1, 1]])


@pytest.mark.parametrize(("task", "length"), [(0.0, 1), (2.7, 3), (4.99, 5)])
def test_ending_probe_ends_with_its_tasks_step(task, length):
    _, dones, _ = play(make_env("probe/ending"), jnp.zeros((5, 1)), task)
    assert int(np.argmax(dones)) + 1 == length


@pytest.mark.parametrize("name", [n for n in registry.OWN["environment"] if not n.startswith(("half_cheetah", "ant"))])
def test_specs_are_what_the_functions_return(name):
    env = make_env(name)
    task = jax.tree.map(lambda x: x[1], env.sample_tasks(jax.random.key(0), 3))
    start = env.reset(jax.random.key(0), task)
    after = env.step(start, idle(env.spec), task)
    assert env.spec.name == name and start.obs.shape == after.obs.shape == (env.spec.observation_size,)
    assert jax.tree.map(lambda x: (x.shape, x.dtype), start) == jax.tree.map(lambda x: (x.shape, x.dtype), after)


def test_unknown_names_point_to_the_nearest():
    with pytest.raises(ValueError, match=r"^environment 'half_cheeta/velocty': must be .*mean half_cheetah/velocity"):
        make_env("half_cheeta/velocty")
    with pytest.raises(ValueError, match=r"'brax/hoper'.*'brax/hopper'$"):
        make_env("brax/hoper")
    with pytest.raises(ValueError, match="unknown observation 'full'; choose one of maml, compact"):
        make_env("ant/direction", observation="full")
    with pytest.raises(ValueError, match="unknown physics backend 'cuda'; choose one of auto, native, fused, mjx"):
        make_env("ant/direction", backend="cuda")


def test_auto_is_fused_on_the_cpu_and_mjx_elsewhere(monkeypatch):
    monkeypatch.setattr(jax, "default_backend", lambda: "cpu")
    assert resolve_backend("auto") == resolve_backend("fused") and resolve_backend("mjx") == "mjx"
    monkeypatch.setattr(jax, "default_backend", lambda: "gpu")
    assert resolve_backend("auto") == "mjx" and resolve_backend("native") == "native"


@pytest.mark.filterwarnings("ignore:Brax System")
def test_brax_environment():
    """Brax's own reset (init_q + U(-.01, .01), by hand), reward 1, and done exactly where |pole angle| > 0.2 rad."""
    env = make_env("brax/inverted_pendulum")
    assert env.spec == EnvSpec("brax/inverted_pendulum", 4, 1, 1000, 4)
    np.testing.assert_array_equal(env.sample_tasks(jax.random.key(0), 3), [0, 0, 0])
    state, step = jax.jit(env.reset)(jax.random.key(0), 0.0), jax.jit(env.step)
    _, *keys = jax.random.split(jax.random.key(0), 3)
    drawn = [jax.random.uniform(key, (2,), minval=-0.01, maxval=0.01) for key in keys]
    np.testing.assert_allclose(state.obs, np.concatenate(drawn), atol=1e-7)
    assert state.reward == 0 and not state.done
    dones = []
    for _ in range(8):
        state = step(state, jnp.full(1, 0.5), 0.0)
        assert state.reward == 1.0 and bool(state.done) == (abs(float(state.obs[1])) > 0.2)
        dones.append(bool(state.done))
    assert dones[-1] and not dones[0]

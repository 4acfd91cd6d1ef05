"""MJX against C MuJoCo: one environment step from states along rollouts, and twenty steps from a reset."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from _reference import advance, load, place, relative_error

from fedjax_rl.envs import make_env

EPISODES, STEPS, EVERY = 16, 75, 5
BATCH = EPISODES * STEPS // EVERY  # 240 states
# Standard deviation of the control u: the half-cheetah is thrown about, the ant kept near the floor.
SPREAD = {"half_cheetah": 1.0, "ant": 0.2}


class Trip:
    """Rollouts of random actions on native physics, and one compiled step of [240] on each engine."""

    def __init__(self, robot):
        self.robot = robot
        self.native = make_env(f"{robot}/direction", backend="native")
        self.mjx = make_env(f"{robot}/direction", backend="mjx")
        self.step = {"native": self.compiled(self.native), "mjx": self.compiled(self.mjx)}
        self.start = jax.vmap(self.native.reset, (0, None))(jax.random.split(jax.random.key(0), BATCH), 1.0)
        shape = (STEPS, BATCH, self.native.spec.action_size)
        self.actions = 10 * SPREAD[robot] * jax.random.normal(jax.random.key(1), shape)

    @staticmethod
    def compiled(env):
        return jax.jit(jax.vmap(env.step, (0, 0, None)))

    def on_mjx(self, state):
        """The same positions and velocities as an MJX state, with a cold start of the solver where there is none."""
        physics = jax.vmap(lambda q, v: state.physics._replace(qpos=q, qvel=v, engine=jnp.zeros_like(v)))
        return state._replace(physics=physics(state.physics.qpos, state.physics.qvel))


@pytest.fixture(scope="module", params=["half_cheetah", "ant"])
def trip(request):
    return Trip(request.param)


def along_rollouts(trip):
    """(qpos, qvel, warm start, ctrl), 240 rows each: every fifth step of 16 episodes of 75 steps."""
    model, data = load(trip.robot)
    ctrl = np.clip(np.asarray(trip.actions) / 10, -1, 1)
    rows = []
    for episode in range(EPISODES):
        place(model, data, trip.start.physics.qpos[episode], trip.start.physics.qvel[episode])
        for t in range(STEPS):
            if t % EVERY == EVERY - 1:
                rows.append((data.qpos.copy(), data.qvel.copy(), data.qacc_warmstart.copy(), ctrl[t, episode]))
            advance(model, data, ctrl[t, episode], trip.robot)
    return [np.stack(column).astype(np.float32) for column in zip(*rows, strict=True)]


def test_one_environment_step_against_converged_c_mujoco(trip):
    """99th percentile of |v - v_C| / max(|v_C|, 1) over 240 states, C MuJoCo iterated to float64's last digits.

    Measured: half-cheetah MEASURED_HC, ant MEASURED_ANT. (Ant with Gym's pyramidal cones: 4e-2.)
    """
    qpos, qvel, warmstart, ctrl = along_rollouts(trip)
    physics = trip.start.physics._replace(qpos=jnp.array(qpos), qvel=jnp.array(qvel), engine=jnp.array(warmstart))
    after = trip.step["mjx"](trip.start._replace(physics=physics), 10 * jnp.array(ctrl), 1.0)
    model, data = load(trip.robot, converged=True)
    reference = []
    for row in zip(qpos, qvel, warmstart, ctrl, strict=True):
        place(model, data, *row[:3])
        advance(model, data, row[3], trip.robot)
        reference.append(data.qvel.copy())
    error = relative_error(after.physics.qvel, np.stack(reference))
    print(trip.robot, "one step", np.percentile(error, [50, 95, 99, 100]))
    assert np.percentile(error, 99) <= 1e-3
    assert np.percentile(error, 50) <= 1e-5


def test_twenty_steps_against_native(trip):
    """Observations and returns after 20 steps of the same actions; contacts make single episodes part ways."""
    state = {"native": trip.start, "mjx": trip.on_mjx(trip.start)}
    total = {"native": 0.0, "mjx": 0.0}
    for t in range(20):
        for name, step in trip.step.items():
            state[name] = step(state[name], trip.actions[t], 1.0)
            total[name] += state[name].reward
    apart = np.abs(np.asarray(state["mjx"].obs - state["native"].obs)).max(axis=1)
    returns = np.abs(np.asarray(total["mjx"] - total["native"]))
    print(
        trip.robot, "20 steps", np.percentile(apart, [50, 90, 95, 99, 100]), np.percentile(returns, [50, 90, 95, 100])
    )
    print(np.mean(np.asarray(state["mjx"].done != state["native"].done)))

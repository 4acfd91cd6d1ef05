"""Robots of one's own: models edited by hand in plain MuJoCo, closed forms, and MJX against both."""

import jax
import jax.numpy as jnp
import mujoco
import numpy as np
import pytest
from _reference import advance, load, place, relative_error

from fedjax_rl.envs import ant, dynamics, half_cheetah, make_env
from fedjax_rl.envs.physics import Factors, make_physics
from fedjax_rl.envs.physics.mjx import inverse_weights
from fedjax_rl.envs.physics.native import _Stepper, compile_model

MODELS = {"half_cheetah": half_cheetah.half_cheetah_model, "ant": ant.ant_model}
SIZES = {"half_cheetah": (7, 6), "ant": (9, 8)}  # bodies, motors
ROBOTS = list(MODELS)
G = 9.81  # m/s^2


def edited(robot, task, converged=False):
    """(model, data) of a robot whose masses, inertias, friction and gears are edited by hand."""
    model, data = load(robot, converged)
    mass = np.concatenate([[1.0], np.asarray(task.mass, np.float64)])
    model.body_mass[:] *= mass
    model.body_inertia[:] *= mass[:, None]
    model.pair_friction[:] *= np.float64(task.friction)
    model.actuator_gear[:] *= np.asarray(task.gear, np.float64)[:, None]
    mujoco.mj_setConst(model, data)
    return model, data


def ones(robot, **changes):
    """The plain robot's factors, but for those given."""
    bodies, motors = SIZES[robot]
    plain = Factors(jnp.ones(bodies + 1), jnp.ones(bodies + 1), jnp.ones(()), jnp.ones(motors))
    return plain._replace(**changes)


def pick(tree, *index):
    return jax.tree.map(lambda x: x[index], tree)


@pytest.fixture(scope="module", params=ROBOTS)
def cohort(request):
    """(robot, physics, start [M, E], controls [T, M, E, nu], tasks [M]) on native physics."""
    physics = make_physics(MODELS[request.param](), "native")
    model, _ = load(request.param)
    rng = np.random.default_rng(0)
    qpos = np.float32(model.qpos0 + rng.uniform(-0.1, 0.1, (2, 3, model.nq)))
    qvel = np.float32(rng.normal(size=(2, 3, model.nv)))
    ctrl = np.float32(rng.uniform(-1.2, 1.2, (12, 2, 3, model.nu)))
    tasks = dynamics.log_uniform(*SIZES[request.param])(jax.random.key(4), 2)
    return request.param, physics, jax.vmap(jax.vmap(physics.init))(qpos, qvel), ctrl, tasks


def rollout(physics, start, ctrl, factors):
    """Final engine rows [M, E, 2 W], each client with factors of its own."""
    step = jax.vmap(jax.vmap(physics.step, (0, 0, None)))
    run = jax.jit(lambda s, u, f: jax.lax.scan(lambda s, u: (step(s, u, f), None), s, u)[0])
    return np.asarray(run(start, ctrl, factors).engine)


def test_native_has_the_bits_of_models_edited_by_hand(cohort):
    """Also when the clients change places in a batch that was written before, and a plain batch runs in between."""
    robot, physics, start, ctrl, tasks = cohort
    for order in [[0, 1], [1, 0]]:
        own = jax.tree.map(lambda x: x[jnp.array(order)], tasks)
        rows = rollout(physics, start, ctrl, jax.vmap(dynamics.factors)(own)).view(np.float64)
        for client, episode in np.ndindex(2, 3):
            model, data = edited(robot, pick(own, client))
            place(model, data, start.qpos[client, episode], start.qvel[client, episode])
            for u in ctrl[:, client, episode]:
                advance(model, data, u, robot)
            expected = np.concatenate([data.qpos, data.qvel, data.qacc_warmstart])
            np.testing.assert_array_equal(rows[client, episode], expected)
        plain = jax.vmap(jax.vmap(physics.step))(start, ctrl[0])
        model, data = load(robot)
        place(model, data, start.qpos[1, 2], start.qvel[1, 2])
        advance(model, data, ctrl[0, 1, 2], robot)
        np.testing.assert_array_equal(plain.qpos[1, 2], data.qpos.astype(np.float32))


def test_scale_one_has_the_bits_of_the_plain_robot(cohort):
    robot, physics, start, ctrl, _ = cohort
    factors = jax.tree.map(lambda x: jnp.broadcast_to(x, (2, *x.shape)), ones(robot))
    step = jax.vmap(jax.vmap(physics.step))
    plain = jax.jit(lambda s, u: jax.lax.scan(lambda s, u: (step(s, u), None), s, u)[0])(start, ctrl)
    np.testing.assert_array_equal(rollout(physics, start, ctrl, factors), plain.engine)


def test_alone_equals_inside_the_batch(cohort):
    _, physics, start, ctrl, tasks = cohort
    factors = jax.vmap(dynamics.factors)(tasks)
    together = rollout(physics, start, ctrl, factors)
    for m in range(2):
        alone = rollout(physics, pick(start, slice(m, m + 1)), ctrl[:, m : m + 1], pick(factors, slice(m, m + 1)))
        np.testing.assert_array_equal(alone[0], together[m])


@pytest.mark.parametrize("robot", ROBOTS)
def test_many_sizes_share_one_physics(robot):
    """More sizes than are kept: a batch made again is written again."""
    physics = make_physics(MODELS[robot](), "native")
    model, _ = load(robot)
    state = physics.init(jnp.asarray(model.qpos0, jnp.float32), jnp.ones(model.nv))
    ctrl, factors = jnp.full(model.nu, 0.5), ones(robot, pair_friction=jnp.float32(0.7), body_mass=jnp.float32(1.3))
    alone = np.asarray(physics.step(state, ctrl, factors).engine)
    for size in [*range(1, 12), 1]:
        many = jax.tree.map(lambda x: jnp.repeat(x[None], size, axis=0), state)
        after = jax.vmap(physics.step, (0, None, None))(many, ctrl, factors)
        np.testing.assert_array_equal(after.engine, np.repeat(alone[None], size, axis=0))


def test_factors_that_change_in_place_are_noticed():
    """The memory of a callback's arguments is lent for the call: what was written last is a copy of it."""
    model = ant.ant_model()
    stepper = _Stepper(compile_model(model.xml), model.frame_skip)
    start = stepper.init(np.float32(stepper.model.qpos0), np.zeros(14, np.float32))[2]
    ctrl, factors = np.full(8, 0.5, np.float32), Factors(*map(np.array, ones("ant")))
    before = stepper.step(start, ctrl, factors)
    factors.actuator_gear[:] = 0.0
    after = stepper.step(start, ctrl, factors)
    np.testing.assert_array_equal(after[2], stepper.step(start, np.zeros_like(ctrl), None)[2])
    assert (after[1] != before[1]).any()


@pytest.mark.parametrize("robot", ROBOTS)
def test_a_gear_is_a_factor_of_the_control(robot):
    """Half the gear under u is the plain robot under u / 2, bit for bit; another motor's gear is not."""
    physics = make_physics(MODELS[robot](), "native")
    model, _ = load(robot)
    state = physics.init(jnp.asarray(model.qpos0, jnp.float32), jnp.zeros(model.nv))
    ctrl = jnp.linspace(-1.0, 1.0, model.nu)
    for motor in range(0, model.nu, 3):
        weak = physics.step(state, ctrl, ones(robot, actuator_gear=jnp.ones(model.nu).at[motor].set(0.5)))
        plain = physics.step(state, ctrl.at[motor].multiply(0.5))
        np.testing.assert_array_equal(weak.engine, plain.engine)


def fallen(robot, factors, used):
    """sum_b m_b v_b / (m g t) [3] after a step of t = 0.05 s of `used` from rest in the air, m_b by `factors`."""
    physics = make_physics(MODELS[robot](), "native")
    model, data = load(robot)
    start = model.qpos0.copy()
    start[1 if robot == "half_cheetah" else 2] += 5.0
    ctrl = jnp.full(model.nu, 0.1)
    after = physics.step(physics.init(jnp.asarray(start, jnp.float32), jnp.zeros(model.nv)), ctrl, used)
    place(model, data, after.qpos, after.qvel)
    mujoco.mj_kinematics(model, data)
    mujoco.mj_comPos(model, data)
    masses, momentum = model.body_mass * np.asarray(factors.body_mass), np.zeros(3)
    for body, mass in enumerate(masses):
        jacobian = np.zeros((3, model.nv))
        mujoco.mj_jacBodyCom(model, data, jacobian, None, body)
        momentum += mass * jacobian @ data.qvel
    return momentum / (masses.sum() * G * 0.05)


@pytest.mark.parametrize("robot", ROBOTS)
def test_motors_in_the_air_cannot_change_the_momentum_of_the_scaled_masses(robot):
    """sum_b m_b v_b = (0, 0, -m g t) with the client's own masses; the plain robot's horizontal part is off.

    Semi-implicit Euler conserves momentum up to the timestep's first power: 6e-3 horizontally (ants of four keys; half
    of it at half the timestep), 2 % of the weight.
    """
    factors = dynamics.factors(pick(dynamics.log_uniform(*SIZES[robot])(jax.random.key(0), 1), 0))
    momentum = fallen(robot, factors, factors)
    np.testing.assert_allclose(momentum[:2], 0.0, atol=7e-3)
    np.testing.assert_allclose(momentum[2], -1.0, atol=0.03)
    assert np.abs(fallen(robot, factors, None)[:2]).max() > 0.02


@pytest.mark.parametrize("friction", [0.5, 1.0, 2.0])
def test_a_sliding_half_cheetah_brakes_with_its_friction(friction):
    """Coulomb: the horizontal impulse is 0.4 times the factor times the vertical one, over 0.25 s at 6 m/s."""
    physics = make_physics(half_cheetah.half_cheetah_model(), "native")
    factors = ones("half_cheetah", pair_friction=jnp.float32(friction))
    stand = jax.jit(lambda s, n: jax.lax.fori_loop(0, n, lambda _, s: physics.step(s, jnp.zeros(6), factors), s))
    rest = stand(physics.init(jnp.zeros(9), jnp.zeros(9)), 100)
    after = stand(physics.init(rest.qpos, jnp.zeros(9).at[0].set(6.0)), 5)
    model, data = load("half_cheetah")
    place(model, data, after.qpos, after.qvel)
    mujoco.mj_forward(model, data)
    mujoco.mj_subtreeVel(model, data)
    along, _, up = data.subtree_linvel[1]
    np.testing.assert_allclose((6.0 - along) / (up + G * 0.25), 0.4 * friction, rtol=0.05)


@pytest.mark.parametrize(("robot", "bonus", "cost"), [("half_cheetah", 0.0, 0.05), ("ant", 0.05, 0.005)])
def test_rewards_of_running_forwards_with_a_robot_of_ones_own(robot, bonus, cost):
    """v + bonus - cost |u|^2, v of the edited model's torso; a reset does not depend on the task."""
    env = make_env(f"{robot}/dynamics", backend="native")
    task = pick(env.sample_tasks(jax.random.key(5), 3), 2)
    state = env.reset(jax.random.key(3), task)
    model, data = edited(robot, task)
    place(model, data, state.physics.qpos, state.physics.qvel)
    np.testing.assert_array_equal(state.obs, make_env(f"{robot}/direction").reset(jax.random.key(3), 1.0).obs)
    step = jax.jit(env.step)
    for action in 4 * np.random.default_rng(1).normal(size=(6, model.nu)).astype(np.float32):
        u, before = np.clip(action / 10, -1, 1), data.qpos[0]
        advance(model, data, u, robot)
        state = step(state, jnp.asarray(action), task)
        gain = (data.qpos[0] - before) / 0.05 + bonus - cost * np.sum(u**2)
        np.testing.assert_allclose(state.reward, gain, atol=1e-4)


@pytest.mark.parametrize("robot", ROBOTS)
def test_inverse_weights_are_those_of_mj_setconst(robot):
    derive = jax.jit(inverse_weights(load(robot)[0]))
    tasks = dynamics.log_uniform(*SIZES[robot])(jax.random.key(1), 3)
    for client in range(3):
        model, _ = edited(robot, pick(tasks, client))
        bodies, dofs = derive(jnp.asarray(model.body_mass), jnp.asarray(model.body_inertia))
        np.testing.assert_allclose(bodies, model.body_invweight0, rtol=2e-5)
        np.testing.assert_allclose(dofs, model.dof_invweight0, rtol=2e-5)
    assert np.abs(model.dof_invweight0 / load(robot)[0].dof_invweight0 - 1).max() > 0.03


@pytest.mark.nightly
@pytest.mark.parametrize("robot", ROBOTS)
def test_one_environment_step_of_mjx_against_converged_c_mujoco(robot):
    """As for the plain robots in test_mjx, 72 robots of their own; the first of every eight is the plain one.

    Measured: half-cheetah 2.4e-5 (median 2.1e-7), ant 3.2e-4 (median 2.5e-6), as for the plain robots.
    """
    batch, spread = 72, {"half_cheetah": 1.0, "ant": 0.2}[robot]
    env = make_env(f"{robot}/dynamics", backend="mjx")
    tasks = env.sample_tasks(jax.random.key(0), batch)
    tasks = jax.tree.map(lambda x: x.at[::8].set(1.0), tasks)
    rng, rows, reference = np.random.default_rng(0), [], []
    for client in range(batch):
        model, data = edited(robot, pick(tasks, client))
        fine, at = edited(robot, pick(tasks, client), converged=True)
        noise = rng.uniform(-0.1, 0.1, model.nq)
        place(model, data, model.qpos0 + noise, 0.1 * rng.normal(size=model.nv))
        for _ in range(5 + client % 60):
            advance(model, data, np.clip(spread * rng.normal(size=model.nu), -1, 1), robot)
        ctrl = np.clip(spread * rng.normal(size=model.nu), -1, 1)
        rows.append([np.float32(x) for x in (data.qpos, data.qvel, data.qacc_warmstart, ctrl)])
        place(fine, at, *rows[-1][:3])
        advance(fine, at, rows[-1][3], robot)
        reference.append(at.qvel.copy())
    qpos, qvel, warmstart, ctrl = (jnp.array(np.stack(column)) for column in zip(*rows, strict=True))
    start = env.reset(jax.random.key(0), None)
    states = jax.vmap(lambda q, v, w: start._replace(physics=start.physics._replace(qpos=q, qvel=v, engine=w)))
    after = jax.jit(jax.vmap(env.step))(states(qpos, qvel, warmstart), 10 * ctrl, tasks)
    error = relative_error(after.physics.qvel, np.stack(reference))
    assert np.percentile(error, 99) <= 1e-3
    assert np.percentile(error, 50) <= 1e-5


@pytest.mark.parametrize("robot", ROBOTS)
def test_tasks_are_log_uniform_and_by_identity(robot):
    """log f / log(limit) ~ U[-1, 1]: its ends, mean 0 and variance 1/3; the first of n + 1 robots are those of n."""
    env = make_env(f"{robot}/dynamics", backend="native")
    bodies, motors = SIZES[robot]
    few, many = env.sample_tasks(jax.random.key(0), 500), env.sample_tasks(jax.random.key(0), 501)
    jax.tree.map(lambda x, y: np.testing.assert_array_equal(x, y[:500]), few, many)
    assert jax.tree.map(jnp.shape, few) == dynamics.Dynamics((500, bodies), (500,), (500, motors))
    for values, limit in zip(few, (1.5, 2.0, 1.5), strict=True):
        u = np.log(np.asarray(values, np.float64)) / np.log(limit)
        assert -1 - 1e-6 <= u.min() < -0.98 and 0.98 < u.max() <= 1 + 1e-6
        np.testing.assert_allclose(u.mean(axis=0), 0.0, atol=4 / np.sqrt(3 * 500))
        np.testing.assert_allclose(u.var(axis=0), 1 / 3, rtol=0.2)
    flat = np.concatenate([few.mass, few.friction[:, None], few.gear], axis=1)
    correlation = np.corrcoef(np.log(flat).T) - np.eye(flat.shape[1])
    assert np.abs(correlation).max() < 4.5 / np.sqrt(500)  # every factor is drawn for itself

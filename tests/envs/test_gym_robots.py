"""Hopper, Walker2d and Swimmer against Gymnasium's own: models, trajectories, rewards, ends, both versions' rules."""

import gymnasium
import jax
import jax.numpy as jnp
import mujoco
import numpy as np
import pytest

from fedjax_rl.envs import engine, make_env

CASES = {
    "hopper/run": "Hopper-v5",
    "hopper/run_v4": "Hopper-v4",
    "walker2d/run": "Walker2d-v5",
    "walker2d/run_v4": "Walker2d-v4",
    "swimmer/run": "Swimmer-v5",
}
FIELDS = (
    "body_mass body_inertia body_ipos dof_armature dof_damping jnt_range jnt_pos qpos0 actuator_gear actuator_ctrlrange"
).split()


@pytest.fixture(scope="module", params=CASES)
def both(request):
    """(ours on C MuJoCo, theirs)."""
    theirs = gymnasium.make(CASES[request.param]).unwrapped
    yield make_env(request.param, backend="native"), theirs
    theirs.close()


def test_the_model_is_theirs(both):
    ours, theirs = mujoco.MjModel.from_xml_string(both[0].mjcf), both[1].model
    for field in FIELDS:
        np.testing.assert_allclose(getattr(ours, field), getattr(theirs, field), atol=1e-12, err_msg=field)
    for option in ("timestep", "integrator", "density", "viscosity", "cone", "solver", "impratio"):
        assert getattr(ours.opt, option) == getattr(theirs.opt, option), option


def test_a_hundred_steps_of_both_models_are_equal(both):
    """In float64, from states in the air, on the ground and fallen, with actions of all sizes."""
    ours, theirs = mujoco.MjModel.from_xml_string(both[0].mjcf), both[1].model
    rng, contacts = np.random.default_rng(0), 0
    for number in range(6):
        datas = [mujoco.MjData(model) for model in (ours, theirs)]
        qpos = theirs.qpos0 + rng.uniform(-0.3, 0.3, theirs.nq) * (number > 0)
        qvel = rng.normal(size=theirs.nv) * (number > 2)
        for data in datas:
            data.qpos[:], data.qvel[:] = qpos, qvel
        for _ in range(100):
            ctrl = rng.uniform(-1, 1, theirs.nu)
            for model, data in zip((ours, theirs), datas, strict=True):
                data.ctrl[:] = ctrl
                mujoco.mj_step(model, data, nstep=4)
            assert datas[0].ncon == datas[1].ncon
            contacts += datas[0].ncon
        np.testing.assert_allclose(datas[0].qpos, datas[1].qpos, rtol=1e-7, atol=1e-7)
        np.testing.assert_allclose(datas[0].qvel, datas[1].qvel, rtol=1e-6, atol=1e-6)
    assert contacts > 100 or theirs.ngeom == 4  # the swimmer hits nothing


def test_observations_rewards_and_ends_are_theirs(both):
    """Twenty episodes, each step from the very state that theirs had; also the step in which it falls."""
    ours, theirs = both
    rng, ended = np.random.default_rng(1), 0
    step, reset = jax.jit(ours.step), jax.jit(ours.reset)
    for seed in range(20):
        start, _ = theirs.reset(seed=seed)
        state = reset(jax.random.key(seed), 0.0)
        assert state.obs.shape == start.shape == (ours.spec.observation_size,)
        for number in range(60):
            width = theirs.model.nq + theirs.model.nv
            row = np.concatenate([theirs.data.qpos, theirs.data.qvel, theirs.data.qacc_warmstart])
            at = state.physics._replace(
                qpos=jnp.asarray(row[: theirs.model.nq], jnp.float32),
                qvel=jnp.asarray(row[theirs.model.nq : width], jnp.float32),
                engine=jnp.asarray(row.view(np.uint32)),
            )
            action = rng.uniform(-1, 1, theirs.model.nu).astype(np.float32)
            observed, reward, over, _, _ = theirs.step(action)
            state = step(state._replace(physics=at), jnp.asarray(action), 0.0)
            np.testing.assert_allclose(state.obs, observed, rtol=1e-4, atol=1e-4)
            np.testing.assert_allclose(state.reward, reward, rtol=1e-3, atol=2e-3)
            assert bool(state.done) == over, (seed, number)
            if over:
                ended += 1
                break
    assert ended == (0 if theirs.model.nv == 5 else 20)


def test_resets_are_uniform_about_the_pose(both):
    ours, theirs = both
    states = jax.jit(jax.vmap(lambda k: ours.reset(k, 0.0)))(jax.random.split(jax.random.key(0), 2000))
    noise = theirs._reset_noise_scale
    for drawn, pose in ((states.physics.qpos, theirs.init_qpos), (states.physics.qvel, theirs.init_qvel)):
        apart = np.asarray(drawn) - pose
        assert np.abs(apart).max() <= noise * (1 + 1e-4)
        np.testing.assert_allclose(apart.std(axis=0), noise / np.sqrt(3), rtol=0.05)


def test_a_robot_that_fused_physics_does_not_carry_is_stepped_by_c_mujoco(capsys):
    if engine("half_cheetah/run") == "native":
        pytest.skip("there is no fused physics here at all")
    assert engine("hopper/run") == "native"
    with pytest.raises(ValueError, match="fused physics does not carry"):
        make_env("hopper/run", backend="fused")


@pytest.mark.nightly
@pytest.mark.parametrize("name", ["hopper/run", "walker2d/run", "swimmer/run"])
def test_a_step_on_mjx_is_the_one_on_c_mujoco(name):
    """From 200 states: RK4, limits, contacts and the fluid, up to float32 and MJX's few iterations."""
    native, mjx = (make_env(name, backend=backend) for backend in ("native", "mjx"))
    keys = jax.random.split(jax.random.key(3), 200)
    actions = jax.random.uniform(jax.random.key(4), (200, native.spec.action_size), minval=-1.0, maxval=1.0)
    after = {}
    for which, env in (("native", native), ("mjx", mjx)):

        def three(key, action, env=env):
            state = jax.lax.fori_loop(0, 3, lambda _, s: env.step(s, action, 0.0), env.reset(key, 0.0))
            return state.physics.qpos, state.physics.qvel

        after[which] = jax.jit(jax.vmap(three))(keys, actions)
    for ours, theirs, most in zip(after["mjx"], after["native"], (1e-3, 5e-2), strict=True):
        apart = np.abs(np.asarray(ours) - np.asarray(theirs)).max(axis=1)
        assert np.quantile(apart, 0.95) < most, np.sort(apart)[-20:]

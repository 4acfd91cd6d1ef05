"""Native physics: the bits of a plain mj_step loop, whatever the batching, and no noise when a simulation diverges."""

import os
import re
import subprocess
import sys

import jax
import jax.numpy as jnp
import mujoco
import numpy as np
import pytest
from _reference import advance, load, place

from fedjax_rl.envs import make_env
from fedjax_rl.envs.ant import ant_model
from fedjax_rl.envs.half_cheetah import half_cheetah_model
from fedjax_rl.envs.mujoco_env import load_asset
from fedjax_rl.envs.physics import make_physics

MODELS = {"half_cheetah": half_cheetah_model, "ant": ant_model}
CLIENTS, EPISODES, STEPS = 2, 3, 12


def decode(engine) -> np.ndarray:
    """uint32 [..., 2 W] -> float64 [..., W]."""
    return np.ascontiguousarray(engine).view(np.float64)


@pytest.fixture(scope="module", params=["half_cheetah", "ant"])
def cohort(request):
    """(robot, physics, start [M, E], controls [T, M, E, A])."""
    physics = make_physics(MODELS[request.param](), "native")
    model, _ = load(request.param)
    rng = np.random.default_rng(0)
    qpos = np.float32(model.qpos0 + rng.uniform(-0.1, 0.1, (CLIENTS, EPISODES, model.nq)))
    qvel = np.float32(rng.normal(size=(CLIENTS, EPISODES, model.nv)))
    ctrl = np.float32(rng.uniform(-1.2, 1.2, (STEPS, CLIENTS, EPISODES, model.nu)))
    return request.param, physics, jax.vmap(jax.vmap(physics.init))(qpos, qvel), ctrl


def test_nested_batches_in_a_scan_have_the_bits_of_a_loop(cohort):
    robot, physics, start, ctrl = cohort
    step = jax.vmap(jax.vmap(physics.step))
    final, shown = jax.jit(lambda s, u: jax.lax.scan(lambda s, u: (step(s, u), s.qpos), s, u))(start, ctrl)
    rows = decode(final.engine)
    model, data = load(robot)
    for client, episode in np.ndindex(CLIENTS, EPISODES):
        place(model, data, start.qpos[client, episode], start.qvel[client, episode])
        for t in range(STEPS):
            np.testing.assert_array_equal(shown[t, client, episode], data.qpos.astype(np.float32))
            advance(model, data, ctrl[t, client, episode], robot)
        expected = np.concatenate([data.qpos, data.qvel, data.qacc_warmstart])
        np.testing.assert_array_equal(rows[client, episode], expected)


def test_the_way_from_an_accelerator_has_the_same_bits(cohort, monkeypatch):
    """Where the program runs on a GPU, `jax.pure_callback` brings the arrays to the host; here it can be compared."""
    robot, physics, start, ctrl = cohort
    monkeypatch.setattr(jax, "default_backend", lambda: "gpu")
    other = make_physics(MODELS[robot](), "native")
    monkeypatch.undo()

    def after(engine):
        return jax.jit(jax.vmap(jax.vmap(lambda q, v, u: engine.step(engine.init(q, v), u))))

    near, far = (after(engine)(start.qpos, start.qvel, ctrl[0]) for engine in (physics, other))
    assert "pure_callback" in str(jax.make_jaxpr(other.init)(start.qpos[0, 0], start.qvel[0, 0]))
    jax.tree.map(np.testing.assert_array_equal, near, far)


@pytest.mark.parametrize("robot", ["half_cheetah", "ant"])
def test_listed_pairs_give_the_contacts_that_mujoco_finds(robot):
    """The MJCF lists what may touch; the same geoms with Gym's contypes, friction and margins have the same bits."""
    listed, data = load(robot)
    spec = mujoco.MjSpec.from_string(load_asset(f"{robot}.xml"))
    for pair in list(spec.pairs):
        spec.delete(pair)
    gym = {"half_cheetah": ((0.4, 0.1, 0.1), 0.0, (0, 0.8, 0.01)), "ant": ((1, 0.5, 0.5), 0.01, (0.9, 0.95, 0.001))}
    for geom in spec.geoms:
        geom.contype, geom.conaffinity = (0, 1) if geom.name == "floor" else (1, 0)
        geom.friction, geom.margin, solimp = gym[robot]
        geom.solimp[:3] = solimp
    found = spec.compile()
    found.opt.jacobian = listed.opt.jacobian
    other = mujoco.MjData(found)
    rng = np.random.default_rng(0)
    place(listed, data, data.qpos, rng.normal(size=listed.nv))
    place(found, other, data.qpos, data.qvel)
    contacts = 0
    for ctrl in rng.uniform(-1, 1, (200, listed.nu)):
        advance(listed, data, ctrl, robot)
        advance(found, other, ctrl, robot)
        np.testing.assert_array_equal(data.qpos, other.qpos)
        contacts += data.ncon
    assert listed.npair and not found.npair and contacts > 20


def test_ant_is_gyms_robot_with_the_legs_bases_welded_on():
    """Gym's text has a body for each base; and dense Jacobians, as MuJoCo chooses below 60 degrees of freedom."""
    model, data = load("ant")
    bodies = r"(<geom name=\"(\w+_base)\"[^>]*/>)"
    text, count = re.subn(bodies, r'<body name="\2">\1</body>', load_asset("ant.xml"))
    gyms = mujoco.MjModel.from_xml_string(text)
    other = mujoco.MjData(gyms)
    assert (count, gyms.nbody, model.nbody) == (4, 14, 10) and gyms.opt.jacobian != model.opt.jacobian
    np.testing.assert_allclose(model.dof_invweight0, gyms.dof_invweight0, rtol=1e-10)
    rng = np.random.default_rng(0)
    place(model, data, data.qpos, 0.1 * rng.normal(size=model.nv))
    contacts = 0
    for ctrl in rng.uniform(-0.2, 0.2, (100, model.nu)):  # step by step: a gait amplifies rounding
        place(gyms, other, data.qpos, data.qvel, data.qacc_warmstart)
        advance(gyms, other, ctrl, "ant")
        advance(model, data, ctrl, "ant")
        np.testing.assert_allclose(data.qvel, other.qvel, atol=1e-6)
        contacts += data.ncon
    assert contacts > 50


def test_no_step_reads_a_clock(cohort):
    """mjData.timer stays at zero, which MuJoCo's own package cannot ask for."""
    model, data = load(cohort[0])
    mujoco.mj_step(model, data)
    assert not any(timer.duration for timer in data.timer)


def test_alone_equals_inside_the_batch(cohort):
    _, physics, start, ctrl = cohort
    batch = jax.vmap(jax.vmap(physics.step))(start, ctrl[0])
    for client, episode in np.ndindex(CLIENTS, EPISODES):
        pick = lambda x: x[client, episode]
        alone = jax.jit(physics.step)(jax.tree.map(pick, start), ctrl[0, client, episode])
        jax.tree.map(np.testing.assert_array_equal, alone, jax.tree.map(pick, batch))


def test_an_unbatched_control_is_broadcast_over_the_batch(cohort):
    _, physics, start, ctrl = cohort
    shared = jax.vmap(jax.vmap(physics.step, (0, None)), (0, None))(start, ctrl[0, 0, 0])
    own = jax.vmap(jax.vmap(physics.step))(start, np.broadcast_to(ctrl[0, 0, 0], ctrl[0].shape))
    np.testing.assert_array_equal(shared.engine, own.engine)


@pytest.mark.parametrize("bad", [np.nan, np.inf, 1e30])
def test_a_diverged_episode_is_not_finite_and_leaves_the_others_alone(cohort, bad, tmp_path, monkeypatch):
    """Not reset behind our back, not raised, nothing written to the working directory."""
    monkeypatch.chdir(tmp_path)
    _, physics, start, ctrl = cohort
    step = jax.jit(jax.vmap(jax.vmap(physics.step)))
    rows = decode(start.engine).copy()
    rows[0, 1, start.qpos.shape[-1] + 2] = bad
    good, broken = start, start._replace(engine=jnp.asarray(rows.view(np.uint32)))
    for _ in range(3):
        good, broken = step(good, ctrl[0]), step(broken, ctrl[0])
    assert not np.isfinite(broken.qpos[0, 1]).all()
    others = np.ones((CLIENTS, EPISODES), bool)
    others[0, 1] = False
    np.testing.assert_array_equal(broken.engine[others], good.engine[others])
    assert np.isfinite(broken.qpos[others]).all()
    assert os.listdir(tmp_path) == []


def test_many_batch_sizes_share_one_physics(cohort):
    """More sizes than are kept: the oldest is made again, with the same bits."""
    _, physics, start, ctrl = cohort
    state, u = jax.tree.map(lambda x: x[0, 0], start), ctrl[0, 0, 0]
    alone = np.asarray(physics.step(state, u).engine)
    for size in [*range(1, 12), 1]:
        many = jax.tree.map(lambda x: jnp.repeat(x[None], size, axis=0), state)
        after = jax.vmap(physics.step, (0, None))(many, u)
        np.testing.assert_array_equal(after.engine, np.repeat(alone[None], size, axis=0))


def test_import_is_cheap_and_silent():
    """No simulator and no change of JAX's settings on import; MJX's remark about `warp` is not repeated."""
    code = (
        "import sys, jax, fedjax_rl.envs; "
        "print(sum(m in sys.modules for m in ('mujoco', 'brax')), jax.config.values['jax_cpu_enable_async_dispatch']); "
        "import fedjax_rl.envs.physics.mjx"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True, timeout=120)
    assert done.stdout == "0 True\n"


def test_native_switches_asynchronous_dispatch_off():
    make_env("half_cheetah/direction", backend="native")
    assert jax.config.values["jax_cpu_enable_async_dispatch"] is False

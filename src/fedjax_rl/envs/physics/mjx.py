"""MJX: the simulator inside the compiled program, for GPUs and TPUs and for checks on CPUs.

The carry is (qpos, qvel, qacc_warmstart); everything else in `mjx.Data` is derived from it, so a constant template is
filled in at every environment step and nothing more is stored per episode. MJX's line search is a fixed-length scan:
4 Newton and 4 line-search iterations cost a quarter of the default 4/50 and give the same result to float32 rounding on
half-cheetah, while 1 Newton iteration would be different physics. TF32 and bfloat16 products change the physics, hence
matmul precision "highest".
"""

import contextlib
import io

import jax
import jax.numpy as jnp
import mujoco

from fedjax_rl.envs.physics import Model, Physics, PhysicsState

with contextlib.redirect_stdout(io.StringIO()):  # MJX prints that the optional package `warp` is missing
    from mujoco import mjx


def make_mjx(model: Model) -> Physics:
    """`model` on MJX. A diverged simulation shows as non-finite qpos and qvel."""
    compiled = mujoco.MjModel.from_xml_string(model.xml)
    compiled.opt.iterations = model.mjx_iterations
    compiled.opt.ls_iterations = model.mjx_ls_iterations
    device_model = mjx.put_model(compiled, impl="jax")
    template = mjx.make_data(device_model, impl="jax")

    def init(qpos, qvel):
        return PhysicsState(qpos.astype(jnp.float32), qvel.astype(jnp.float32), jnp.zeros(compiled.nv, jnp.float32))

    def step(state, ctrl):
        data = template.replace(qpos=state.qpos, qvel=state.qvel, qacc_warmstart=state.engine, ctrl=ctrl)
        with jax.default_matmul_precision("highest"), jax.numpy_rank_promotion("allow"):  # MJX promotes ranks
            data = jax.lax.fori_loop(0, model.frame_skip, lambda _, d: mjx.step(device_model, d), data)
        return PhysicsState(data.qpos, data.qvel, data.qacc_warmstart)

    return Physics(init, step)

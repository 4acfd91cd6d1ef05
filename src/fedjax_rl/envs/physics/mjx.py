"""MJX: the simulator inside the compiled program, for GPUs and TPUs and for checks on CPUs.

The carry is (qpos, qvel, qacc_warmstart); everything else in `mjx.Data` is derived from it, so a constant template is
filled in at every environment step and nothing more is stored per episode. MJX's line search is a fixed-length scan:
4 Newton and 4 line-search iterations cost a quarter of the default 4/50 and give the same result to float32 rounding on
half-cheetah, while 1 Newton iteration would be different physics. TF32 and bfloat16 products change the physics, hence
matmul precision "highest".
"""

import contextlib
import io
from collections.abc import Callable

import jax
import jax.numpy as jnp
import mujoco
import numpy as np

from fedjax_rl.envs.physics import Factors, Model, Physics, PhysicsState, scaled
from fedjax_rl.envs.physics.features import features, refuse_state
from fedjax_rl.types import Array

with contextlib.redirect_stdout(io.StringIO()):  # MJX prints that the optional package `warp` is missing
    from mujoco import mjx

# What MuJoCo has and MJX passes over without a word. It refuses more by itself.
UNKNOWN = (
    *("dof_dampingpoly", "jnt_stiffnesspoly", "geom_surfacevel", "pair_adhesion"),
    *("actuator_armature", "actuator_dampingpoly", "actuator_damping"),
)


def inverse_weights(model: mujoco.MjModel) -> Callable[[Array, Array], tuple[Array, Array]]:
    """(body_mass [nbody], body_inertia [nbody, 3]) -> (body_invweight0 [nbody, 2], dof_invweight0 [nv]).

    What `mj_setConst` derives from masses and MJX's step reads. With P_b and R_b the Jacobians [3, nv] of a body's
    centre of mass, along its inertial axes, at qpos0:
        M = diag(armature) + sum_b (m_b P_b'P_b + R_b' diag(I_b) R_b)                           [nv, nv]
        body_invweight0_b = (tr(P_b M^-1 P_b'), tr(R_b M^-1 R_b')) / 3                          0 for a static body
        dof_invweight0 = diag(M^-1), averaged over the three translations and the three rotations of a free joint
    Source: MuJoCo, "Computation", section "Constraint model" (diagonal approximation); `set0` in engine_setconst.c.
    """
    data = mujoco.MjData(model)
    mujoco.mj_forward(model, data)
    linear, angular = np.zeros((2, model.nbody, 3, model.nv))
    for body in range(model.nbody):
        mujoco.mj_jacBodyCom(model, data, linear[body], angular[body], body)
        angular[body] = data.ximat[body].reshape(3, 3).T @ angular[body]
    per_mass = np.einsum("bki,bkj->bij", linear, linear)
    per_inertia = np.einsum("bki,bkj->bkij", angular, angular)
    average = np.eye(model.nv)
    for joint in np.flatnonzero(model.jnt_type == mujoco.mjtJoint.mjJNT_FREE):
        first = model.jnt_dofadr[joint]
        average[first : first + 6, first : first + 6] = np.kron(np.eye(2), np.full((3, 3), 1 / 3))

    def derive(mass, inertia):
        inertial = jnp.einsum("b,bij->ij", mass, per_mass) + jnp.einsum("bk,bkij->ij", inertia, per_inertia)
        inverse = jnp.linalg.inv(jnp.diag(model.dof_armature) + inertial)
        bodies = [jnp.einsum("bij,ij->b", part, inverse) / 3 for part in (per_mass, per_inertia.sum(axis=1))]
        return jnp.stack(bodies, axis=1), average @ jnp.diag(inverse)

    return derive


def make_mjx(model: Model) -> Physics:
    """`model` on MJX. A diverged simulation shows as non-finite qpos and qvel.

    Raises:
      ValueError: the robot has what MJX does not carry.
    """
    compiled = mujoco.MjModel.from_xml_string(model.xml)
    refuse_state(compiled)
    for found in features(compiled, UNKNOWN):
        raise ValueError(f"MJX does not carry {found}; choose the backend native")
    compiled.opt.iterations = model.mjx_iterations
    compiled.opt.ls_iterations = model.mjx_ls_iterations
    device_model = mjx.put_model(compiled, impl="jax")
    template = mjx.make_data(device_model, impl="jax")

    def init(qpos, qvel):
        return PhysicsState(qpos.astype(jnp.float32), qvel.astype(jnp.float32), jnp.zeros(compiled.nv, jnp.float32))

    derive = inverse_weights(compiled)

    def own_model(factors: Factors) -> mjx.Model:
        fields = {name: scaled(getattr(device_model, name), factor) for name, factor in factors._asdict().items()}
        bodies, dofs = derive(fields["body_mass"], fields["body_inertia"])
        return device_model.replace(**fields, body_invweight0=bodies, dof_invweight0=dofs)

    def step(state, ctrl, factors=None):
        data = template.replace(qpos=state.qpos, qvel=state.qvel, qacc_warmstart=state.engine, ctrl=ctrl)
        with jax.default_matmul_precision("highest"), jax.numpy_rank_promotion("allow"):  # MJX promotes ranks
            used = device_model if factors is None else own_model(factors)
            data = jax.lax.fori_loop(0, model.frame_skip, lambda _, d: mjx.step(used, d), data)
        return PhysicsState(data.qpos, data.qvel, data.qacc_warmstart)

    return Physics(init, step)

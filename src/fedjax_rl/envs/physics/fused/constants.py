"""What a simulation may have of its own: fields of mjModel as numbers, or as scalars that follow from factors."""

from collections.abc import Sequence
from typing import NamedTuple

import mujoco
import numpy as np

from fedjax_rl.envs.physics.fused.robot import Robot, factor, solve
from fedjax_rl.envs.physics.fused.scalar import Scalar, total
from fedjax_rl.envs.physics.fused.vectors import cleaned, dot, vector

Row = Sequence[Scalar]
_MIN_FRICTION = 1e-5  # MuJoCo's mjMINMU


class Constants(NamedTuple):
    """mass [nbody]; inertia: a factor of body_inertia [nbody]; friction [npair]; gear [nu]; body_weight and dof_weight:
    the translational body_invweight0 [nbody] and dof_invweight0 [nv]."""

    mass: Row
    inertia: Row
    friction: Row
    gear: Row
    body_weight: Row
    dof_weight: Row


def plain(robot: Robot) -> Constants:
    """The model's own numbers, which fold into the program."""
    m = robot.m
    own = (m.body_mass, np.ones(m.nbody), np.maximum(m.pair_friction[:, 0], _MIN_FRICTION), m.actuator_gear[:, 0])
    return Constants(*map(vector, (*own, m.body_invweight0[:, 0], m.dof_invweight0)))


def scaled(
    robot: Robot, mass: Row, inertia: Row, friction: Row, gear: Row, body_weight: Row, dof_weight: Row
) -> Constants:
    """The model's numbers times factors [nbody], [nbody], [npair], [nu]; the weights are those of `inverse_weights`."""
    base = plain(robot)
    product = lambda factors, row: [x * y for x, y in zip(factors, row, strict=True)]
    friction, gear = product(friction, base.friction), product(gear, base.gear)
    return Constants(product(mass, base.mass), inertia, friction, gear, body_weight, dof_weight)


def inverse_weights(robot: Robot, mass: Row, inertia: Row) -> tuple[list[Scalar], list[Scalar]]:
    """Factors of body_mass and body_inertia [nbody] -> (body_invweight0[:, 0] [nbody], dof_invweight0 [nv]).

    With P_b and R_b the Jacobians [3, nv] of a body's centre of mass, along its inertial axes, at qpos0:
        M = diag(armature) + sum_b (m_b P_b'P_b + R_b' diag(I_b) R_b)                           [nv, nv]
        body_invweight0_b = tr(P_b M^-1 P_b') / 3                                              0 for a static body
        dof_invweight0 = diag(M^-1), averaged over the three translations and the three rotations of a free joint
    Source: MuJoCo, "Computation", section "Constraint model" (diagonal approximation); `set0` in engine_setconst.c.
    """
    m = robot.m
    linear, per_mass, per_inertia = _at_qpos0(m)
    M = {}
    for i in range(m.nv):
        for k in (i, *robot.ancestors[i]):
            parts = [mass[b] * per_mass[b, i, k] + inertia[b] * per_inertia[b, i, k] for b in range(1, m.nbody)]
            M[i, k] = total(parts) + (float(m.dof_armature[i]) if i == k else 0.0)
    factors = factor(robot, M)
    dofs = [solve(robot, factors, list(vector(row)))[i] for i, row in enumerate(np.eye(m.nv))]
    for j in np.flatnonzero(m.jnt_type == mujoco.mjtJoint.mjJNT_FREE):
        d = int(m.jnt_dofadr[j])
        for first in (d, d + 3):
            dofs[first : first + 3] = [total(dofs[first : first + 3]) * (1 / 3)] * 3
    bodies = [Scalar(0.0)]
    for b in range(1, m.nbody):
        rows = [list(vector(row)) for row in linear[b]]
        bodies.append(total(dot(row, solve(robot, factors, row)) for row in rows) * (1 / 3))
    return bodies, dofs


def _at_qpos0(m: mujoco.MjModel) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """(P [nbody, 3, nv], m_b P'P [nbody, nv, nv], R' diag(I_b) R [nbody, nv, nv])."""
    data = mujoco.MjData(m)
    mujoco.mj_forward(m, data)
    linear, angular = np.zeros((2, m.nbody, 3, m.nv))
    for body in range(m.nbody):
        mujoco.mj_jacBodyCom(m, data, linear[body], angular[body], body)
        angular[body] = data.ximat[body].reshape(3, 3).T @ angular[body]
    per_mass = np.einsum("b,bki,bkj->bij", m.body_mass, linear, linear)
    per_inertia = np.einsum("bk,bki,bkj->bij", m.body_inertia, angular, angular)
    return cleaned(linear, 1e-3), cleaned(per_mass, 1e-3), cleaned(per_inertia, 1e-3)

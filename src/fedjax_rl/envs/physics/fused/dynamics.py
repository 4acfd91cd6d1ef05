"""Forces without constraints: MuJoCo's qM, qfrc_bias, qfrc_passive and qfrc_actuator."""

from typing import NamedTuple

import mujoco
import numpy as np

from fedjax_rl.envs.physics.fused.constants import Constants
from fedjax_rl.envs.physics.fused.kinematics import Motion
from fedjax_rl.envs.physics.fused.robot import Robot, Sparse
from fedjax_rl.envs.physics.fused.scalar import Scalar, clip
from fedjax_rl.envs.physics.fused.vectors import (
    UNIT,
    Matrix,
    Vector,
    apply,
    cleaned,
    cross,
    dot,
    fixed_rotation,
    matrix,
    plus,
    product,
    times,
    transpose,
    vector,
)


class Inertia(NamedTuple):
    """Of a body, or of it and all below it, about `base`: mass (kg), mass times centre (kg m), rotational inertia
    (kg m^2); and what its motion at qacc = 0 takes: force (N) and torque (N m)."""

    mass: Scalar
    first: Vector
    second: Matrix
    force: Vector
    torque: Vector


def inertia_and_bias(robot: Robot, motion: Motion, constants: Constants) -> tuple[Sparse, list[Scalar]]:
    """(qM, qfrc_bias [nv]): composite bodies, and Newton and Euler from the leaves down (mj_crb, mj_rne).

    qM_ij is the momentum that unit speed of degree i gives the bodies below it, along the axis of j; qfrc_bias_i their
    force and torque at qacc = 0, gravity included, along the axis of i.
    Source: Featherstone, "Rigid Body Dynamics Algorithms", 2008, Sections 5.3 and 6.2.
    """
    m = robot.m
    below = {body: _body_inertia(m, body, motion, constants) for body in range(1, m.nbody)}
    for body in reversed(range(2, m.nbody)):
        parent = int(m.body_parentid[body])
        below[parent] = _together(below[parent], below[body])
    M, bias = {}, []
    for i in range(m.nv):
        I, (angular, linear) = below[int(m.dof_bodyid[i])], motion.axes[i]
        momentum = plus(times(linear, I.mass), cross(angular, I.first))
        spin = plus(apply(I.second, angular), cross(I.first, linear))
        for j in (i, *robot.ancestors[i]):
            M[i, j] = dot(motion.axes[j][0], spin) + dot(motion.axes[j][1], momentum)
        M[i, i] = M[i, i] + float(m.dof_armature[i])
        bias.append(dot(angular, I.torque) + dot(linear, I.force))
    return M, bias


def _body_inertia(m: mujoco.MjModel, body: int, motion: Motion, constants: Constants) -> Inertia:
    turned, omega, alpha = motion.rotation[body], motion.omega[body], motion.alpha[body]
    arm = apply(turned, vector(cleaned(m.body_ipos[body])))
    centre, mass = plus(motion.position[body], arm), constants.mass[body]
    axes = fixed_rotation(m.body_iquat[body])
    local = axes @ np.diag(m.body_inertia[body]) @ axes.T
    local = cleaned(local, 0.1 * local.max())
    is_ball = np.allclose(local, np.eye(3) * local[0, 0], atol=0)  # the same from every side: no rotation
    inertia = matrix(local) if is_ball else product(product(turned, matrix(local)), transpose(turned))
    inertia = tuple(times(row, constants.inertia[body]) for row in inertia)
    lever = plus(cross(alpha, arm), cross(omega, cross(omega, arm)))
    force = times(plus(motion.acceleration[body], lever), mass)
    gyroscopic = cross(omega, apply(inertia, omega))
    torque = plus(plus(apply(inertia, alpha), gyroscopic), cross(centre, force))
    far = dot(centre, centre)
    steiner = lambda i, k: mass * (far * UNIT[i][k] - centre[i] * centre[k])
    second = tuple(tuple(inertia[i][k] + steiner(i, k) for k in range(3)) for i in range(3))
    return Inertia(mass, times(centre, mass), second, force, torque)


def _together(a: Inertia, b: Inertia) -> Inertia:
    second = tuple(plus(x, y) for x, y in zip(a.second, b.second, strict=True))
    return Inertia(a.mass + b.mass, plus(a.first, b.first), second, plus(a.force, b.force), plus(a.torque, b.torque))


def passive_force(robot: Robot, q: list[Scalar], v: list[Scalar]) -> list[Scalar]:
    """qfrc_passive [nv]: -stiffness (q - springref) - damping v."""
    m = robot.m
    force = [-(float(m.dof_damping[i]) * v[i]) for i in range(m.nv)]
    for joint in np.flatnonzero(m.jnt_stiffness):
        d, at = int(m.jnt_dofadr[joint]), int(m.jnt_qposadr[joint])
        force[d] = force[d] - float(m.jnt_stiffness[joint]) * (q[at] - float(m.qpos_spring[at]))
    return force


def actuator_force(robot: Robot, ctrl: list[Scalar], constants: Constants) -> list[Scalar]:
    """qfrc_actuator [nv]: gear times the control, clipped to ctrlrange where there is one."""
    m = robot.m
    force = [Scalar(0.0)] * m.nv
    for u in range(m.nu):
        d = int(m.jnt_dofadr[m.actuator_trnid[u, 0]])
        drive = clip(ctrl[u], *map(float, m.actuator_ctrlrange[u])) if m.actuator_ctrllimited[u] else ctrl[u]
        force[d] = force[d] + constants.gear[u] * drive
    return force

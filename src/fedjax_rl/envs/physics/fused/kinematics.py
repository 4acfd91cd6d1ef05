"""Where the bodies are and how they move: MuJoCo's xmat, xpos, the motion axes of the joints (cdof), and the velocities
and accelerations that qvel alone brings about (cvel, cacc at qacc = 0)."""

from typing import Any, NamedTuple

import mujoco

from fedjax_rl.envs.physics.fused.robot import Robot
from fedjax_rl.envs.physics.fused.scalar import Scalar
from fedjax_rl.envs.physics.fused.vectors import (
    UNIT,
    ZERO,
    Matrix,
    Vector,
    apply,
    cross,
    fixed_rotation,
    matrix,
    plus,
    product,
    rotation,
    times,
    transpose,
    turn,
    vector,
)

_FREE, _SLIDE = mujoco.mjtJoint.mjJNT_FREE, mujoco.mjtJoint.mjJNT_SLIDE


class Motion(NamedTuple):
    """By body: rotation (xmat), position (xpos less `base`, m), omega (rad/s), alpha (rad/s^2) and acceleration of the
    origin (m/s^2, gravity taken as an upward one) at qacc = 0. By degree of freedom: axes, its angular velocity and
    the velocity that it gives the point at `base`.

    base is the origin of the tree's root (m). All else is relative to it, so that float32 is as fine far from the
    world's origin as near it. The world's own entries are those of body 0.
    """

    base: Vector
    rotation: list[Matrix]
    position: list[Vector]
    omega: list[Vector]
    alpha: list[Vector]
    acceleration: list[Vector]
    axes: list[tuple[Vector, Vector]]


def kinematics(robot: Robot, q: list[Scalar], v: list[Scalar]) -> Motion:
    """The motion at qpos q [nq] and qvel v [nv]: mj_kinematics, mj_comVel and the first pass of mj_rne."""
    m = robot.m
    none = [(ZERO, ZERO)] * m.nv
    out = Motion(ZERO, [UNIT], [ZERO], [ZERO], [ZERO], [vector(-m.opt.gravity)], none)
    for body in range(1, m.nbody):
        out = _body(m, body, q, v, out)
    return out


def _body(m: mujoco.MjModel, body: int, q: list[Scalar], v: list[Scalar], out: Motion) -> Motion:
    """The motion with one more body: where its parent carries it, then its joints in turn."""
    parent, is_root = int(m.body_parentid[body]), m.body_parentid[body] == 0
    arm = apply(out.rotation[parent], vector(m.body_pos[body]))
    base, position = (arm, ZERO) if is_root else (out.base, plus(out.position[parent], arm))
    turned = product(out.rotation[parent], matrix(fixed_rotation(m.body_quat[body])))
    omega, alpha = out.omega[parent], out.alpha[parent]
    lever = plus(cross(alpha, arm), cross(omega, cross(omega, arm)))
    acceleration = plus(out.acceleration[parent], lever)
    axes = list(out.axes)
    for joint in range(m.body_jntadr[body], m.body_jntadr[body] + m.body_jntnum[body]):
        at, d = int(m.jnt_qposadr[joint]), int(m.jnt_dofadr[joint])
        if m.jnt_type[joint] == _FREE:  # speeds: of the origin in the world's axes, then about the body's own
            base, turned = tuple(q[at : at + 3]), rotation(tuple(q[at + 3 : at + 7]))
            axes[d : d + 3] = [(ZERO, unit) for unit in UNIT]
            axes[d + 3 : d + 6] = [(column, ZERO) for column in transpose(turned)]
            omega = apply(turned, tuple(v[d + 3 : d + 6]))
            continue
        axis, shift = apply(turned, vector(m.jnt_axis[joint])), q[at] - float(m.qpos0[at])
        if m.jnt_type[joint] == _SLIDE:
            base = plus(base, times(axis, shift))
            axes[d] = (ZERO, axis)
            continue
        axes[d] = (axis, cross(position, axis))
        spin = times(axis, v[d])
        alpha, omega = plus(alpha, cross(omega, spin)), plus(omega, spin)
        turned = product(turned, turn(vector(m.jnt_axis[joint]), shift))
    grown: Any = zip(out[1:6], (turned, position, omega, alpha, acceleration), strict=True)
    return Motion._make([base, *[[*values, value] for values, value in grown], axes])


def velocity_of(axes: tuple[Vector, Vector], point: Vector) -> Vector:
    """What a degree of freedom gives a point, relative to `base`: a column [3] of mj_jac."""
    angular, linear = axes
    return plus(linear, cross(angular, point))

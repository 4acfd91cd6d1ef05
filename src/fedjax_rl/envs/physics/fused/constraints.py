"""Contacts and limits: MuJoCo's efc_J, efc_pos, efc_D and efc_aref.

Rows exist whether or not they are active: an inactive one has efc_D = 0 and with it no cost and no force.
"""

from typing import NamedTuple

import numpy as np

from fedjax_rl.envs.physics.fused.constants import Constants
from fedjax_rl.envs.physics.fused.kinematics import Motion, velocity_of
from fedjax_rl.envs.physics.fused.robot import Point, Robot
from fedjax_rl.envs.physics.fused.scalar import Scalar, clip, minimum, total, where
from fedjax_rl.envs.physics.fused.vectors import Vector, apply, plus

_MIN_IMPEDANCE, _MAX_IMPEDANCE = 0.0001, 0.9999  # MuJoCo's mjMINIMP, mjMAXIMP
_MIN_WIDTH = 1e-15  # MuJoCo's mjMINVAL


class Contact(NamedTuple):
    """A point that may touch the floor.

    active: a mask, whether it does. J: by degree of freedom, the velocity (x, y, z) that it gives the point. axes: z,
    and those of x and y in which the point can move (x for a planar robot). D, mu: efc_D and the friction.
    aref: the reference acceleration along x, y, z (m/s^2).
    """

    active: object
    J: dict[int, Vector]
    axes: tuple[int, ...]
    D: Scalar
    mu: Scalar
    aref: Vector

    def along(self, x: list[Scalar]) -> list[Scalar]:
        """J x, along `axes`."""
        return [total(column[k] * x[i] for i, column in self.J.items()) for k in self.axes]

    def full(self, row: list[Scalar]) -> Vector:
        """What is given along `axes`, as a vector."""
        known = dict(zip(self.axes, row, strict=True))
        return tuple(known.get(k, Scalar(0.0)) for k in range(3))


class Limit(NamedTuple):
    """The nearer end of a joint's range: degree of freedom, efc_J (1 at the lower end, else -1), efc_D and efc_aref."""

    dof: int
    sign: Scalar
    D: Scalar
    aref: Scalar


def contacts(robot: Robot, motion: Motion, v: list[Scalar], constants: Constants) -> list[Contact]:
    """A contact for each point that the MJCF's pairs let touch the floor."""
    return [_contact(robot, point, motion, v, constants) for point in robot.points]


def _contact(robot: Robot, point: Point, motion: Motion, v: list[Scalar], constants: Constants) -> Contact:
    m = robot.m
    x, y, z = plus(motion.position[point.body], apply(motion.rotation[point.body], point.centre))
    distance = motion.base[2] + z - (point.radius + point.floor)  # contact.dist
    J = {i: velocity_of(motion.axes[i], (x, y, z - point.radius - 0.5 * distance)) for i in _chain(robot, point.body)}
    # along z always: aref alone pushes there on a point that cannot move along it, and so decides its friction
    axes = tuple(k for k in range(3) if k == 2 or not all(column[k].is_known(0) for column in J.values()))
    position = distance - float(m.pair_margin[point.pair])  # efc_pos
    solver = m.pair_solref[point.pair], m.pair_solimp[point.pair]
    stiffness, damping, impedance = _kbi(m.opt.timestep, position, *solver)
    mu, weight = constants.friction[point.pair], constants.body_weight[point.body]
    if not m.opt.cone:  # pyramidal: the diagonal of A for an edge, n + mu t
        weight = weight * (1.0 + mu * mu) * (2.0 * mu * mu)
    D = where(position < 0.0, impedance / (weight * (1.0 - impedance)), 0.0)
    speed = [total(column[k] * v[i] for i, column in J.items()) for k in range(3)]
    ax, ay, az = (-damping * s for s in speed)
    return Contact(position < 0.0, J, axes, D, mu, (ax, ay, az - stiffness * impedance * position))


def _chain(robot: Robot, body: int) -> tuple[int, ...]:
    """The degrees of freedom that move a body, its own last one first."""
    m = robot.m
    while not m.body_dofnum[body]:
        body = int(m.body_parentid[body])
    last = int(m.body_dofadr[body] + m.body_dofnum[body]) - 1
    return (last, *robot.ancestors[last])


def limits(robot: Robot, q: list[Scalar], v: list[Scalar], constants: Constants) -> list[Limit]:
    """A limit for each joint that has one."""
    m, found = robot.m, []
    for joint in np.flatnonzero(m.jnt_limited):
        d, angle = int(m.jnt_dofadr[joint]), q[int(m.jnt_qposadr[joint])]
        below, above = angle - float(m.jnt_range[joint, 0]), float(m.jnt_range[joint, 1]) - angle
        sign = where(below < above, 1.0, -1.0)
        position = minimum(below, above) - float(m.jnt_margin[joint])  # efc_pos
        solver = m.jnt_solref[joint], m.jnt_solimp[joint]
        stiffness, damping, impedance = _kbi(m.opt.timestep, position, *solver)
        D = where(position < 0.0, impedance / (constants.dof_weight[d] * (1.0 - impedance)), 0.0)
        found.append(Limit(d, sign, D, -damping * sign * v[d] - stiffness * impedance * position))
    return found


def _kbi(timestep: float, position: Scalar, solref: np.ndarray, solimp: np.ndarray) -> tuple[float, float, Scalar]:
    """efc_KBIP: stiffness (1/s^2), damping (1/s), impedance at a negative position, for a power of 2.

    aref = -B v - K d r with d the impedance, which rises from d_0 to d_width by two parabolas. D = d / ((1 - d) A).
    Source: MuJoCo, "Modeling", section "Solver parameters".
    """
    first, last, middle = np.clip(solimp[[0, 1, 3]], _MIN_IMPEDANCE, _MAX_IMPEDANCE).tolist()
    width = float(solimp[2])
    time, ratio = max(float(solref[0]), 2 * timestep), float(solref[1])
    stiffness, damping = 1 / (last * time * ratio) ** 2, 2 / (last * time)
    if first == last or width <= _MIN_WIDTH:
        return stiffness, damping, Scalar(0.5 * (first + last))
    share = minimum(position * (-1 / width), 1.0)
    rest = 1.0 - share
    rise = where(share < middle, share * share * (1 / middle), 1.0 - rest * rest * (1 / (1 - middle)))
    return stiffness, damping, clip(first + rise * (last - first), min(first, last), max(first, last))

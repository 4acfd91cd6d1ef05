"""A model as the generator reads it, and linear algebra on its tree's sparsity."""

from typing import NamedTuple

import mujoco
import numpy as np

from fedjax_rl.envs.physics.fused.refusals import refuse
from fedjax_rl.envs.physics.fused.scalar import Scalar
from fedjax_rl.envs.physics.fused.vectors import Vector, cleaned, fixed_rotation, vector

Sparse = dict[tuple[int, int], Scalar]  # lower entries (i, j) of a symmetric matrix, j = i or an ancestor of i


class Point(NamedTuple):
    """A sphere that may touch the floor: a geom's own, or an end of a capsule.

    pair: row of the MJCF's pairs; body; centre: in the body's frame (m); radius (m); floor: the plane's height (m).
    """

    pair: int
    body: int
    centre: Vector
    radius: float
    floor: float


class Robot(NamedTuple):
    """m: mjModel; ancestors: of every degree of freedom, nearest first; points: that may touch the floor."""

    m: mujoco.MjModel
    ancestors: tuple[tuple[int, ...], ...]
    points: tuple[Point, ...]


def read(xml: str) -> Robot:
    """The robot of an MJCF text.

    Raises:
      ValueError: the MJCF has something that the generator does not carry; the message names it.
    """
    m = mujoco.MjModel.from_xml_string(xml)
    refuse(m)
    ancestors: list[tuple[int, ...]] = []
    for parent in map(int, m.dof_parentid):
        ancestors.append(() if parent < 0 else (parent, *ancestors[parent]))
    return Robot(m, tuple(ancestors), tuple(_points(m)))


def _points(m: mujoco.MjModel):
    for pair, (plane, geom) in enumerate(zip(m.pair_geom1, m.pair_geom2, strict=True)):
        ends = [np.zeros(3)]
        if m.geom_type[geom] == mujoco.mjtGeom.mjGEOM_CAPSULE:
            axis = m.geom_size[geom, 1] * fixed_rotation(m.geom_quat[geom])[:, 2]
            ends = [axis, -axis]
        radius, height = float(m.geom_size[geom, 0]), float(m.geom_pos[plane, 2])
        if m.body_weldid[m.geom_bodyid[geom]] == 0:
            continue  # nothing moves it, and so it pushes nothing
        for end in ends:
            centre = vector(cleaned(m.geom_pos[geom] + end))
            yield Point(pair, int(m.geom_bodyid[geom]), centre, radius, height)


def factor(robot: Robot, H: Sparse) -> tuple[Sparse, list[Scalar]]:
    """(L, 1 / D) of H = L' D L, no fill-in from the leaves down: MuJoCo's qLD and qLDiagInv.

    Source: Featherstone, "Rigid Body Dynamics Algorithms", 2008, Section 6.5.
    """
    H, inverse = dict(H), [Scalar(0.0)] * robot.m.nv
    for k in reversed(range(robot.m.nv)):
        inverse[k] = 1.0 / H[k, k]
        for i in robot.ancestors[k]:
            a = H[k, i] * inverse[k]
            for j in (i, *robot.ancestors[i]):
                H[i, j] = H[i, j] - a * H[k, j]
            H[k, i] = a
    return H, inverse


def solve(robot: Robot, factors: tuple[Sparse, list[Scalar]], x: list[Scalar]) -> list[Scalar]:
    """H^-1 x [nv]."""
    L, inverse = factors
    x = list(x)
    for k in reversed(range(robot.m.nv)):
        for i in robot.ancestors[k]:
            x[i] = x[i] - L[k, i] * x[k]
    x = [a * b for a, b in zip(x, inverse, strict=True)]
    for k in range(robot.m.nv):
        for i in robot.ancestors[k]:
            x[k] = x[k] - L[k, i] * x[i]
    return x


def multiply(robot: Robot, M: Sparse, x: list[Scalar]) -> list[Scalar]:
    """M x [nv]."""
    y = [M[i, i] * x[i] for i in range(robot.m.nv)]
    for i in range(robot.m.nv):
        for j in robot.ancestors[i]:
            y[i] = y[i] + M[i, j] * x[j]
            y[j] = y[j] + M[i, j] * x[i]
    return y

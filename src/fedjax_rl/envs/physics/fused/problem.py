"""The problem whose minimum is qacc, as MuJoCo states it: the cost over accelerations a [nv], its gradient and Hessian.

    cost(a) = (a - qacc_smooth)' qM (a - qacc_smooth) / 2 + sum over contacts and limits of s(J a - aref)
    gradient = qM a - qfrc_smooth - qfrc_constraint,    qfrc_constraint = -sum J' s'
    Hessian = qM + sum J' s'' J, with the sparsity of qM: the bodies that a row moves are one chain of the tree
Source: MuJoCo, "Computation", section "Constraint model", primal problem.

Contacts whose point is off the floor in every lane of a vector are skipped: that is most of what makes it fast.
"""

from collections.abc import Callable
from typing import NamedTuple

import mujoco

from fedjax_rl.envs.physics.fused import cone
from fedjax_rl.envs.physics.fused.constraints import Contact, Limit
from fedjax_rl.envs.physics.fused.robot import Robot, Sparse, factor, multiply, solve
from fedjax_rl.envs.physics.fused.scalar import Scalar, if_any, minimum, total, where
from fedjax_rl.envs.physics.fused.vectors import dot

Row = list[Scalar]


class Residuals(NamedTuple):
    """J a - aref: of every contact along its axes, 0 where it is not active, and of every limit (MuJoCo's efc_jar)."""

    contacts: list[Row]
    limits: Row


class Problem(NamedTuple):
    """M: qM; smooth: qfrc_smooth [nv]; free: qacc_smooth [nv] = qM^-1 qfrc_smooth; cone: of the robot's kind."""

    robot: Robot
    M: Sparse
    smooth: Row
    free: Row
    contacts: list[Contact]
    limits: list[Limit]
    cone: Callable


def make_problem(robot: Robot, M: Sparse, smooth: Row, contacts: list[Contact], limits: list[Limit]) -> Problem:
    """The problem of one physics step."""
    shape = cone.ellipse if robot.m.opt.cone == mujoco.mjtCone.mjCONE_ELLIPTIC else cone.pyramid
    return Problem(robot, M, smooth, solve(robot, factor(robot, M), smooth), contacts, limits, shape)


def moved(p: Problem, a: Row) -> Residuals:
    """J a: what accelerations, or a direction, do along the rows."""
    rows = [if_any(c.active, lambda _: c.along(a), [Scalar(0.0)] * len(c.axes)) for c in p.contacts]
    return Residuals(rows, [row.sign * a[row.dof] for row in p.limits])


def residuals(p: Problem, a: Row) -> Residuals:
    """J a - aref."""

    def less(c: Contact, row: Row) -> Row:
        return if_any(c.active, lambda row: [x - c.aref[k] for x, k in zip(row, c.axes, strict=True)], row)

    rows, ends = moved(p, a)
    rows = [less(c, row) for c, row in zip(p.contacts, rows, strict=True)]
    return Residuals(rows, [x - row.aref for x, row in zip(ends, p.limits, strict=True)])


def cost(p: Problem, a: Row, at: Residuals) -> Scalar:
    """The cost at a, whose residuals are `at`."""
    away = [x - y for x, y in zip(a, p.free, strict=True)]
    out = 0.5 * dot(away, multiply(p.robot, p.M, away))
    for c, row in zip(p.contacts, at.contacts, strict=True):
        [out] = if_any(c.active, lambda old: [old[0] + p.cone(c, c.full(row))[0]], [out])
    return out + total(0.5 * limit.D * _below(x) * _below(x) for x, limit in zip(at.limits, p.limits, strict=True))


def constraint_force(p: Problem, at: Residuals) -> Row:
    """qfrc_constraint [nv]."""
    force = _limit_force(p, at)
    for c, row in zip(p.contacts, at.contacts, strict=True):
        change = lambda old, c=c, row=row: _plus(old, _pull(c, p.cone(c, c.full(row))[1]))
        _update(force, list(c.J), c, change)
    return force


def constraint_force_and_hessian(p: Problem, at: Residuals) -> tuple[Row, Sparse]:
    """(qfrc_constraint [nv], the Hessian)."""
    entries = dict(enumerate(_limit_force(p, at))) | p.M  # force at i, Hessian at (i, j)
    for x, limit in zip(at.limits, p.limits, strict=True):
        d = limit.dof
        entries[d, d] = entries[d, d] + where(x < 0.0, limit.D, 0.0)
    for c, row in zip(p.contacts, at.contacts, strict=True):

        def change(old: Row, c: Contact = c, row: Row = row) -> Row:
            _, force, hessian = p.cone(c, c.full(row))
            return _plus(old, _pull(c, force) + _curve(c, hessian))

        chain = list(c.J)
        _update(entries, chain + [(i, j) for n, i in enumerate(chain) for j in chain[n:]], c, change)
    return [entries[i] for i in range(p.robot.m.nv)], {key: entries[key] for key in p.M}


def slope_and_curvature(p: Problem, at: Residuals, along: Residuals, slope: Scalar, curvature: Scalar) -> Row:
    """[first, second] derivative of the cost in a direction that moves the residuals by `along`.

    slope, curvature: what the part without constraints contributes.
    """
    for c, row, step in zip(p.contacts, at.contacts, along.contacts, strict=True):

        def change(old: Row, c: Contact = c, row: Row = row, step: Row = step) -> Row:
            u = c.full(step)
            _, force, hessian = p.cone(c, c.full(row))
            bend = total((1.0 if i == k else 2.0) * h * u[i] * u[k] for (i, k), h in hessian.items())
            return [old[0] - dot(force, u), old[1] + bend]

        slope, curvature = if_any(c.active, change, [slope, curvature])
    for x, u, limit in zip(at.limits, along.limits, p.limits, strict=True):
        pushed = where(x < 0.0, limit.D, 0.0) * u
        slope, curvature = slope + pushed * x, curvature + pushed * u
    return [slope, curvature]


def _below(x: Scalar) -> Scalar:
    return minimum(x, 0.0)


def _plus(a: Row, b: Row) -> Row:
    return [x + y for x, y in zip(a, b, strict=True)]


def _update(entries, keys: list, c: Contact, change: Callable[[Row], Row]) -> None:
    """Change some entries of a list or dictionary where a contact is active."""
    for key, value in zip(keys, if_any(c.active, change, [entries[key] for key in keys]), strict=True):
        entries[key] = value


def _limit_force(p: Problem, at: Residuals) -> Row:
    force = [Scalar(0.0)] * p.robot.m.nv
    for x, limit in zip(at.limits, p.limits, strict=True):
        force[limit.dof] = force[limit.dof] - limit.sign * limit.D * _below(x)
    return force


def _pull(c: Contact, force) -> Row:
    """J' f, along the contact's chain."""
    return [total(column[k] * force[k] for k in c.axes) for column in c.J.values()]


def _curve(c: Contact, hessian: cone.Hessian) -> Row:
    """J' s'' J: the entries (i, j) of the contact's chain, j = i or after it."""
    entry = lambda k, l: hessian.get((min(k, l), max(k, l)), Scalar(0.0))
    columns, out = list(c.J.values()), []
    for n, column in enumerate(columns):
        turned = [total(entry(k, l) * column[l] for l in c.axes) for k in range(3)]
        out += [total(other[k] * turned[k] for k in c.axes) for other in columns[n:]]
    return out

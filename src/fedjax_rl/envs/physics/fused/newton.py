"""MuJoCo's Newton solver, to its end: qacc, by steps along -Hessian^-1 gradient with a line search."""

from typing import NamedTuple

from fedjax_rl.envs.physics.fused import problem
from fedjax_rl.envs.physics.fused.problem import Problem, Residuals, Row
from fedjax_rl.envs.physics.fused.robot import factor, multiply, solve
from fedjax_rl.envs.physics.fused.scalar import Scalar, absolute, repeat, where
from fedjax_rl.envs.physics.fused.vectors import dot

ITERATIONS = 12
TOLERANCE = 1e-9  # a step whose quadratic model gains less is the last one
SEARCHES = 4  # evaluations of one line search; one mostly does
SEARCH_TOLERANCE = 1e-3  # of the slope at its start


class Iterate(NamedTuple):
    """a: qacc [nv]; Ma: qM a; at: residuals; gain: what the last step was to take off the cost; steps: taken."""

    a: Row
    Ma: Row
    at: Residuals
    gain: Scalar
    steps: Scalar


def newton(p: Problem, warm: Row) -> Iterate:
    """The minimum of the problem, from the better of the last step's qacc and qacc_smooth."""
    from_warm, from_free = problem.residuals(p, warm), problem.residuals(p, p.free)
    better = problem.cost(p, warm, from_warm) < problem.cost(p, p.free, from_free)
    choose = lambda ours, theirs: [where(better, x, y) for x, y in zip(ours, theirs, strict=True)]
    a = choose(warm, p.free)
    rows = [choose(x, y) for x, y in zip(from_warm.contacts, from_free.contacts, strict=True)]
    at = Residuals(rows, choose(from_warm.limits, from_free.limits))
    start = Iterate(a, multiply(p.robot, p.M, a), at, Scalar(1.0), Scalar(0.0))
    return repeat(_going, lambda it: _iterate(p, it), start)


def _going(it: Iterate):
    """Not a number compares false: a simulation that has ceased to be finite stops at once."""
    return (it.gain >= TOLERANCE) & (it.steps < ITERATIONS)


def _iterate(p: Problem, it: Iterate) -> Iterate:
    force, hessian = problem.constraint_force_and_hessian(p, it.at)
    gradient = [x - y - z for x, y, z in zip(it.Ma, p.smooth, force, strict=True)]
    direction = [-x for x in solve(p.robot, factor(p.robot, hessian), gradient)]
    Md, along = multiply(p.robot, p.M, direction), problem.moved(p, direction)
    slope = dot(direction, gradient)
    step = _line_search(p, it, direction, Md, along, slope)
    ahead = lambda x, u: [y + step * w for y, w in zip(x, u, strict=True)]
    at = _ahead(it.at, along, step)
    return Iterate(ahead(it.a, direction), ahead(it.Ma, Md), at, -0.5 * step * slope, it.steps + 1.0)


def _ahead(at: Residuals, along: Residuals, step: Scalar) -> Residuals:
    move = lambda x, u: [y + step * w for y, w in zip(x, u, strict=True)]
    rows = [move(x, u) for x, u in zip(at.contacts, along.contacts, strict=True)]
    return Residuals(rows, move(at.limits, along.limits))


def _line_search(p: Problem, it: Iterate, direction: Row, Md: Row, along: Residuals, whole: Scalar) -> Scalar:
    """The step whose slope is at most SEARCH_TOLERANCE of the first, `whole`.

    Newton's method in one dimension, bisection where that leaves the bracket: the cost is convex and piecewise smooth.
    Mostly the full step will do.
    """
    slope = dot(direction, [x - y for x, y in zip(it.Ma, p.smooth, strict=True)])
    curvature = dot(direction, Md)
    active = _going(it)  # a lane that is done must not keep the others searching

    def searching(state):
        _, _, _, count, left = state
        return active & (left > 0.0) & (count < SEARCHES)

    def probe(state):
        step, low, high, count, _ = state
        at = _ahead(it.at, along, step)
        first, second = problem.slope_and_curvature(p, at, along, slope + step * curvature, curvature)
        done = absolute(first) <= absolute(SEARCH_TOLERANCE * whole)
        is_left = first < 0.0
        low, high = where(is_left, step, low), where(is_left, high, step)
        middle = where(high > 1e29, 2.0 * step, 0.5 * (low + high))
        new = step - first / second
        new = where((new > low) & (new < high), new, middle)
        return [where(done, step, new), low, high, count + 1.0, where(done, 0.0, 1.0)]

    start = [Scalar(x) for x in (1.0, 0.0, 1e30, 0.0, 1.0)]
    step = repeat(searching, probe, start)[0]
    return where(curvature > 1e-20, step, 0.0)  # a direction of length 0 has no minimum to find

"""The cost of one contact, its force -dcost/dx and its Hessian, at a residual x = J a - aref along x, y, z (m/s^2).

Source: MuJoCo, "Computation", section "Constraint solver"; mj_constraintUpdate. With equal friction in both tangential
directions the numbers do not depend on how the tangents are chosen, so the world's axes serve.
"""

from fedjax_rl.envs.physics.fused.constraints import Contact
from fedjax_rl.envs.physics.fused.scalar import Scalar, maximum, minimum, sqrt, where
from fedjax_rl.envs.physics.fused.vectors import Vector

Hessian = dict[tuple[int, int], Scalar]  # upper entries (i, k), i <= k, of x, y, z


def pyramid(contact: Contact, x: Vector) -> tuple[Scalar, Vector, Hessian]:
    """(cost, force, Hessian) of cone="pyramidal" in the plane of x and z.

    sum over the edges n + mu t, n - mu t and, for the two across the plane, n: D/2 min(edge, 0)^2.
    """
    D, mu = contact.D, contact.mu
    t, _, n = x
    edges = (n + mu * t, n - mu * t, n)
    a, b, c = (minimum(edge, 0.0) for edge in edges)
    on_a, on_b, on_c = (where(edge < 0.0, D, 0.0) for edge in edges)
    cost = 0.5 * D * (a * a + b * b + 2.0 * c * c)
    force = (-D * mu * (a - b), Scalar(0.0), -D * (a + b + 2.0 * c))
    hessian = {(2, 2): on_a + on_b + 2.0 * on_c, (0, 2): mu * (on_a - on_b), (0, 0): mu * mu * (on_a + on_b)}
    return cost, force, hessian


def ellipse(contact: Contact, x: Vector) -> tuple[Scalar, Vector, Hessian]:
    """(cost, force, Hessian) of cone="elliptic"; with n = x_z and T = |(x_x, x_y)| three zones:

    top, n >= mu T: 0. Bottom, mu n + T <= 0: D/2 |x|^2. Middle: D / (2 (1 + mu^2)) (n - mu T)^2.
    """
    D, mu = contact.D, contact.mu
    tx, ty, n = x
    square = tx * tx + ty * ty
    inverse = 1.0 / sqrt(maximum(square, 1e-20))
    T = square * inverse
    gap = n - mu * T
    is_top, is_bottom = gap >= 0.0, mu * n + T <= 0.0

    def zones(bottom: Scalar | float, middle: Scalar) -> Scalar:
        return where(is_top, 0.0, where(is_bottom, bottom, middle))

    Dm = D / (1.0 + mu * mu)
    cost = zones(0.5 * D * (n * n + square), 0.5 * Dm * gap * gap)
    pull = Dm * gap * mu * inverse
    force = (zones(-D * tx, pull * tx), zones(-D * ty, pull * ty), zones(-D * n, -Dm * gap))
    ux, uy = tx * inverse, ty * inverse
    bend, along = -pull, Dm * mu * mu  # the Hessian across and along the slip; never negative in the middle
    hessian = {
        (2, 2): zones(D, Dm),
        (0, 2): zones(0.0, -Dm * mu * ux),
        (1, 2): zones(0.0, -Dm * mu * uy),
        (0, 0): zones(D, along * ux * ux + bend * (1.0 - ux * ux)),
        (1, 1): zones(D, along * uy * uy + bend * (1.0 - uy * uy)),
        (0, 1): zones(0.0, (along - bend) * ux * uy),
    }
    return cost, force, hessian

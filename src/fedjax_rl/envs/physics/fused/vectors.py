"""Three-vectors (tuples of scalars) and 3 x 3 matrices (tuples of rows)."""

from collections.abc import Iterable

import mujoco
import numpy as np

from fedjax_rl.envs.physics.fused.scalar import Scalar, cos, sin, sqrt, total

Vector = tuple[Scalar, ...]
Matrix = tuple[Vector, ...]


def vector(numbers: Iterable) -> Vector:
    return tuple(map(Scalar, numbers))


ZERO = vector((0, 0, 0))
UNIT = tuple(vector(row) for row in np.eye(3))


def dot(a: Iterable[Scalar], b: Iterable[Scalar]) -> Scalar:
    return total(x * y for x, y in zip(a, b, strict=True))


def plus(a: Vector, b: Vector) -> Vector:
    return tuple(x + y for x, y in zip(a, b, strict=True))


def times(a: Vector, k: Scalar | float) -> Vector:
    return tuple(x * k for x in a)


def cross(a: Vector, b: Vector) -> Vector:
    return (a[1] * b[2] - a[2] * b[1], a[2] * b[0] - a[0] * b[2], a[0] * b[1] - a[1] * b[0])


def transpose(A: Matrix) -> Matrix:
    return tuple(zip(*A, strict=True))


def apply(A: Matrix, x: Vector) -> Vector:
    return tuple(dot(row, x) for row in A)


def product(A: Matrix, B: Matrix) -> Matrix:
    return tuple(apply(transpose(B), row) for row in A)


def cleaned(numbers: np.ndarray, scale: float = 1.0) -> np.ndarray:
    """The numbers of the MJCF's compiler with its rounding errors around 0 made 0, which then fold away."""
    return np.where(np.abs(numbers) < 1e-9 * scale, 0.0, numbers)


def fixed_rotation(quaternion: np.ndarray) -> np.ndarray:
    """The rotation matrix [3, 3] of a known quaternion (w, x, y, z)."""
    out = np.zeros(9)
    mujoco.mju_quat2Mat(out, np.asarray(quaternion, float))
    return cleaned(out.reshape(3, 3), 1e-3)


def matrix(numbers: np.ndarray) -> Matrix:
    return tuple(vector(row) for row in numbers)


def rotation(quaternion: Vector) -> Matrix:
    """The rotation matrix of a quaternion (w, x, y, z), normalised first."""
    w, x, y, z = times(quaternion, 1.0 / sqrt(dot(quaternion, quaternion)))
    return (
        (1 - 2 * (y * y + z * z), 2 * (x * y - w * z), 2 * (x * z + w * y)),
        (2 * (x * y + w * z), 1 - 2 * (x * x + z * z), 2 * (y * z - w * x)),
        (2 * (x * z - w * y), 2 * (y * z + w * x), 1 - 2 * (x * x + y * y)),
    )


def turn(axis: Vector, angle: Scalar) -> Matrix:
    """Rotation about a known unit axis a: a a' + cos (1 - a a') + sin [a]x (Rodrigues)."""
    s, c = sin(angle), cos(angle)
    x, y, z = axis
    skew = ((Scalar(0.0), -z, y), (z, Scalar(0.0), -x), (-y, x, Scalar(0.0)))
    entry = lambda i, j: axis[i] * axis[j] + c * (UNIT[i][j] - axis[i] * axis[j]) + s * skew[i][j]
    return tuple(tuple(entry(i, j) for j in range(3)) for i in range(3))


def quaternion_product(a: Vector, b: Vector) -> Vector:
    """The rotation b, then a (w, x, y, z)."""
    w, x, y, z = a
    return (
        w * b[0] - x * b[1] - y * b[2] - z * b[3],
        w * b[1] + x * b[0] + y * b[3] - z * b[2],
        w * b[2] - x * b[3] + y * b[0] + z * b[1],
        w * b[3] + x * b[2] - y * b[1] + z * b[0],
    )

"""A robot's program: the step, traced and emitted between the loads and stores of its lanes."""

from collections.abc import Callable, Sequence

import jax
import numpy as np

from fedjax_rl.envs.physics.fused import constants
from fedjax_rl.envs.physics.fused.compiler import STATES, whole_text
from fedjax_rl.envs.physics.fused.emit import Emitter
from fedjax_rl.envs.physics.fused.robot import Robot
from fedjax_rl.envs.physics.fused.scalar import Scalar, raw
from fedjax_rl.envs.physics.fused.step import step

_SCALAR = jax.ShapeDtypeStruct((), np.float32)


def widths(robot: Robot, has_factors: bool) -> list[int]:
    """Columns of the inputs: state, controls, and factors of mass, inertia, friction and gear."""
    m = robot.m
    return [m.nq, m.nv, m.nv, m.nu] + ([m.nbody, m.nbody, m.npair, m.nu] if has_factors else [])


def text_of(robot: Robot, has_factors: bool) -> str:
    """The C++ of a robot, whose constants are in the text or, with factors, its inputs."""
    m, columns = robot.m, widths(robot, has_factors)

    def once(inputs):
        """The inverse weights that follow from a simulation's factors: the same in every substep."""
        if not has_factors:
            return []
        bodies, dofs = constants.inverse_weights(robot, *_scalars(inputs[1:3]))
        return [raw(x) for x in bodies + dofs]

    def advance(state, inputs, derived):
        own = constants.plain(robot)
        if has_factors:
            [weights] = _scalars([derived])
            mass, inertia, friction, gear = _scalars(inputs[1:])
            own = constants.scaled(robot, mass, inertia, friction, gear, weights[: m.nbody], weights[m.nbody :])
        q, v, warm, ctrl = _scalars([*state, inputs[0]])
        return [raw(x) for row in step(robot, q, v, warm, ctrl, own) for x in row]

    return whole_text(kernel(once, advance, columns), columns)


def _scalars(rows) -> list[list[Scalar]]:
    return [[Scalar(x) for x in row] for row in rows]


def kernel(once: Callable, advance: Callable, columns: Sequence[int]) -> str:
    """`run(in, out, first, last, n, substeps)`: vectors first to last of n simulations, over row-major arrays.

    Args:
      once: rows of the inputs that stay -> values worked out before the substeps.
      advance: (rows of the state, rows of the inputs that stay, those values) -> the state's columns, a substep later.
      columns: of every input; the first STATES of them are the state.
    """
    emitter, names = Emitter(), []
    for a, size in enumerate(columns):
        names.append([f"{'s' if a < STATES else 'c'}{a}_{j}" for j in range(size)])
    state, inputs = ([[_SCALAR] * len(row) for row in part] for part in (names[:STATES], names[STATES:]))
    derived = _emit(emitter, "    ", once, inputs, args=names[STATES:])
    derived = [emitter.named("    ", "const V", x) for x in derived]
    head, emitter.lines = emitter.lines, []
    traced = (state, inputs, [_SCALAR] * len(derived))
    after = _emit(emitter, "      ", advance, *traced, args=[*names, derived])
    after = [emitter.named("      ", "const V", x) for x in after]
    stepped = [name for row in names[:STATES] for name in row]
    emitter.lines += [f"      {name} = {x};" for name, x in zip(stepped, after, strict=True)]
    places = [(name, a, len(row), j) for a, row in enumerate(names) for j, name in enumerate(row)]
    loads = [f"    V {name} = LOAD(in[{a}], row, {size}, {j});" for name, a, size, j in places]
    stores = [f"    STORE(out[{a}], row, live, {size}, {j}, {name});" for name, a, size, j in places if a < STATES]
    return "\n".join([_BEGIN, *loads, *head, _SUBSTEPS, *emitter.lines, "    }", *stores, _END])


def _emit(emitter: Emitter, indent: str, function: Callable, *shapes, args: Sequence[Sequence[str]]) -> list[str]:
    with jax.disable_jit(False):  # a text is traced whoever asks for it
        closed = jax.make_jaxpr(function)(*shapes)
    return emitter.run(closed.jaxpr, closed.consts, [name for row in args for name in row], indent)


# Lanes past the end repeat the last simulation and are not stored.
_BEGIN = """FN void run(const float* const* in, float* const* out, long first, long last, long n, int substeps) {
  for (long i = first; i < last; i++) {
    long row[W];
    for (int l = 0; l < W; l++) row[l] = i * W + l < n ? i * W + l : n - 1;
    const int live = n - i * W < W ? n - i * W : W;"""
_SUBSTEPS = "    for (int t = 0; t < substeps; t++) {"
_END = "  }\n}"

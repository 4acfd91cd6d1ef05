"""The generator's blocks, given numbers, are float64 arithmetic: each against mjData's field of that name.

No compiler is involved. Tolerances are rounding; 20 states under constraints for each robot.
"""

import mujoco
import numpy as np
import pytest
from _fused import ROBOTS, under_constraints
from _reference import load, place

from fedjax_rl.envs.mujoco_env import load_asset
from fedjax_rl.envs.physics.fused import constants, dynamics, newton, problem, robot, step
from fedjax_rl.envs.physics.fused.constraints import contacts, limits
from fedjax_rl.envs.physics.fused.kinematics import kinematics
from fedjax_rl.envs.physics.fused.scalar import Scalar

STATES = 20


def scalars(row) -> list[Scalar]:
    return [Scalar(float(x)) for x in row]


def numbers(tree) -> np.ndarray:
    return np.array([numbers(x) if isinstance(x, list | tuple) else x.value for x in tree])


class At:
    """One state: the blocks as given scalars, and mjData of the same state after mj_forward, iterated to its end."""

    def __init__(self, name: str, rows):
        self.robot = robot.read(load_asset(f"{name}.xml"))
        self.m, self.d = load(name, converged=True)
        self.m.opt.jacobian = mujoco.mjtJacobian.mjJAC_DENSE  # efc_J as a matrix
        self.rows = rows
        self.q, self.v, self.warm, self.ctrl = map(scalars, rows)
        self.constants = constants.plain(self.robot)
        self.motion = kinematics(self.robot, self.q, self.v)
        self.problem = step.problem_at(self.robot, self.q, self.v, self.ctrl, self.constants)

    def forward(self) -> None:
        """mjData as it was before a test changed it."""
        place(self.m, self.d, *self.rows[:3])
        self.d.ctrl[:] = self.rows[3]
        mujoco.mj_forward(self.m, self.d)

    def dense(self, sparse) -> np.ndarray:
        """[nv, nv] of lower entries."""
        out = np.zeros((self.m.nv, self.m.nv))
        for (i, j), x in sparse.items():
            out[i, j] = out[j, i] = x.value
        return out

    def full_M(self) -> np.ndarray:
        out = np.zeros((self.m.nv, self.m.nv))
        mujoco.mj_fullM(self.m, self.d, out)
        return out

    def update(self, a: np.ndarray) -> tuple[float, np.ndarray]:
        """(cost, gradient [nv]) at the accelerations a, from MuJoCo's own mj_constraintUpdate."""
        jar, cost = self.d.efc_J.reshape(-1, self.m.nv) @ a - self.d.efc_aref, np.zeros((1, 1))
        mujoco.mj_constraintUpdate(self.m, self.d, jar, cost, 0)
        away, M = a - self.d.qacc_smooth, self.full_M()
        return 0.5 * away @ M @ away + cost[0, 0], M @ a - self.d.qfrc_smooth - self.d.qfrc_constraint


@pytest.fixture(scope="module", params=ROBOTS)
def made(request) -> list[At]:
    return [At(request.param, row) for row in zip(*under_constraints(request.param, STATES), strict=True)]


@pytest.fixture
def states(made) -> list[At]:
    for at in made:
        at.forward()
    return made


def assert_close(ours, theirs, rtol=1e-9):
    theirs = np.asarray(theirs)
    np.testing.assert_allclose(np.asarray(ours), theirs, rtol=rtol, atol=rtol * max(1.0, np.abs(theirs).max()))


def test_xmat_and_xpos(states):
    for at in states:
        assert_close(numbers(at.motion.rotation).reshape(-1, 9)[1:], at.d.xmat[1:])
        assert_close((numbers(at.motion.position) + numbers(at.motion.base))[1:], at.d.xpos[1:])


def test_qM_and_qfrc_bias(states):
    for at in states:
        M, bias = dynamics.inertia_and_bias(at.robot, at.motion, at.constants)
        assert_close(at.dense(M), at.full_M())
        assert_close(numbers(bias), at.d.qfrc_bias)


def test_qfrc_passive_qfrc_actuator_and_qacc_smooth(states):
    for at in states:
        assert_close(numbers(dynamics.passive_force(at.robot, at.q, at.v)), at.d.qfrc_passive)
        assert_close(numbers(dynamics.actuator_force(at.robot, at.ctrl, at.constants)), at.d.qfrc_actuator)
        assert_close(numbers(at.problem.free), at.d.qacc_smooth)


def test_a_control_outside_its_range_is_clipped(states):
    at = states[0]
    at.d.ctrl[:] = wide = np.linspace(-3, 3, at.m.nu)
    mujoco.mj_fwdActuation(at.m, at.d)
    assert_close(numbers(dynamics.actuator_force(at.robot, scalars(wide), at.constants)), at.d.qfrc_actuator)


def test_contacts_have_efc_J_efc_D_and_efc_aref(states):
    """In MuJoCo's own contact frames: the rows n, t1, t2 of an elliptic cone, the edges n +- mu t of a pyramid."""
    seen = 0
    for at in states:
        J, nv = at.d.efc_J.reshape(-1, at.m.nv), at.m.nv
        ours = zip(at.robot.points, contacts(at.robot, at.motion, at.v, at.constants), strict=True)
        active = [(point, contact) for point, contact in ours if contact.active]
        assert len(active) == at.d.ncon
        for theirs in at.d.contact:
            place = lambda point: at.d.xpos[point.body] + at.d.xmat[point.body].reshape(3, 3) @ numbers(point.centre)
            same_geom = [x for x in active if at.m.pair_geom2[x[0].pair] == theirs.geom2]
            _, found = min(same_geom, key=lambda x: np.linalg.norm(place(x[0]) - theirs.pos))
            world = np.zeros((3, nv))
            for i, column in found.J.items():
                world[:, i] = numbers(column)
            frame, mu = theirs.frame.reshape(3, 3), found.mu.value
            turn = frame
            if at.m.opt.cone == mujoco.mjtCone.mjCONE_PYRAMIDAL:
                turn = np.stack([frame[0] + sign * mu * frame[k] for k in (1, 2) for sign in (1, -1)])
            rows = slice(theirs.efc_address, theirs.efc_address + len(turn))
            assert_close(turn @ world, J[rows])
            assert_close(turn @ numbers(found.aref), at.d.efc_aref[rows])
            assert_close(np.full(len(turn), found.D.value), at.d.efc_D[rows])
            seen += 1
    assert seen >= 15


def test_limits_have_efc_J_efc_D_and_efc_aref(states):
    seen = 0
    for at in states:
        J = at.d.efc_J.reshape(-1, at.m.nv)
        active = {limit.dof: limit for limit in limits(at.robot, at.q, at.v, at.constants) if limit.D.value > 0}
        rows = np.flatnonzero(at.d.efc_type == mujoco.mjtConstraint.mjCNSTR_LIMIT_JOINT)
        assert set(active) == {int(at.m.jnt_dofadr[at.d.efc_id[row]]) for row in rows}
        for row in rows:
            limit = active[int(at.m.jnt_dofadr[at.d.efc_id[row]])]
            assert limit.sign.value == J[row, limit.dof]
            assert_close(limit.D.value, at.d.efc_D[row])
            assert_close(limit.aref.value, at.d.efc_aref[row])
        seen += len(rows)
    assert seen >= 3


def test_cost_gradient_and_hessian_are_those_of_mj_constraintUpdate(states):
    """At accelerations around the solution, in all zones of the cones; Hessian: differences of MuJoCo's gradient."""
    rng = np.random.default_rng(1)
    for at in states:
        a = at.d.qacc + 3 * rng.normal(size=at.m.nv)
        cost, gradient = at.update(a)
        p, ours = at.problem, scalars(a)
        rows = problem.residuals(p, ours)
        force, hessian = problem.constraint_force_and_hessian(p, rows)
        assert_close(problem.cost(p, ours, rows).value, cost)
        assert_close(at.full_M() @ a - at.d.qfrc_smooth - numbers(force), gradient)
        assert_close(numbers(problem.constraint_force(p, rows)), numbers(force))
        small, columns = 1e-5, []
        for unit in np.eye(at.m.nv):
            columns.append((at.update(a + small * unit)[1] - at.update(a - small * unit)[1]) / (2 * small))
        assert_close(at.dense(hessian), np.stack(columns), rtol=1e-6)


def test_slope_and_curvature_along_a_direction(states):
    """g'd and d'Hd of the gradient and Hessian above."""
    rng = np.random.default_rng(2)
    for at in states:
        a, direction = at.d.qacc + rng.normal(size=at.m.nv), rng.normal(size=at.m.nv)
        p, M = at.problem, at.full_M()
        rows, along = problem.residuals(p, scalars(a)), problem.moved(p, scalars(direction))
        start = direction @ (M @ a - at.d.qfrc_smooth), direction @ M @ direction
        slope, curvature = problem.slope_and_curvature(p, rows, along, *map(Scalar, start))
        assert_close(slope.value, direction @ at.update(a)[1])
        hessian = at.dense(problem.constraint_force_and_hessian(p, rows)[1])
        assert_close(curvature.value, direction @ hessian @ direction)


def test_qacc_and_qfrc_constraint(states):
    for at in states:
        found = newton.newton(at.problem, at.warm)
        assert_close(numbers(found.a), at.d.qacc, rtol=1e-6)
        assert_close(numbers(problem.constraint_force(at.problem, found.at)), at.d.qfrc_constraint, rtol=1e-6)
        assert found.steps.value < newton.ITERATIONS


def test_a_whole_step_is_mj_step(states):
    """In float64 what is left between the two is rounding: the formulas are MuJoCo's."""
    for at in states:
        q, v, warm = step.step(at.robot, at.q, at.v, at.warm, at.ctrl, at.constants)
        mujoco.mj_step(at.m, at.d)
        assert_close(numbers(q), at.d.qpos, rtol=1e-8)
        assert_close(numbers(v), at.d.qvel, rtol=1e-8)
        assert_close(numbers(warm), at.d.qacc_warmstart, rtol=1e-6)
        mujoco.mj_integratePos(at.m, q := at.d.qpos.copy(), at.d.qvel, at.m.opt.timestep)
        assert_close(numbers(step.integrate(at.robot, scalars(at.d.qpos), scalars(at.d.qvel))), q)


@pytest.mark.parametrize("name", ROBOTS)
def test_inverse_weights_are_those_of_mj_setConst_and_so_is_a_step_with_factors(name):
    rng = np.random.default_rng(3)
    for rows in zip(*under_constraints(name, 5), strict=True):
        made = robot.read(load_asset(f"{name}.xml"))
        model, data = load(name, converged=True)
        mass, inertia = (1.5 ** rng.uniform(-1, 1, model.nbody) for _ in range(2))
        friction, gear = 2.0 ** rng.uniform(-1, 1, model.npair), 1.5 ** rng.uniform(-1, 1, model.nu)
        model.body_mass[:] *= mass
        model.body_inertia[:] *= inertia[:, None]
        model.pair_friction[:] *= friction[:, None]
        model.actuator_gear[:] *= gear[:, None]
        mujoco.mj_setConst(model, data)
        bodies, dofs = constants.inverse_weights(made, scalars(mass), scalars(inertia))
        assert_close(numbers(bodies), model.body_invweight0[:, 0])
        assert_close(numbers(dofs), model.dof_invweight0)
        own = constants.scaled(made, *map(scalars, (mass, inertia, friction, gear)), bodies, dofs)
        _, v, _ = step.step(made, *map(scalars, rows), own)
        place(model, data, *rows[:3])
        data.ctrl[:] = rows[3]
        mujoco.mj_step(model, data)
        assert_close(numbers(v), data.qvel, rtol=1e-8)

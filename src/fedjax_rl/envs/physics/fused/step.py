"""One physics step: mj_step with the Euler integrator, from blocks that have MuJoCo's names."""

import mujoco

from fedjax_rl.envs.physics.fused.constants import Constants
from fedjax_rl.envs.physics.fused.constraints import contacts, limits
from fedjax_rl.envs.physics.fused.dynamics import actuator_force, inertia_and_bias, passive_force
from fedjax_rl.envs.physics.fused.kinematics import kinematics
from fedjax_rl.envs.physics.fused.newton import newton
from fedjax_rl.envs.physics.fused.problem import Problem, Row, constraint_force, make_problem
from fedjax_rl.envs.physics.fused.robot import Robot, factor, solve
from fedjax_rl.envs.physics.fused.scalar import cos, sin, sqrt
from fedjax_rl.envs.physics.fused.vectors import dot, quaternion_product, times


def step(robot: Robot, q: Row, v: Row, warm: Row, ctrl: Row, constants: Constants) -> tuple[Row, Row, Row]:
    """(qpos [nq], qvel [nv], qacc_warmstart [nv]) a timestep h later.

        qvel' = qvel + h (qM + h diag(damping))^-1 (qfrc_smooth + qfrc_constraint),  qpos' = qpos + h qvel'
    where qfrc_constraint is that of the problem's minimum and the damping is implicit. Source: MuJoCo, "Computation",
    section "Numerical integration".
    """
    p = problem_at(robot, q, v, ctrl, constants)
    found = newton(p, warm)
    h, damping = float(robot.m.opt.timestep), robot.m.dof_damping
    force = [x + y for x, y in zip(p.smooth, constraint_force(p, found.at), strict=True)]
    implicit = {(i, j): x + h * float(damping[i]) if i == j else x for (i, j), x in p.M.items()}
    acceleration = solve(robot, factor(robot, implicit), force)
    v = [x + h * y for x, y in zip(v, acceleration, strict=True)]
    return integrate(robot, q, v), v, found.a


def problem_at(robot: Robot, q: Row, v: Row, ctrl: Row, constants: Constants) -> Problem:
    """The constraint problem at a state: mj_fwdPosition to mj_fwdAcceleration."""
    motion = kinematics(robot, q, v)
    M, bias = inertia_and_bias(robot, motion, constants)
    forces = zip(passive_force(robot, q, v), actuator_force(robot, ctrl, constants), bias, strict=True)
    smooth = [passive + actuator - b for passive, actuator, b in forces]
    touching, ends = contacts(robot, motion, v, constants), limits(robot, q, v, constants)
    return make_problem(robot, M, smooth, touching, ends)


def integrate(robot: Robot, q: Row, v: Row) -> Row:
    """qpos [nq] a timestep later at constant qvel: mj_integratePos."""
    m, q, h = robot.m, list(q), float(robot.m.opt.timestep)
    for joint in range(m.njnt):
        at, d = int(m.jnt_qposadr[joint]), int(m.jnt_dofadr[joint])
        count = 3 if m.jnt_type[joint] == mujoco.mjtJoint.mjJNT_FREE else 1
        q[at : at + count] = [x + h * y for x, y in zip(q[at : at + count], v[d : d + count], strict=True)]
        if count == 3:
            q[at + 3 : at + 7] = _turned(tuple(q[at + 3 : at + 7]), tuple(v[d + 3 : d + 6]), h)
    return q


def _turned(quaternion, omega, h: float):
    """A quaternion after a time h at constant angular velocity in the body's axes (mju_quatIntegrate)."""
    speed = sqrt(dot(omega, omega) + 1e-20)
    half = speed * (0.5 * h)
    turned = quaternion_product(quaternion, (cos(half), *times(omega, sin(half) / speed)))
    return times(turned, 1.0 / sqrt(dot(turned, turned)))

"""The independent computation: plain `mujoco`, one MjData and a Python loop of `mj_step`."""

import mujoco
import numpy as np

from fedjax_rl.envs.mujoco_env import load_asset

FRAME_SKIP = {"half_cheetah": 5, "ant": 10}


def load(robot: str, converged: bool = False) -> tuple[mujoco.MjModel, mujoco.MjData]:
    """Model and data of a robot; converged: Newton to the last digit of float64 instead of MuJoCo's tolerance.

    With the Jacobians that native physics takes, so that bits can be compared.
    """
    model = mujoco.MjModel.from_xml_string(load_asset(f"{robot}.xml"))
    if robot == "ant":
        model.opt.jacobian = mujoco.mjtJacobian.mjJAC_SPARSE
    if converged:
        model.opt.tolerance, model.opt.ls_tolerance = 1e-15, 1e-10
        model.opt.iterations, model.opt.ls_iterations = 300, 200
    return model, mujoco.MjData(model)


def place(model, data, qpos, qvel, warmstart=0.0) -> None:
    """A fresh simulation at (qpos, qvel)."""
    mujoco.mj_resetData(model, data)
    data.qpos[:], data.qvel[:], data.qacc_warmstart[:] = qpos, qvel, warmstart


def advance(model, data, ctrl, robot: str) -> None:
    """One environment step: the frame skip's loop of mj_step."""
    data.ctrl[:] = ctrl
    for _ in range(FRAME_SKIP[robot]):
        mujoco.mj_step(model, data)


def relative_error(velocity, reference) -> np.ndarray:
    """[B]: |v - v_ref| / max(|v_ref|, 1), Euclidean over the velocities (m/s and rad/s) of one state."""
    error = np.linalg.norm(np.asarray(velocity, np.float64) - reference, axis=1)
    return error / np.maximum(np.linalg.norm(reference, axis=1), 1.0)

"""What the tests of fused physics share: states under constraints, and a program called without XLA."""

import ctypes

import mujoco
import numpy as np
from _reference import advance, load, place

from fedjax_rl.envs.mujoco_env import load_asset
from fedjax_rl.envs.physics.fused import compiler, engine

ROBOTS = ("half_cheetah", "ant")
ROWS = {"half_cheetah": 4, "ant": 6}  # constraint rows that make a state worth testing


def under_constraints(robot: str, count: int, seed: int = 0) -> list[np.ndarray]:
    """[qpos, qvel, warm start, ctrl], `count` rows each: along rollouts of random control, every one in contact.

    float32 numbers, so that both sides start from the same ones.
    """
    model, data = load(robot)
    rng, rows = np.random.default_rng(seed), []
    while len(rows) < count:
        pose = normalised(robot, model.qpos0 + rng.uniform(-0.1, 0.1, model.nq))
        place(model, data, pose, 0.1 * rng.normal(size=model.nv))
        for _ in range(100):
            ctrl = np.clip(rng.normal(size=model.nu), -1, 1) * (rng.uniform() < 0.7)
            advance(model, data, ctrl, robot)
            if data.nefc >= ROWS[robot] and rng.uniform() < 0.3:
                rows.append([np.float32(x) for x in (data.qpos, data.qvel, data.qacc_warmstart, ctrl)])
    return [np.stack(column) for column in zip(*rows[:count], strict=True)]


def normalised(robot: str, qpos: np.ndarray) -> np.ndarray:
    """With a quaternion of unit length."""
    if robot == "ant":
        qpos[3:7] /= np.linalg.norm(qpos[3:7])
    return qpos


def converged_after(model: mujoco.MjModel, rows: list[np.ndarray], steps: int) -> np.ndarray:
    """qvel [B, nv] of C MuJoCo, iterated to its end, `steps` physics steps after each state."""
    data, after = mujoco.MjData(model), []
    for qpos, qvel, warm, ctrl in zip(*rows, strict=True):
        place(model, data, qpos, qvel, warm)
        data.ctrl[:] = ctrl
        mujoco.mj_step(model, data, steps)
        after.append(data.qvel.copy())
    return np.stack(after)


class Program:
    """A loaded program on the calling thread: (inputs [n, ...], substeps) -> [qpos, qvel, warm start]."""

    def __init__(self, text: str, used: compiler.Compiler | None = None):
        library = engine.loaded(text) if used is None else ctypes.CDLL(str(used.build(text)))
        self.call = library.step_here
        self.call.argtypes = [ctypes.c_void_p, ctypes.c_void_p, ctypes.c_long, ctypes.c_int]

    def __call__(self, inputs, substeps: int) -> list[np.ndarray]:
        inputs = [np.ascontiguousarray(x, np.float32) for x in inputs]
        outputs = [np.empty_like(x) for x in inputs[: compiler.STATES]]
        addresses = lambda arrays: (ctypes.c_void_p * len(arrays))(*[x.ctypes.data for x in arrays])
        self.call(addresses(inputs), addresses(outputs), len(inputs[0]), substeps)
        return outputs


def plain(robot: str) -> Program:
    """A robot's program without factors."""
    return Program(engine.text_of(engine.source(load_asset(f"{robot}.xml")), False))


def same_bits(ours, theirs) -> bool:
    """Whether all arrays agree, the signs of zeros and the kinds of NaN too."""
    return all(np.array_equal(x.view(np.uint32), y.view(np.uint32)) for x, y in zip(ours, theirs, strict=True))


def dyadic_states(robot: str, count: int) -> list[np.ndarray]:
    """[qpos, qvel, warm start, ctrl], `count` rows near the floor: multiples of 1/4096, the same on every machine."""
    model, _ = load(robot)
    noise = lambda size, at: (((np.arange(count * size) + 7 * at) * 40503 % 4096) / 2048 - 1).reshape(count, size)
    qpos = np.round((model.qpos0 + 0.125 * noise(model.nq, 1)) * 4096) / 4096
    if robot == "ant":
        qpos[:, 2] -= 0.25
    rows = [qpos, 0.5 * noise(model.nv, 2), np.zeros((count, model.nv)), noise(model.nu, 3)]
    return [np.float32(x) for x in rows]

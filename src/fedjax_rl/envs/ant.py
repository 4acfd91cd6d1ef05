"""Ant: run in a direction, or at a speed (Finn et al., MAML, 2017; Liu, Xu, Wu, Jiang 2024, Section 4.1).
Or run forwards, each client with a robot of its own (`dynamics`).

With u the clipped control and v the torso's mean velocity along x over the step (m/s):
    direction d in {1, -1}:   r = d v + 0.05 - 0.005 |u|^2
    velocity g ~ U[0, 3]:     r = 1 - |v - g| + 0.05 - 0.005 |u|^2
    dynamics:                 r = v + 0.05 - 0.005 |u|^2
An episode ends, after at most 100 steps of 0.05 s, with the step that leaves the torso's height outside [0.2, 1.0] m
or a state not finite; that step's reward counts. The contact cost is zero in this lineage. Standing still earns +5 over
the directions and -45 on average over the speeds; perfect tracking of a speed earns +105.

Gym's ant has pyramidal friction cones, on which MJX and C MuJoCo differ in about 5 % of the states: they choose other
tangent frames for a steep capsule on a plane. With elliptic cones the frame does not matter, and 8 Newton with 8
line-search iterations on MJX bring the 99th percentile of the one-step error of the velocity from 4e-2 to 9e-4. What is
left, in 1 % of the states, is float32: the largest of them agree in float64.
"""

import jax.numpy as jnp

from fedjax_rl.envs import mujoco_env
from fedjax_rl.envs.base import Env, EnvSpec
from fedjax_rl.envs.physics import Model

_NQ, _NV, _NU, _BODIES = 15, 14, 8, 9
_QPOS0 = (0.0, 0.0, 0.75, 1.0) + (0.0,) * 11
_HEIGHTS = (0.2, 1.0)  # m
_CONTROL_COST = 0.005
_SURVIVAL = 0.05
_LINEAGE_INPUTS = 125  # 41 and 84 contact columns that are constantly zero in the lineage


def rotation_matrix(quaternion):
    """Unit quaternion (w, x, y, z) [4] -> rotation matrix, row by row [9]."""
    w, x, y, z = quaternion / jnp.linalg.norm(quaternion)
    return jnp.stack(
        [
            1 - 2 * (y * y + z * z), 2 * (x * y - w * z), 2 * (x * z + w * y),
            2 * (x * y + w * z), 1 - 2 * (x * x + z * z), 2 * (y * z - w * x),
            2 * (x * z - w * y), 2 * (y * z + w * x), 1 - 2 * (x * x + y * y),
        ]
    )  # fmt: skip


def observe_maml(qpos, qvel):
    """[41]: qpos, qvel, the torso's rotation matrix row by row, the torso's position."""
    return jnp.concatenate([qpos, qvel, rotation_matrix(qpos[3:7]), qpos[:3]])


def observe_compact(qpos, qvel):
    """[27]: qpos without x and y, and qvel."""
    return jnp.concatenate([qpos[2:], qvel])


_OBSERVE = {"maml": observe_maml, "compact": observe_compact}


def normalise(qpos):
    """qpos with a unit quaternion."""
    return qpos.at[3:7].divide(jnp.linalg.norm(qpos[3:7]))


def fallen(qpos, qvel):
    """() bool: not finite, or the torso's height outside [0.2, 1.0] m."""
    finite = jnp.isfinite(qpos).all() & jnp.isfinite(qvel).all()
    return ~finite | (qpos[2] < _HEIGHTS[0]) | (qpos[2] > _HEIGHTS[1])


def direction_reward(speed, effort, task):
    """d v + 0.05 - 0.005 |u|^2."""
    return task * speed + _SURVIVAL - _CONTROL_COST * effort


def dynamics_reward(speed, effort, task):
    """v + 0.05 - 0.005 |u|^2, whatever the task."""
    return direction_reward(speed, effort, 1.0)


def velocity_reward(speed, effort, task):
    """1 - |v - g| + 0.05 - 0.005 |u|^2."""
    return 1.0 - jnp.abs(speed - task) + _SURVIVAL - _CONTROL_COST * effort


def ant_model() -> Model:
    """Euler at 0.005 s, 10 substeps a step."""
    return Model(mujoco_env.load_asset("ant.xml"), frame_skip=10, mjx_ls_iterations=8)


def make_ant(name, reward, family, backend, observation, model=None) -> Env:
    """The ant with a reward and tasks of one's own; `model` in place of `ant_model()`."""
    body = mujoco_env.Body(
        model=ant_model() if model is None else model,
        qpos0=_QPOS0,
        nv=_NV,
        normalise=normalise,
        observe=mujoco_env.choose_observation(_OBSERVE, observation),
        done=fallen,
    )
    size, inputs = (41, _LINEAGE_INPUTS) if observation == "maml" else (27, 27)
    spec = EnvSpec(name, observation_size=size, action_size=_NU, horizon=100, init_inputs=inputs)
    return mujoco_env.make_mujoco_env(body, reward, family, spec, backend)


def direction(*, backend: str = "auto", observation: str = "maml") -> Env:
    """Run along +x (task 1) or -x (task -1); directions alternate with the client's number."""
    return make_ant("ant/direction", direction_reward, mujoco_env.DIRECTIONS, backend, observation)


def velocity(*, backend: str = "auto", observation: str = "maml") -> Env:
    """Run along x at the task's speed, U[0, 3] m/s."""
    return make_ant("ant/velocity", velocity_reward, mujoco_env.speeds(3.0), backend, observation)


def dynamics(*, backend: str = "auto", observation: str = "maml") -> Env:
    """Run forwards along x with the task's masses, friction and gears."""
    return make_ant("ant/dynamics", dynamics_reward, mujoco_env.robots(_BODIES, _NU), backend, observation)

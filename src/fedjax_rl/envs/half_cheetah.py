"""Half-cheetah: run in a direction, or at a speed (Finn et al., MAML, 2017; Liu, Xu, Wu, Jiang 2024, Section 4.1).
Or run forwards: each client with a robot of its own (`dynamics`), or all with the same (`run`).

With u the clipped control and v the torso's mean velocity over the step (m/s):
    direction d in {1, -1}:   r = d v - 0.05 |u|^2
    velocity g ~ U[0, 2]:     r = -|v - g| - 0.05 |u|^2
    dynamics, run:            r = v - 0.05 |u|^2
An episode never ends before its 200 steps of 0.05 s. Standing still earns 0, or -200 on average over the speeds;
perfect tracking of a speed earns 0.
"""

import jax.numpy as jnp

from fedjax_rl.envs import mujoco_env
from fedjax_rl.envs.base import Env, EnvSpec
from fedjax_rl.envs.physics import Model

_NQ, _NV, _NU, _BODIES = 9, 9, 6, 7
_TORSO_HEIGHT = 0.7  # m, the torso's origin at rootz = 0
_CONTROL_COST = 0.05


def observe_maml(qpos, qvel):
    """[20]: qpos without rootx, qvel, and the torso's position; the root slides along x and z alone, so y is 0."""
    torso = jnp.stack([qpos[0], jnp.zeros_like(qpos[0]), qpos[1] + _TORSO_HEIGHT])
    return jnp.concatenate([qpos[1:], qvel, torso])


def observe_compact(qpos, qvel):
    """[17]: qpos without rootx, and qvel."""
    return jnp.concatenate([qpos[1:], qvel])


_OBSERVE = {"maml": observe_maml, "compact": observe_compact}


def direction_reward(speed, effort, task):
    """d v - 0.05 |u|^2."""
    return task * speed - _CONTROL_COST * effort


def dynamics_reward(speed, effort, task):
    """v - 0.05 |u|^2, whatever the task."""
    return direction_reward(speed, effort, 1.0)


def velocity_reward(speed, effort, task):
    """-|v - g| - 0.05 |u|^2."""
    return -jnp.abs(speed - task) - _CONTROL_COST * effort


def half_cheetah_model() -> Model:
    """Euler at 0.01 s, 5 substeps a step."""
    return Model(mujoco_env.load_asset("half_cheetah.xml"), frame_skip=5)


def _make(name, reward, family, backend, observation) -> Env:
    body = mujoco_env.Body(
        model=half_cheetah_model(),
        qpos0=(0.0,) * _NQ,
        nv=_NV,
        normalise=lambda qpos: qpos,
        observe=mujoco_env.choose_observation(_OBSERVE, observation),
        done=lambda qpos, qvel: jnp.zeros((), bool),
    )
    size = 20 if observation == "maml" else 17
    spec = EnvSpec(name, observation_size=size, action_size=_NU, horizon=200, init_inputs=size)
    return mujoco_env.make_mujoco_env(body, reward, family, spec, backend)


def direction(*, backend: str = "auto", observation: str = "maml") -> Env:
    """Run forwards (task 1) or backwards (task -1); directions alternate with the client's number."""
    return _make("half_cheetah/direction", direction_reward, mujoco_env.DIRECTIONS, backend, observation)


def velocity(*, backend: str = "auto", observation: str = "maml") -> Env:
    """Run at the task's speed, U[0, 2] m/s."""
    return _make("half_cheetah/velocity", velocity_reward, mujoco_env.speeds(2.0), backend, observation)


def dynamics(*, backend: str = "auto", observation: str = "maml") -> Env:
    """Run forwards with the task's masses, friction and gears."""
    return _make("half_cheetah/dynamics", dynamics_reward, mujoco_env.robots(_BODIES, _NU), backend, observation)


def run(*, backend: str = "auto", observation: str = "maml") -> Env:
    """Run forwards, the one task of all clients."""
    return _make("half_cheetah/run", direction_reward, mujoco_env.FORWARDS, backend, observation)

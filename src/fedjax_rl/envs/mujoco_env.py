"""What the MuJoCo environments share: the reset, the action scale, the step's frame and the families of tasks."""

from collections.abc import Callable
from importlib import resources
from typing import NamedTuple

import jax
import jax.numpy as jnp

from fedjax_rl.envs import dynamics, tasks
from fedjax_rl.envs.base import Env, EnvSpec, EnvState
from fedjax_rl.envs.physics import Factors, Model, make_physics
from fedjax_rl.types import Array, Key, Task

ACTION_SCALE = 10.0
CONTROL_STEP = 0.05  # s between two actions
RESET_NOISE = 0.1


class Body(NamedTuple):
    """A robot: how it starts, and what is read off qpos and qvel.

    Attributes:
      model: the MJCF and its stepping.
      qpos0: the pose [nq] that a reset perturbs (a tuple: nothing touches a device before it is needed).
      nv: the number of velocities.
      normalise: qpos -> qpos with quaternions of unit length.
      observe: (qpos, qvel) -> observation.
      done: (qpos, qvel) -> () bool.
    """

    model: Model
    qpos0: tuple[float, ...]
    nv: int
    normalise: Callable[[Array], Array]
    observe: Callable[[Array, Array], Array]
    done: Callable[[Array, Array], Array]


class TaskFamily(NamedTuple):
    """Tasks of one kind.

    Attributes:
      sample: (key, n) -> the tasks of n clients.
      describe: a task in words.
      factors: what a task makes of the model; None: it stays as it is.
    """

    sample: Callable[[Key, int], Task]
    describe: Callable[[Task], str]
    factors: Callable[[Task], Factors | None] = lambda task: None


DIRECTIONS = TaskFamily(tasks.directions, tasks.say_direction)
FORWARDS = TaskFamily(tasks.forwards, tasks.say_direction)


def speeds(high: float) -> TaskFamily:
    """Speeds U[0, high) in m/s."""
    return TaskFamily(tasks.uniform(0.0, high), tasks.say_speed)


def robots(bodies: int, motors: int) -> TaskFamily:
    """Robots of so many bodies and motors, each with masses, friction and gears of its own."""
    return TaskFamily(dynamics.log_uniform(bodies, motors), dynamics.say, dynamics.factors)


def load_asset(name: str) -> str:
    """The MJCF text of a robot, from the package's data."""
    return resources.files("fedjax_rl.envs").joinpath("assets", name).read_text(encoding="utf-8")


def choose_observation(choices: dict[str, Callable], name: str) -> Callable[[Array, Array], Array]:
    """The observation function of that name."""
    if name not in choices:
        raise ValueError(f"unknown observation {name!r}; choose one of {', '.join(choices)}")
    return choices[name]


def make_mujoco_env(
    body: Body,
    reward: Callable[[Array, Array, Task], Array],
    family: TaskFamily,
    spec: EnvSpec,
    backend: str,
) -> Env:
    """An environment from a body and a reward (v, |u|^2, task) -> ().

    u = clip(a / 10, -1, 1) drives the motors and is charged for; a is what the policy's density sees. v is the mean
    velocity of the torso's origin over the step, (x_after - x_before) / 0.05 in m/s. Reset:
    qpos = qpos0 + U(-0.1, 0.1) on every coordinate, qvel = 0.1 N(0, 1).
    """
    physics = make_physics(body.model, backend)

    def reset(key, task):
        del task
        key_pose, key_speed = jax.random.split(key)
        qpos0 = jnp.asarray(body.qpos0, jnp.float32)
        noise = jax.random.uniform(key_pose, qpos0.shape, minval=-RESET_NOISE, maxval=RESET_NOISE)
        qvel = RESET_NOISE * jax.random.normal(key_speed, (body.nv,))
        state = physics.init(body.normalise(qpos0 + noise), qvel)
        return EnvState(state, body.observe(state.qpos, state.qvel), jnp.zeros(()), jnp.zeros((), bool))

    def step(state, action, task):
        ctrl = jnp.clip(action / ACTION_SCALE, -1.0, 1.0)
        after = physics.step(state.physics, ctrl, family.factors(task))
        speed = (after.qpos[0] - state.physics.qpos[0]) / CONTROL_STEP
        done = body.done(after.qpos, after.qvel)
        gain = reward(speed, jnp.sum(ctrl**2), task)
        return EnvState(after, body.observe(after.qpos, after.qvel), gain, done)

    return Env(reset, step, family.sample, spec, family.describe, body.model.xml)

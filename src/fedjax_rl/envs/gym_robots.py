"""Hopper, Walker2d and Swimmer: run (swim) along x, with the rules of Gymnasium's version 5.

With u the clipped action and v the displacement along x over a step divided by its time (m/s):
    hopper, walker2d:  r = v + 1 - 0.001 |u|^2, without the 1 where the step has ended the episode
    swimmer:           r = v - 0.0001 |u|^2
A reset draws every coordinate and speed uniformly about the model's pose. An episode has at most 1000 steps; a hopper's
or walker's ends where it leaves its healthy heights and angles, and where its state is not finite. `run_v4` has version
4's rules: the 1 is paid for the last step too, and the walker's right foot has a friction of 0.9.

Source: Towers et al., "Gymnasium: A Standard Interface for Reinforcement Learning Environments", 2024, whose
environments follow Erez, Tassa and Todorov (2011), and Coulom (2002).
"""

from collections.abc import Callable
from typing import NamedTuple

import jax
import jax.numpy as jnp

from fedjax_rl.envs import mujoco_env, tasks
from fedjax_rl.envs.base import Env, EnvSpec, EnvState
from fedjax_rl.envs.physics import Model, make_physics
from fedjax_rl.types import Array

_FASTEST = 10.0  # m/s or rad/s of an observation, of the robots that can fall
_INFINITY = 100.0  # of a hopper's coordinate or speed


class Robot(NamedTuple):
    """A robot and its rules.

    Attributes:
      name: of the environment.
      model: its MJCF and stepping.
      qpos0: the pose [nq] of a reset.
      nv, nu: numbers of speeds and motors.
      hidden: coordinates at the beginning of qpos that are not observed.
      step: s between two actions.
      noise: of a reset.
      cost: of |u|^2.
      healthy: (qpos, qvel) -> () bool; None for a robot that cannot fall.
      pays_last: is survival paid for the step that ends the episode?
    """

    name: str
    model: Model
    qpos0: tuple[float, ...]
    nv: int
    nu: int
    hidden: int
    step: float
    noise: float
    cost: float
    healthy: Callable[[Array, Array], Array] | None = None
    pays_last: bool = False


def _upright(low: float, high: float, angle: float, limited: bool) -> Callable[[Array, Array], Array]:
    """Healthy: the torso's height in (low, high), its angle within +-angle; limited: all else within +-100."""

    def healthy(qpos: Array, qvel: Array) -> Array:
        rest = jnp.concatenate([qpos[2:], qvel])
        stands = (qpos[1] > low) & (qpos[1] < high) & (jnp.abs(qpos[2]) < angle)
        return stands & ((jnp.abs(rest) < _INFINITY).all() if limited else jnp.isfinite(rest).all())

    return healthy


def make_robot(robot: Robot, backend: str) -> Env:
    """The environment of a robot; its one task is 0."""
    physics = make_physics(robot.model, backend)
    size = len(robot.qpos0) - robot.hidden + robot.nv
    spec = EnvSpec(robot.name, observation_size=size, action_size=robot.nu, horizon=1000, init_inputs=size)
    sample_tasks, describe = tasks.ranges({})

    def observe(qpos, qvel):
        shown = qvel if robot.healthy is None else jnp.clip(qvel, -_FASTEST, _FASTEST)
        return jnp.concatenate([qpos[robot.hidden :], shown])

    def reset(key, task):
        del task
        keys = jax.random.split(key)
        draw = lambda key, n: jax.random.uniform(key, (n,), minval=-robot.noise, maxval=robot.noise)
        qpos = jnp.asarray(robot.qpos0, jnp.float32) + draw(keys[0], len(robot.qpos0))
        state = physics.init(qpos, draw(keys[1], robot.nv))
        return EnvState(state, observe(state.qpos, state.qvel), jnp.zeros(()), jnp.zeros((), bool))

    def step(state, action, task):
        del task
        ctrl = jnp.clip(action, -1.0, 1.0)
        after = physics.step(state.physics, ctrl)
        gain = (after.qpos[0] - state.physics.qpos[0]) / robot.step - robot.cost * jnp.sum(ctrl**2)
        if robot.healthy is None:
            done = ~(jnp.isfinite(after.qpos).all() & jnp.isfinite(after.qvel).all())
        else:
            done = ~robot.healthy(after.qpos, after.qvel)
            gain = gain + 1.0 if robot.pays_last else gain + ~done
        return EnvState(after, observe(after.qpos, after.qvel), gain, done)

    return Env(reset, step, sample_tasks, spec, describe, robot.model.xml)


def _hopper(name: str, backend: str, pays_last: bool) -> Env:
    model, pose = Model(mujoco_env.load_asset("hopper.xml"), frame_skip=4), (0.0, 1.25, 0.0, 0.0, 0.0, 0.0)
    healthy = _upright(0.7, float("inf"), 0.2, limited=True)
    return make_robot(Robot(name, model, pose, 6, 3, 1, 0.008, 0.005, 1e-3, healthy, pays_last), backend)


def _walker2d(name: str, backend: str, pays_last: bool, right_foot: float) -> Env:
    xml = mujoco_env.load_asset("walker2d.xml").replace("RIGHT_FOOT", f"{right_foot:g}")
    pose, healthy = (0.0, 1.25, *[0.0] * 7), _upright(0.8, 2.0, 1.0, limited=False)
    model = Model(xml, frame_skip=4)
    return make_robot(Robot(name, model, pose, 9, 6, 1, 0.008, 0.005, 1e-3, healthy, pays_last), backend)


def hopper(*, backend: str = "auto") -> Env:
    """Hop along x on one leg, without falling."""
    return _hopper("hopper/run", backend, pays_last=False)


def hopper_v4(*, backend: str = "auto") -> Env:
    """The same with version 4's rules."""
    return _hopper("hopper/run_v4", backend, pays_last=True)


def walker2d(*, backend: str = "auto") -> Env:
    """Walk along x on two legs, without falling."""
    return _walker2d("walker2d/run", backend, pays_last=False, right_foot=1.9)


def walker2d_v4(*, backend: str = "auto") -> Env:
    """The same with version 4's rules, and its slippery right foot."""
    return _walker2d("walker2d/run_v4", backend, pays_last=True, right_foot=0.9)


def swimmer(*, backend: str = "auto") -> Env:
    """Swim along x."""
    model = Model(mujoco_env.load_asset("swimmer.xml"), frame_skip=4)
    return make_robot(Robot("swimmer/run", model, (0.0,) * 5, 5, 2, 2, 0.04, 0.1, 1e-4), backend)

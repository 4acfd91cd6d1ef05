"""Dynamics tasks: every client has a robot of its own, heavier or lighter, stronger or weaker, on its own ground.

Factors are drawn log-uniformly, so that half as much is as likely as twice as much: LIMB^U(-1, 1) for each body's mass
(its inertia is scaled alike, as at another density) and each motor's gear, GROUND^U(-1, 1) for all friction. So do
Rothfuss et al., "ProMP: Proximal Meta-Policy Search", ICLR 2019, in their random-parameter robots (1.5^U(-3, 3)) and,
with factors from 1/4 to 4 for a link's mass and from 1/2 to 2 for a controller's gain, Peng et al., "Sim-to-Real
Transfer of Robotic Control with Dynamics Randomization", ICRA 2018, Table I. The ranges here are narrower, so that one
gait can serve as a start for all. Nothing of a task is observed.
"""

import math
from collections.abc import Callable
from typing import NamedTuple

import jax.numpy as jnp

from fedjax_rl.envs import tasks
from fedjax_rl.envs.physics import Factors
from fedjax_rl.types import Array, Key

LIMB = 1.5
GROUND = 2.0


class Dynamics(NamedTuple):
    """Factors of one robot: mass [nbody - 1] (without the world), friction (), gear [nu]."""

    mass: Array
    friction: Array
    gear: Array


def log_uniform(bodies: int, motors: int) -> Callable[[Key, int], Dynamics]:
    """(key, n) -> n robots of `bodies` bodies and `motors` motors, leaves [n, ...]; client i's from key and i alone."""
    exponents = tasks.uniform(-1.0, 1.0, (bodies + 1 + motors,))

    def draw(key: Key, n: int) -> Dynamics:
        u = exponents(key, n)
        return Dynamics(LIMB ** u[:, :bodies], GROUND ** u[:, bodies], LIMB ** u[:, bodies + 1 :])

    return draw


def say(task: Dynamics) -> str:
    """A robot in words: the geometric means of its factors."""
    means = [f"{name} x{math.exp(float(jnp.log(x).mean())):.2f}" for name, x in task._asdict().items()]
    return ", ".join(means)


def factors(task: Dynamics) -> Factors:
    """What a task makes of a model; the world's mass is 0 and stays so."""
    mass = jnp.concatenate([jnp.ones(1), task.mass])
    return Factors(body_mass=mass, body_inertia=mass, pair_friction=task.friction, actuator_gear=task.gear)

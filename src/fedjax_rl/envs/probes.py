"""Probes: environments of a few steps whose values are known, each for one fault (in the manner of rejax's).

| name | reward of step t (0, 1, ...) | value under a Gaussian of mean m and deviation s | what fails it |
|---|---|---|---|
| probe/constant | 1 | 5 | summing rewards |
| probe/target | -(a - g)^2, one step | -(m - g)^2 - s^2 | the gradient's sign and size, per-client tasks |
| probe/delayed | at t = 3 only, -(a_0 - g)^2 | -(m_0 - g)^2 - s^2 | credit over time |
| probe/ending | 1, ends with step floor(g) | floor(g) + 1 | masks after the end |

The observation [2] is (1, t / 4): the task g is never observed.
"""

from collections.abc import Callable
from typing import NamedTuple

import jax.numpy as jnp

from fedjax_rl.envs import tasks
from fedjax_rl.envs.base import Env, EnvSpec, EnvState
from fedjax_rl.types import Array, Key


class _Memory(NamedTuple):
    """The number of steps taken, and the first action; both ()."""

    time: Array
    first: Array


def _make(
    name: str,
    horizon: int,
    reward: Callable[[Array, Array, Array, Array], Array],
    sample_tasks: Callable[[Key, int], Array],
    ends: Callable[[Array, Array], Array] = lambda time, task: jnp.zeros((), bool),
) -> Env:
    """reward (t, a_0, a, task) -> (); ends (t, task) -> () bool."""

    def show(memory, gain, done):
        return EnvState(memory, jnp.stack([jnp.ones(()), memory.time / 4]), gain, done)

    def reset(key, task):
        del key, task
        return show(_Memory(jnp.zeros(()), jnp.zeros(())), jnp.zeros(()), jnp.zeros((), bool))

    def step(state, action, task):
        time, act = state.physics.time, action[0]
        first = jnp.where(time == 0, act, state.physics.first)
        return show(_Memory(time + 1, first), reward(time, first, act, task), ends(time, task))

    return Env(reset, step, sample_tasks, EnvSpec(name, 2, 1, horizon, 2))


def constant() -> Env:
    """Five steps of reward 1."""
    return _make("probe/constant", 5, lambda t, first, a, g: jnp.ones(()), tasks.uniform(-1.0, 1.0))


def target() -> Env:
    """One step of reward -(a - g)^2, g ~ U[-1, 1]."""
    return _make("probe/target", 1, lambda t, first, a, g: -((a - g) ** 2), tasks.uniform(-1.0, 1.0))


def delayed() -> Env:
    """Four steps; the last is rewarded with -(a_0 - g)^2 for the first action, g ~ U[-1, 1]."""
    reward = lambda t, first, a, g: jnp.where(t == 3, -((first - g) ** 2), 0.0)
    return _make("probe/delayed", 4, reward, tasks.uniform(-1.0, 1.0))


def ending() -> Env:
    """At most five steps of reward 1; the episode ends with step floor(g), g ~ U[0, 5]."""
    ends = lambda t, g: t >= jnp.floor(g)
    return _make("probe/ending", 5, lambda t, first, a, g: jnp.ones(()), tasks.uniform(0.0, 5.0), ends)

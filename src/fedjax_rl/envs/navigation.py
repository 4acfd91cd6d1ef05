"""Navigation: a point walks to the client's goal on a plane (Finn et al., MAML, 2017, Section 5.3), in pure JAX.

The point starts at the origin and moves by a, clipped to |a_i| <= 0.1; the reward is -|position - goal| after the step,
for 100 steps. The goal is uniform in the unit square around the origin and is not observed.
"""

import jax.numpy as jnp

from fedjax_rl.envs import tasks
from fedjax_rl.envs.base import Env, EnvSpec, EnvState

_MAX_STEP = 0.1
_SPEC = EnvSpec("navigation", observation_size=2, action_size=2, horizon=100, init_inputs=2)


def navigation() -> Env:
    """Walk to the task's goal [2], U[-1/2, 1/2] in each coordinate."""

    def reset(key, task):
        del key, task
        start = jnp.zeros(2)
        return EnvState(start, start, jnp.zeros(()), jnp.zeros((), bool))

    def step(state, action, task):
        position = state.physics + jnp.clip(action, -_MAX_STEP, _MAX_STEP)
        return EnvState(position, position, -jnp.linalg.norm(position - task), jnp.zeros((), bool))

    return Env(reset, step, tasks.uniform(-0.5, 0.5, (2,)), _SPEC)

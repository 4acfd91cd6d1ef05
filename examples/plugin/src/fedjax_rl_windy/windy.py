"""A walk to the origin against the client's own wind."""

import jax.numpy as jnp

from fedjax_rl.envs import Env, EnvSpec, EnvState, tasks


def windy() -> Env:
    """The task is a wind [2], U[-1, 1] in each direction; the reward is minus the distance to the origin."""
    start = jnp.ones(2)

    def reset(key, task):
        return EnvState(start, start, jnp.zeros(()), jnp.zeros((), bool))

    def step(state, action, task):
        position = state.physics + jnp.clip(action, -0.1, 0.1) + 0.05 * task
        return EnvState(position, position, -jnp.linalg.norm(position), jnp.zeros((), bool))

    spec = EnvSpec("windy", observation_size=2, action_size=2, horizon=30, init_inputs=2)
    return Env(reset, step, tasks.uniform(-1.0, 1.0, (2,)), spec)

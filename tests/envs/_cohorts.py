"""What a cohort's episodes must not depend on."""

import jax
import jax.numpy as jnp
import numpy as np


def assert_half_has_the_episodes_of_the_whole(env, task, action):
    """Three steps of eight episodes, and of the last four of them alone: the same bits, and eight unlike starts."""
    keys = jax.random.split(jax.random.key(2), 8)

    def run(keys):
        state, shown = jax.vmap(env.reset, in_axes=(0, None))(keys, task), []
        for _ in range(3):
            state = jax.vmap(env.step, in_axes=(0, None, None))(state, action, task)
            shown.append((state.obs, state.reward, state.done))
        return shown

    whole, half = jax.jit(run)(keys), jax.jit(run)(keys[4:])
    jax.tree.map(lambda x, y: np.testing.assert_array_equal(x[4:], y), whole, half)
    assert len(np.unique(jnp.asarray(whole[0][0])[:, 0])) == 8

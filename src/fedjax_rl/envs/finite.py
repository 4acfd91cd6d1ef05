"""Random finite Markov decision processes near one another, whose probabilities are known.

A state is seen as a one-hot vector. Client i's process is P_i = (1 - spread) P + spread P'_i and likewise for rewards:
P, r are the same for all federations, P'_i, r'_i are the client's. Rows of P, P'_i are uniform on the simplex, rewards
U[0, 1). An episode begins in a random state, and none ends before the horizon.
"""

from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from fedjax_rl.envs.base import Env, EnvSpec, EnvState
from fedjax_rl.host.numerics import PRNG
from fedjax_rl.types import Array, Key, Task

STATES, ACTIONS, HORIZON, SPREAD = 8, 3, 50, 0.5


class _Place(NamedTuple):
    """The state's number () int32, the steps so far () int32, and the episode's key as data."""

    number: Array
    t: Array
    key: Array


def random() -> Env:
    """Eight states, three actions, 50 steps; the task is {"transition": [S, A, S], "reward": [S, A]}."""
    rng = np.random.default_rng(0)  # the common part belongs to the environment, not to a run
    common = {
        "transition": rng.dirichlet(np.ones(STATES), (STATES, ACTIONS)).astype(np.float32),
        "reward": rng.uniform(size=(STATES, ACTIONS)).astype(np.float32),
    }

    def draw(key: Key, i: Array) -> Task:
        key_transition, key_reward = jax.random.split(jax.random.fold_in(key, i))
        parts = jax.random.exponential(key_transition, (STATES, ACTIONS, STATES))
        own = {
            "transition": parts / parts.sum(axis=2, keepdims=True),  # uniform on the simplex
            "reward": jax.random.uniform(key_reward, (STATES, ACTIONS)),
        }
        return jax.tree.map(lambda c, x: (1.0 - SPREAD) * c + SPREAD * x, common, own)

    def show(place: _Place, reward: Array) -> EnvState:
        return EnvState(place, jax.nn.one_hot(place.number, STATES), reward, jnp.zeros((), bool))

    def reset(key: Key, task: Task) -> EnvState:
        del task
        key_start, key_steps = jax.random.split(key)
        number, data = jax.random.randint(key_start, (), 0, STATES), jax.random.key_data(key_steps)
        place = _Place(number, jnp.zeros((), jnp.int32), data)
        return show(place, jnp.zeros(()))

    def step(state: EnvState, action: Array, task: Task) -> EnvState:
        number, t, data = state.physics
        key = jax.random.fold_in(jax.random.wrap_key_data(data, impl=PRNG), t)
        after = jax.random.categorical(key, jnp.log(task["transition"][number, action[0]])).astype(jnp.int32)
        return show(_Place(after, t + 1, data), task["reward"][number, action[0]])

    spec = EnvSpec("finite/random", STATES, 1, HORIZON, STATES, num_actions=ACTIONS)
    return Env(
        reset,
        step,
        lambda key, n: jax.vmap(draw, in_axes=(None, 0))(key, jnp.arange(n)),
        spec,
        lambda task: f"a process of mean reward {float(jnp.mean(task['reward'])):.2f}",
        model=lambda task: (task["transition"], task["reward"]),
    )

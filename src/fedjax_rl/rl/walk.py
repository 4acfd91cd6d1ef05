"""An episode that goes on from call to call, a step each: that of a server which acts by itself."""

from typing import NamedTuple

import jax
import jax.numpy as jnp

from fedjax_rl.envs.base import Env, EnvState, finite, idle
from fedjax_rl.rl.distributions import Distribution
from fedjax_rl.types import Array, Key, Tree, Walk

_APART = 0x7A5C  # of an episode's key: no environment splits its own into so many, so that no draw of it is the task's


class Steps(NamedTuple):
    """Where a walk is: the episode's key as data [...] uint32, its actions so far [T, A], how many t (), obs [O]."""

    begun_by: Array
    actions: Array
    t: Array
    obs: Array


def make_walk(env: Env, distribution: Distribution) -> Walk:
    """A walk through episodes of an environment, each of a task of its own: what a client 0 draws with another key.

    Its state is the episode's key and actions, of which the episode is a function: a step plays it again from its
    reset. So it works where the state of an environment cannot be stored, as in those that live on the host.

    Args:
      env: the environment.
      distribution: of the policies whose mean acts.
    """
    horizon = env.spec.horizon

    def first(begun_by: Array) -> tuple[EnvState, Tree]:
        key = jax.random.wrap_key_data(begun_by)
        task = jax.tree.map(lambda x: x[0], env.sample_tasks(jax.random.fold_in(key, _APART), 1))
        return env.reset(key, task), task

    def start(key: Key) -> Steps:
        begun_by = jax.random.key_data(key)
        nothing = idle(env.spec)
        actions = jnp.broadcast_to(nothing, (horizon, *nothing.shape))
        return Steps(begun_by, actions, jnp.zeros((), jnp.int32), first(begun_by)[0].obs)

    def step(at: Steps, consensus: Tree, key: Key) -> Steps:
        key_action, key_next = jax.random.split(key)
        head = distribution.head_of(consensus)
        size = env.spec.num_actions or env.spec.action_size
        action = distribution.act(head, distribution.noise(key_action, (1, size), at.obs.dtype))[0]
        actions = at.actions.at[at.t].set(action)
        state, task = first(at.begun_by)
        state = jax.lax.fori_loop(0, at.t + 1, lambda i, state: env.step(state, actions[i], task), state)
        shown = jax.tree.map(lambda x: x[None], (state.physics, state.obs, state.reward))
        over = state.done | (at.t + 1 >= horizon) | ~finite(shown, 1)[0]
        on = Steps(at.begun_by, actions, at.t + 1, state.obs)
        return jax.tree.map(lambda new, same: jnp.where(over, new, same), start(key_next), on)

    return Walk(start, step, lambda at: at.obs)

"""E episodes of one client, in lockstep: a scan over steps of a step mapped over episodes.

The scan is outermost, so that mapping the whole function over clients leaves one physics step for all episodes of all
clients, and one matrix product a layer. Where a step costs a call of the host, a while loop takes its place, which ends
when no episode is left.
"""

from collections.abc import Callable
from typing import NamedTuple

import chex
import jax
import jax.numpy as jnp

from fedjax_rl.envs.base import Env, EnvState, finite
from fedjax_rl.rl.policies import Policy
from fedjax_rl.types import Array, Key, Params, Task, Tree


class Trajectory(NamedTuple):
    """What E episodes showed.

    obs [E, T, O]; action [E, T, A], raw, int32 where discrete; logp [E, T] of it; reward [E, T]; mask, frozen [E, T]
    bool.

    mask[e, t]: episode e was not over before step t. Rewards are 0 where it is false. frozen[e, t]: it was ended by
    step t because what that showed was not finite. All entries are finite.
    """

    obs: Array
    action: Array
    logp: Array
    reward: Array
    mask: Array
    frozen: Array


def _select(keep: Array, new: Tree, old: Tree) -> Tree:
    """Where keep [E] take new, else old; leaves [E, ...]."""
    return jax.tree.map(lambda n, o: jnp.where(keep.reshape(keep.shape + (1,) * (n.ndim - 1)), n, o), new, old)


def _advance(old: EnvState, new: EnvState, alive: Array) -> tuple[EnvState, Array, Array, Array]:
    """What a step does to episodes of which some were over: (state, reward [E], alive [E], frozen [E]).

    An episode that is over stays where it is. One whose new state, observation or reward is not finite, or beyond
    LIMIT, is over too: it stays at its last finite state and that step earns 0, so that no NaN is ever stored, let
    alone differentiated.
    """
    chex.assert_rank([new.reward, new.done, alive], 1)
    whole = finite((new.physics, new.obs, new.reward), alive.shape[0])
    ok = alive & whole
    return _select(ok, new, old), jnp.where(ok, new.reward, 0.0), ok & ~new.done, alive & ~whole


@jax.custom_batching.custom_vmap
def any_all(alive: Array) -> Array:
    """() bool: is any entry true, of all the axes that a `vmap` has taken away too?

    It is the predicate of a loop. A batched one would make JAX choose, in each turn and for each row, between the new
    carry and the old.
    """
    return alive.any()


@any_all.def_vmap
def _(size: int, batched: list[bool], alive: Array) -> tuple[Array, bool]:
    del size
    return any_all(alive.any(axis=0)) if batched[0] else any_all(alive), False


def scan_while_alive(step: Callable, carry: tuple[Tree, Array], xs: Array, blank: Trajectory) -> Trajectory:
    """The trajectory of `lax.scan(step, carry, xs)`, ended when no episode of anyone is left.

    Args:
      step: ((state, alive [E]), x) -> ((state, alive [E]), a step's row, leaves [E, ...]).
      carry: the first.
      xs: [T, ...].
      blank: the row of the steps that are not taken.
    """
    horizon = xs.shape[0]
    rows = jax.tree.map(lambda x: jnp.broadcast_to(x, (horizon, *x.shape)), blank)

    def turn(loop):
        t, _, carry, rows = loop
        carry, row = step(carry, xs[t])
        rows = jax.tree.map(lambda all, one: all.at[t].set(one), rows, row)
        return t + 1, any_all(carry[1]), carry, rows

    start = (jnp.zeros((), jnp.int32), any_all(carry[1]), carry, rows)
    return jax.lax.while_loop(lambda loop: (loop[0] < horizon) & loop[1], turn, start)[3]


def make_rollout(env: Env, policy: Policy, episodes: int) -> Callable[[Params, Task, Key], Trajectory]:
    """(parameters, task, key) -> `episodes` episodes of `env.spec.horizon` steps, actions sampled from the policy."""
    reset = jax.vmap(env.reset, in_axes=(0, None))
    env_step = jax.vmap(env.step, in_axes=(0, 0, None))
    horizon, says = env.spec.horizon, policy.distribution
    size = env.spec.num_actions or env.spec.action_size

    def rollout(params: Params, task: Task, key: Key) -> Trajectory:
        key_reset, key_noise = jax.random.split(key)
        start = reset(jax.random.split(key_reset, episodes), task)
        chex.assert_shape(start.obs, (episodes, env.spec.observation_size))
        # All the noise in one draw: a draw a step would cost a hash kernel in every turn of the loop.
        noise = says.noise(key_noise, (horizon, episodes, size), start.obs.dtype)

        def act(obs: Array, eps: Array) -> tuple[Array, Array]:
            head = policy.apply(params, obs)
            action = says.act(head, eps)
            return action, says.log_prob(head, action)

        def step(carry: tuple[EnvState, Array], eps: Array) -> tuple[tuple[EnvState, Array], Trajectory]:
            state, alive = carry
            action, logp = act(state.obs, eps)
            after, reward, alive_after, frozen = _advance(state, env_step(state, action, task), alive)
            return (after, alive_after), Trajectory(state.obs, action, logp, reward, alive, frozen)

        if env.spec.host:
            none = jnp.zeros(episodes, bool)
            blank = Trajectory(start.obs, *act(start.obs, noise[0]), jnp.zeros(episodes), none, none)
            steps = scan_while_alive(step, (start, ~start.done), noise, blank)
        else:
            _, steps = jax.lax.scan(step, (start, ~start.done), noise)
        return jax.tree.map(lambda x: jnp.swapaxes(x, 0, 1), steps)

    return policy.cohort(rollout) if policy.cohort else rollout

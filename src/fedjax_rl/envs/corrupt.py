"""Environments that lie to malicious clients: what they see, do or earn there is not what an honest client would."""

from collections.abc import Callable
from typing import NamedTuple

import jax
import jax.numpy as jnp

from fedjax_rl.envs.base import Env, EnvState, idle, random_actions
from fedjax_rl.types import Array, Key, Task

_APART = 1 << 22  # apart from the keys that an environment makes of a reset's: who is lied to changes no other draw


def _same(x: Array, key: Key | None) -> Array:
    del key
    return x


class Lies(NamedTuple):
    """What becomes of an action [A], a reward () and an observation [O]: (it, key) -> it; the key is None if not drawn.

    draws: do they need a key?
    """

    action: Callable = _same
    reward: Callable = _same
    obs: Callable = _same
    draws: bool = False


def _lies(env: Env, attack: str, strength: Array | float) -> Lies:
    def random(action: Array, key: Key) -> Array:
        drawn = random_actions(env.spec, key, ())
        return drawn if env.spec.num_actions else strength * drawn

    def noise(x: Array, key: Key) -> Array:
        return strength * jax.random.normal(key, x.shape, x.dtype)

    attacks = {
        "reward_flip": Lies(reward=lambda r, key: -strength * r),
        "reward_noise": Lies(reward=lambda r, key: r + noise(r, key) * jnp.abs(r), draws=True),
        "action_random": Lies(action=random, draws=True),
        "action_zero": Lies(action=lambda a, key: idle(env.spec)),
        "obs_noise": Lies(obs=lambda o, key: o + noise(o, key), draws=True),
    }
    if attack not in attacks:
        raise ValueError(f"unknown attack {attack!r}; one of {', '.join(attacks)}")
    return attacks[attack]


def corrupted(env: Env, attack: str, strength: Array | float = 1.0) -> Env:
    """The environment, lying where a task says so; its tasks are {"task": of `env`, "malicious": () bool}.

    With a = strength, o the observation, r the reward, and N normal noise drawn anew in every step:

      reward_flip    -a r
      reward_noise   r + a N |r|
      action_random  a U[-1, 1) in each entry; among discrete actions uniform, whatever a is
      action_zero    0, or the discrete action number 0, whatever a is
      obs_noise      o + a N, also when an episode begins

    It is the world that acts otherwise: the log-probabilities that a client learns with are those of the action that it
    chose. To an honest client the environment gives the bits of `env`. An episode has one call of `env` a step.

    Source: of action_random Fan et al., "Fault-Tolerant Federated Reinforcement Learning with Theoretical Guarantee",
    NeurIPS 2021, as a failure of agents; what the authors' code does under that name is action_zero.

    Args:
      env: the environment.
      attack: one of these names.
      strength: a; it may be traced.

    Returns:
      The environment. `sample_tasks` gives honest clients. It has no picture.

    Raises:
      ValueError: there is no such attack.
    """
    lies = _lies(env, attack, strength)

    def chosen(task: Task, lie: Array, truth: Array) -> Array:
        return jnp.where(task["malicious"], lie.astype(truth.dtype), truth)

    def shown(task: Task, inner: EnvState, kept: Array | None, key: Key | None) -> EnvState:
        """What is shown of the true state, which goes along untouched; `kept` is the raw key of the steps to come."""
        obs = chosen(task, lies.obs(inner.obs, key), inner.obs)
        reward = chosen(task, lies.reward(inner.reward, key), inner.reward)
        return EnvState((inner, kept), obs, reward, inner.done)

    def split(raw: Array | None) -> tuple[Array | None, Key | None, Key | None]:
        """(The raw key of the steps to come, a key for this one's action, one for what it shows)."""
        if raw is None:
            return None, None, None
        kept, action, show = jax.random.split(jax.random.wrap_key_data(raw), 3)
        return jax.random.key_data(kept), action, show

    def reset(key: Key, task: Task) -> EnvState:
        raw = jax.random.key_data(jax.random.fold_in(key, _APART)) if lies.draws else None
        kept, _, show = split(raw)
        return shown(task, env.reset(key, task["task"]), kept, show)

    def step(state: EnvState, action: Array, task: Task) -> EnvState:
        inner, raw = state.physics
        kept, act, show = split(raw)
        acted = chosen(task, lies.action(action, act), action)
        return shown(task, env.step(inner, acted, task["task"]), kept, show)

    def sample_tasks(key: Key, n: int) -> Task:
        return {"task": env.sample_tasks(key, n), "malicious": jnp.zeros(n, bool)}

    def describe(task: Task) -> str:
        return env.describe(task["task"]) + (", corrupted" if task["malicious"] else "")

    return env._replace(reset=reset, step=step, sample_tasks=sample_tasks, describe=describe, mjcf="")

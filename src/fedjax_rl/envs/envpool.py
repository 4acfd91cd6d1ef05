"""Any environment of EnvPool, stepped on the host by C++ threads.

EnvPool: Weng et al., "EnvPool: A Highly Parallel Reinforcement Learning Environment Execution Engine", NeurIPS 2022.
It is imported on first use. Seeds are fixed when a pool is made, so that every reset makes a new one: 0.1 ms an
environment for LunarLander.
"""

import difflib
from typing import Any

import jax.numpy as jnp
import numpy as np

from fedjax_rl.envs.base import Env
from fedjax_rl.envs.gym import spec_of
from fedjax_rl.envs.host import host_env
from fedjax_rl.host.cores import cores
from fedjax_rl.host.exits import ConfigError


def envpool(name: str, *, horizon: int | None = None) -> Env:
    """The EnvPool environment of that name; every task is the number 0. Actions are clipped to its bounds.

    Terminated and truncated both end an episode. EnvPool goes on with another one, which nobody sees.

    Args:
      name: EnvPool's name, such as "LunarLander-v3".
      horizon: T; None for its own, `max_episode_steps`.

    Raises:
      ConfigError: EnvPool is not installed, it has no such environment, or one that cannot be seen or acted in.
    """
    from gymnasium import spaces

    pool = _tried(name, horizon)
    shown, taken = pool.observation_space, pool.action_space
    if not isinstance(shown, spaces.Box | spaces.Discrete):
        raise ConfigError(f"envpool/{name} shows {shown}; we can train on Box or Discrete")
    spec = spec_of(f"envpool/{name}", shown, taken, pool.spec.config.max_episode_steps)
    return host_env(spec, lambda seeds, _: _Pool(name, horizon, seeds), lambda key, n: jnp.zeros(n), str)


def _made(name: str, horizon: int | None, seeds: list[int]) -> Any:
    import envpool as library

    limit = {"max_episode_steps": horizon} if horizon else {}
    threads = min(cores(), len(seeds))
    return library.make(name, env_type="gymnasium", num_envs=len(seeds), seed=seeds, num_threads=threads, **limit)


def _tried(name: str, horizon: int | None) -> Any:
    """A pool of one, or a ConfigError that says why there is none."""
    try:
        import envpool as library
    except ImportError as error:
        raise ConfigError(f"envpool/{name} needs EnvPool ({error}): pip install 'fedjax-rl[envpool]'") from error
    names = library.list_all_envs()
    if name not in names:
        [nearest] = difflib.get_close_matches(name, names, n=1, cutoff=0.0)
        raise ConfigError(f"unknown environment 'envpool/{name}'; the nearest name is 'envpool/{nearest}'")
    try:
        return _made(name, horizon, [0])
    except Exception as error:
        reason = next(iter(str(error).splitlines()), "")
        raise ConfigError(f"envpool/{name} cannot be made ({type(error).__name__}: {reason})") from error


class _Pool:
    """B episodes in one pool, which is gone with the last of them."""

    def __init__(self, name: str, horizon: int | None, seeds: np.ndarray):
        self.pool = _made(name, horizon, seeds.tolist())
        self.shown, self.taken = self.pool.observation_space, self.pool.action_space
        obs, info = self.pool.reset()
        self.obs = self.see(obs, info["env_id"])

    def see(self, obs: np.ndarray, order: np.ndarray) -> np.ndarray:
        """EnvPool's observations [B, ...] of the environments `order` -> [B, O] by number."""
        if not self.shown.shape:
            obs = np.eye(self.shown.n, dtype=np.float32)[obs - self.shown.start]
        made = np.empty((len(order), obs[0].size), np.float32)
        made[order] = obs.reshape(len(order), -1)
        return made

    def step(self, actions: np.ndarray, live: np.ndarray) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        if not self.taken.shape:
            given = actions[:, 0] + self.taken.start
        else:
            given = np.clip(actions.reshape(-1, *self.taken.shape), self.taken.low, self.taken.high)
        obs, paid, terminated, truncated, info = self.pool.step(given.astype(self.taken.dtype))
        order, reward, done = info["env_id"], np.empty(len(live), np.float32), np.empty(len(live), bool)
        reward[order], done[order] = paid, terminated | truncated
        self.obs = self.see(obs, order)
        return self.obs, reward, done

    def close(self) -> None:
        self.pool = None

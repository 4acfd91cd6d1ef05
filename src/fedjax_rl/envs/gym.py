"""Any environment of Gymnasium, its own or another package's, stepped on the host in one process.

Gymnasium: Towers et al., "Gymnasium: A Standard Interface for Reinforcement Learning Environments", 2024. It is
imported on first use. Every episode has an object of its own: to make one takes a tenth of a millisecond, and what a
used one remembers would make an episode depend on those before it (BipedalWalker's Box2D world does).
"""

import difflib
import functools
import importlib
import math
import sys
from collections.abc import Callable, Mapping
from typing import Any

import numpy as np

from fedjax_rl.envs import tasks
from fedjax_rl.envs.base import Env, EnvSpec
from fedjax_rl.envs.host import host_env
from fedjax_rl.host import output
from fedjax_rl.host.exits import ConfigError

MOST_ENTRIES = 4096  # of an observation, which our policies see as a vector
_TRIED = range(3)  # seeds of the episodes that are compared
_TRIED_STEPS = 50


def gym(name: str, *, horizon: int | None = None, ranges: Mapping[str, tuple[float, float]] | None = None) -> Env:
    """The Gymnasium environment of that name. Continuous actions are clipped to its bounds.

    Observations are flattened by Gymnasium (a discrete one is one-hot). Terminated and truncated both end an episode.

    Args:
      name: Gymnasium's name, such as "LunarLander-v3", or MODULE:NAME, where importing the module registers the name.
      horizon: T; None for its own, `max_episode_steps`.
      ranges: keyword arguments of the environment, each U[low, high) from client to client: the task is an array [F].
        Without any there is one task, 0.

    Raises:
      ConfigError: Gymnasium is not installed, it has no such environment, or it cannot be made, seen or acted in.
    """
    return _gym(name, horizon, tuple((ranges or {}).items()))


@functools.cache  # so that what is found out is said once
def _gym(name: str, horizon: int | None, fields: tuple[tuple[str, tuple[float, float]], ...]) -> Env:
    make = functools.partial(_make, name, horizon, tuple(field for field, _ in fields))
    low, high = (np.array([ends[i] for _, ends in fields], np.float32) for i in (0, 1))
    inside = low + 1e-6 * (high - low)  # an end itself is next to never drawn, and need not be legal
    env, _ = _tried(name, make, inside), _tried(name, make, high - 1e-6 * (high - low))
    if "mujoco" in sys.modules:  # what it has to say of a model it has said once
        importlib.import_module("fedjax_rl.envs.physics.native").silence()
    spec = spec_of(f"gym/{name}", env.observation_space, env.action_space, env.spec.max_episode_steps)
    if not all(_is_repeated(spec, make, inside, seed) for seed in _TRIED):
        output.inform(
            f"{spec.name}: the same seed and actions give different episodes; what is trained in it cannot be repeated "
            "or resumed bit by bit"
        )
    draw, say = tasks.ranges(dict(fields))
    return host_env(spec, lambda seeds, rows: _Episodes(make, seeds, rows), draw, say)


def _make(name: str, horizon: int | None, fields: tuple[str, ...], task: np.ndarray) -> Any:
    """A new object, with the keyword arguments that a task [F] sets."""
    import gymnasium

    limit = {"max_episode_steps": horizon} if horizon else {}
    own = dict(zip(fields, np.ravel(task).tolist(), strict=bool(fields)))
    return gymnasium.make(name, disable_env_checker=True, **limit, **own)


def _tried(name: str, make: Callable[[np.ndarray], Any], task: np.ndarray) -> Any:
    """An object, or a ConfigError that says why there is none."""
    try:
        import gymnasium
    except ImportError as error:
        raise ConfigError(f"gym/{name} needs Gymnasium ({error}): pip install 'fedjax-rl[gym]'") from error
    try:
        return make(task)
    except (gymnasium.error.NameNotFound, gymnasium.error.VersionNotFound) as error:
        [nearest] = difflib.get_close_matches(name, gymnasium.registry, n=1, cutoff=0.0)
        raise ConfigError(f"unknown environment 'gym/{name}'; the nearest name is 'gym/{nearest}'") from error
    except Exception as error:  # an environment's package raises what it likes
        reason = next(iter(str(error).splitlines()), "")
        remedy = ": pip install 'fedjax-rl[gym]'" if "Box2D" in reason else ""
        raise ConfigError(f"gym/{name} cannot be made ({type(error).__name__}: {reason}){remedy}") from error


class _Episodes:
    """B episodes, each with an object of its own, which goes when the episode is over."""

    def __init__(self, make: Callable[[np.ndarray], Any], seeds: np.ndarray, rows: np.ndarray):
        self.envs = [make(task) for task in rows]
        self.shown, self.act = self.envs[0].observation_space, _actor(self.envs[0].action_space)
        first = [env.reset(seed=seed)[0] for env, seed in zip(self.envs, seeds.tolist(), strict=True)]
        self.obs = np.stack([flat(self.shown, obs) for obs in first])

    def step(self, actions: np.ndarray, live: np.ndarray) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        reward, done = np.zeros(len(live), np.float32), np.zeros(len(live), bool)
        for i in np.flatnonzero(live):
            obs, reward[i], terminated, truncated, _ = self.envs[i].step(self.act(actions[i]))
            self.obs[i], done[i] = flat(self.shown, obs), terminated or truncated
            if done[i]:
                self.envs[i].close()
                self.envs[i] = None
        return self.obs, reward, done

    def close(self) -> None:
        for env in filter(None, self.envs):
            env.close()
        self.envs = []


def flat(space: Any, obs: Any) -> np.ndarray:
    """An observation of a Gymnasium space as [O] float32."""
    from gymnasium import spaces

    return np.asarray(obs if isinstance(space, spaces.Box) else spaces.flatten(space, obs), np.float32).ravel()


def _actor(space: Any) -> Callable[[np.ndarray], Any]:
    """Our action [A] -> the space's."""
    from gymnasium import spaces

    if isinstance(space, spaces.Discrete):
        return lambda action: int(action[0] + space.start)
    return lambda action: np.clip(action.reshape(space.shape), space.low, space.high).astype(space.dtype)


def spec_of(name: str, shown: Any, taken: Any, horizon: int | None) -> EnvSpec:
    """The sizes of an environment, of its spaces and time limit.

    Raises:
      ConfigError: our policies cannot see it or act in it, or it would never end.
    """
    from gymnasium import spaces

    if not _is_flat(shown):
        raise ConfigError(f"{name} shows {shown}; we can train on at most {MOST_ENTRIES} numbers")
    if not isinstance(taken, spaces.Box | spaces.Discrete):
        raise ConfigError(f"{name} takes actions of {taken}; we can train with Box or Discrete")
    if not horizon:
        raise ConfigError(f"{name} has no time limit of its own; write {name}?horizon=STEPS")
    actions = {"num_actions": int(taken.n)} if isinstance(taken, spaces.Discrete) else {}
    size = spaces.flatdim(shown)
    return EnvSpec(name, size, math.prod(taken.shape or ()), horizon, size, **actions, host=True)


def _is_flat(space: Any) -> bool:
    """Has every observation of a space the same, not too many, numbers?"""
    from gymnasium import spaces

    if isinstance(space, spaces.Dict | spaces.Tuple):
        parts = space.values() if isinstance(space, spaces.Dict) else space
        return all(map(_is_flat, parts)) and spaces.flatdim(space) <= MOST_ENTRIES
    known = spaces.Box | spaces.Discrete | spaces.MultiBinary | spaces.MultiDiscrete
    return isinstance(space, known) and spaces.flatdim(space) <= MOST_ENTRIES


def _is_repeated(spec: EnvSpec, make: Callable[[np.ndarray], Any], task: np.ndarray, seed: int) -> bool:
    """Do two new objects have the same episode of one seed and the same random actions?

    Raises:
      ConfigError: an episode fails, or does not show what its space promises.
    """
    draw = np.random.default_rng(seed)
    shape = (_TRIED_STEPS, 1, spec.action_size)
    actions = draw.integers(spec.num_actions, size=shape) if spec.num_actions else draw.normal(size=shape)
    try:
        one, other = (_Episodes(make, np.array([seed]), task[None]) for _ in range(2))
        told = [(x.obs.copy(), _until_over(x, actions)) for x in (one, other)]
    except Exception as error:
        reason = next(iter(str(error).splitlines()), "")
        raise ConfigError(f"{spec.name} fails ({type(error).__name__}: {reason}); choose another") from error
    if one.obs.shape != (1, spec.observation_size):
        raise ConfigError(f"{spec.name} shows {one.obs.size} numbers where its space has {spec.observation_size}")
    return all(np.array_equal(x, y, equal_nan=True) for x, y in zip(*told, strict=True))


def _until_over(episodes: _Episodes, actions: np.ndarray) -> np.ndarray:
    """What one episode shows and pays: [steps, O + 2]."""
    rows, alive = [], np.ones(1, bool)
    for action in actions:
        obs, reward, done = episodes.step(action, alive)
        rows.append(np.concatenate([obs[0], reward, done]))
        if done[0]:
            break
    return np.array(rows)

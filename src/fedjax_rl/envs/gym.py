"""Any environment of Gymnasium, its own or another package's, stepped on the host, many episodes on all cores.

Gymnasium: Towers et al., "Gymnasium: A Standard Interface for Reinforcement Learning Environments", 2024. It is
imported on first use. Every episode has an object of its own: to make one takes a tenth of a millisecond, and what a
used one remembers would make an episode depend on those before it (BipedalWalker's Box2D world does).
"""

import difflib
import functools
import math
import os
import sys
from collections.abc import Iterator, Mapping
from typing import Any

import numpy as np

from fedjax_rl.envs import tasks
from fedjax_rl.envs.base import Env, EnvSpec, Pictures
from fedjax_rl.envs.divided import Beginner
from fedjax_rl.envs.host import host_env
from fedjax_rl.host import episodes, output
from fedjax_rl.host.exits import ConfigError

DRAWN, FPS = "rgb_array", 20.0  # Gymnasium's word for pictures; how many a second, where an environment does not say
MOST_ENTRIES = 4096  # of an observation, which our policies see as a vector


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
    own = horizon, tuple(field for field, _ in fields)
    make = functools.partial(episodes.make, name, *own)
    low, high = (np.array([ends[i] for _, ends in fields], np.float32) for i in (0, 1))
    inside = low + 1e-6 * (high - low)  # an end itself is next to never drawn, and need not be legal
    env, _ = _tried(name, make, inside), _tried(name, make, high - 1e-6 * (high - low))
    registered = sys.modules["gymnasium"].registry.get(env.spec.id, name)  # workers need not know the name
    episodes.silence()
    spec = spec_of(f"gym/{name}", env.observation_space, env.action_space, env.spec.max_episode_steps)
    actions = _random_actions(spec)
    (one, _), (other, pace) = (_trial(spec, make, inside, actions) for _ in range(2))
    if not episodes.same(one, other):
        output.inform(
            f"{spec.name}: the same seed and actions give different episodes; what is trained in it cannot be repeated "
            "or resumed bit by bit"
        )
    draw, say = tasks.ranges(dict(fields))
    begin = Beginner(make, functools.partial(episodes.make, registered, *own), pace, (inside, actions))
    show = functools.partial(_pictures, spec.name, functools.partial(make, render_mode=DRAWN))
    is_drawn = DRAWN in (env.metadata.get("render_modes") or ())
    pictures = Pictures(show, 1000 / (env.metadata.get("render_fps") or FPS)) if is_drawn else None
    return host_env(spec, begin, draw, say, pictures)


def _pictures(name: str, make: episodes.Make, *episode: Any) -> Iterator[tuple[np.ndarray, float]]:
    """`episodes.pictures`, or a ConfigError that says why there are none."""
    for variable in ("SDL_VIDEODRIVER", "SDL_AUDIODRIVER"):  # of pygame, which draws without a screen and is silent
        os.environ.setdefault(variable, "dummy")
    os.environ.setdefault("PYGAME_HIDE_SUPPORT_PROMPT", "1")
    try:
        yield from episodes.pictures(make, *episode)
    except Exception as error:
        reason = next(iter(str(error).splitlines()), "")
        raise ConfigError(f"{name} cannot be drawn ({type(error).__name__}: {reason})") from error


def _tried(name: str, make: episodes.Make, task: np.ndarray) -> Any:
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
    except (Exception, SystemExit) as error:  # an environment's package raises what it likes
        reason = next(iter(str(error).splitlines()), "")
        remedy = ": pip install 'fedjax-rl[gym]'" if "Box2D" in reason else ""
        raise ConfigError(f"gym/{name} cannot be made ({type(error).__name__}: {reason}){remedy}") from error


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


def _random_actions(spec: EnvSpec) -> np.ndarray:
    """Of the trial, [seeds, steps, A]."""
    size, draws = (episodes.TRIED_STEPS, spec.action_size), map(np.random.default_rng, episodes.TRIED)
    return np.array(
        [draw.integers(spec.num_actions, size=size) if spec.num_actions else draw.normal(size=size) for draw in draws]
    )


def _trial(spec: EnvSpec, make: episodes.Make, task: np.ndarray, actions: np.ndarray) -> tuple[list, float]:
    """A trial's episodes, and the seconds of a step.

    Raises:
      ConfigError: an episode fails, or does not show what its space promises.
    """
    try:
        told, pace = episodes.trial(make, task, actions)
    except Exception as error:
        reason = next(iter(str(error).splitlines()), "")
        raise ConfigError(f"{spec.name} fails ({type(error).__name__}: {reason}); choose another") from error
    if (shown := told[0].shape[1] - 2) != spec.observation_size:
        raise ConfigError(f"{spec.name} shows {shown} numbers where its space has {spec.observation_size}")
    return told, pace

"""Gymnasium's episodes in plain NumPy: what steps them here, and in the processes that `workers` starts. No jax."""

import pickle
import sys
import time
from collections.abc import Callable, Iterator
from importlib import import_module
from typing import Any

import numpy as np

Make = Callable[[np.ndarray], Any]  # task [F] -> a new object
TRIED = range(3)  # seeds of the episodes that are compared
TRIED_STEPS = 50

_held: dict[int, "Episodes"] = {}  # those that this process steps for another one


def make(spec: Any, horizon: int | None, fields: tuple[str, ...], task: np.ndarray, **more: Any) -> Any:
    """A new object of a name or an EnvSpec of Gymnasium's, with the keyword arguments that a task [F] sets."""
    import gymnasium

    known = gymnasium.registry.get(spec) if isinstance(spec, str) else spec
    if "mujoco" in str(getattr(known, "entry_point", "")):
        import_module("mujoco")
        silence()  # before it reads a robot, and logs what is deprecated where the user stands
    limit = {"max_episode_steps": horizon} if horizon else {}
    own = dict(zip(fields, np.ravel(task).tolist(), strict=bool(fields)))
    return gymnasium.make(spec, disable_env_checker=True, **limit, **own, **more)


class Episodes:
    """B episodes, each with an object of its own, which goes when the episode is over."""

    def __init__(self, make: Make, seeds: np.ndarray, rows: np.ndarray):
        self.envs = [make(task) for task in rows]
        self.see, self.act = _viewer(self.envs[0].observation_space), _actor(self.envs[0].action_space)
        self.obs = np.stack(
            [self.see(env.reset(seed=seed)[0]) for env, seed in zip(self.envs, seeds.tolist(), strict=True)]
        )

    def step(self, actions: np.ndarray, live: np.ndarray) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        reward, done = np.zeros(len(live), np.float32), np.zeros(len(live), bool)
        for i, action in zip(np.flatnonzero(live).tolist(), self.act(actions[live]), strict=True):
            obs, reward[i], terminated, truncated, _ = self.envs[i].step(action)
            self.obs[i] = self.see(obs)
            if terminated or truncated:
                done[i] = True
                self.envs[i].close()
                self.envs[i] = None
        return self.obs, reward, done

    def close(self) -> None:
        for env in filter(None, self.envs):
            env.close()
        self.envs = []


def _viewer(space: Any) -> Callable[[Any], np.ndarray]:
    """A space's observation -> ours, [O] float32."""
    from gymnasium import spaces

    if isinstance(space, spaces.Box):
        return lambda obs: np.asarray(obs, np.float32).ravel()
    return lambda obs: np.asarray(spaces.flatten(space, obs), np.float32).ravel()


def _actor(space: Any) -> Callable[[np.ndarray], Any]:
    """Our actions [n, A] -> the space's, n of them."""
    from gymnasium import spaces

    if isinstance(space, spaces.Discrete):
        return lambda actions: (actions[:, 0] + space.start).astype(int).tolist()
    return lambda actions: np.clip(actions.reshape(-1, *space.shape), space.low, space.high).astype(space.dtype)


def pictures(make: Make, task: np.ndarray, seed: int, actions: np.ndarray) -> Iterator[tuple[np.ndarray, float]]:
    """An episode's pictures [H, W, 3] uint8, each with what was paid until then; `make` gives objects that draw."""
    env, paid = make(task), 0.0
    env.reset(seed=seed)
    for action in _actor(env.action_space)(actions):
        yield env.render(), paid
        _, reward, *_ = env.step(action)
        paid += float(reward)
    yield env.render(), paid
    env.close()


def silence() -> None:
    """No warning of MuJoCo's is said or logged from now on, where it is imported."""
    if "mujoco" in sys.modules:
        sys.modules["mujoco"].set_mju_user_warning(lambda message: None)


def trial(make: Make, task: np.ndarray, actions: np.ndarray) -> tuple[list, float]:
    """One episode of each seed of TRIED and actions [seeds, steps, A] -> ([seeds] arrays [<= steps + 1, O + 2], s).

    The arrays have what is shown, paid and over; the seconds are those of one step, at best.
    """
    told, seconds, live = [], [], np.ones(1, bool)
    for seed, taken in zip(TRIED, actions, strict=True):
        episode, spent = Episodes(make, np.array([seed]), task[None]), 0.0
        rows = [np.append(episode.obs[0], [0, 0])]
        for action in taken:
            start = time.perf_counter()
            obs, reward, done = episode.step(action[None], live)
            spent += time.perf_counter() - start
            rows.append(np.concatenate([obs[0], reward, done]))
            if done[0]:
                break
        episode.close()
        told.append(np.array(rows))
        seconds.append(spent / (len(rows) - 1))
    return told, min(seconds)


def same(one: list, other: list) -> bool:
    """Are the numbers of two trials the same bits?"""
    return all(np.array_equal(x, y, equal_nan=True) for x, y in zip(one, other, strict=True))


def tried(packed: bytes, task: np.ndarray, actions: np.ndarray) -> list | None:
    """What a `trial` of a pickled `make` tells in this process; None where it cannot be made or fails."""
    try:
        made = pickle.loads(packed)
        made(task).close()
        silence()
        return trial(made, task, actions)[0]
    except Exception:
        return None


def begin(key: int, packed: bytes, seeds: np.ndarray, rows: np.ndarray) -> np.ndarray:
    """Hold new episodes under a number -> obs [B, O]."""
    _held[key] = Episodes(pickle.loads(packed), seeds, rows)
    return _held[key].obs


def step(key: int, actions: np.ndarray, live: np.ndarray) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """A step of the episodes that are held under a number."""
    return _held[key].step(actions, live)


def close(key: int) -> None:
    """The episodes of that number are over."""
    _held.pop(key).close()

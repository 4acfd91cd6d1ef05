"""Any environment of gymnax as an `Env`; fields of its parameters may differ from client to client.

gymnax (Lange, "gymnax: A JAX-based Reinforcement Learning Environment Library", 2022) has Gymnasium's classic control,
bsuite, MinAtar and others in pure JAX. It is imported on first use.
"""

import dataclasses
import difflib
import math
from collections.abc import Callable, Mapping
from typing import Any

import jax
import jax.numpy as jnp

from fedjax_rl.envs import tasks
from fedjax_rl.envs.base import Env, EnvSpec, EnvState
from fedjax_rl.envs.soundness import refuse_unsound
from fedjax_rl.host.exits import ConfigError
from fedjax_rl.types import Array

MOST_ENTRIES = 4096  # of an observation, which our policies see as a vector
# gymnax stores what follows from other fields, so it has to be computed anew for each client.
_FOLLOWING: dict[str, dict[str, Callable[[Any], Array]]] = {
    "CartPole-v1": {
        "total_mass": lambda p: p.masscart + p.masspole,
        "polemass_length": lambda p: p.masspole * p.length,
    },
    "Acrobot-v1": {
        "link_com_pos_1": lambda p: 0.5 * p.link_length_1,
        "link_com_pos_2": lambda p: 0.5 * p.link_length_2,
    },
}


def gymnax(name: str, *, horizon: int | None = None, ranges: Mapping[str, tuple[float, float]] | None = None) -> Env:
    """The gymnax environment of that name. Continuous actions are clipped to its bounds.

    Args:
      name: gymnax's name, such as "CartPole-v1".
      horizon: T; None for its own, `max_steps_in_episode`.
      ranges: fields of its parameters, each U[low, high) from client to client: the task is an array [F] of them. What
        gymnax computed from them is computed anew. Without fields there is one task, 0.

    Raises:
      ConfigError: gymnax is not installed, it has no such environment or field, or one that our policies cannot see.
    """
    made, params = _made(name)
    fields = dict(ranges or {})
    _refuse_fields(name, params, fields)
    # in the type that it has, which is a float in one of them
    params = params.replace(max_steps_in_episode=type(params.max_steps_in_episode)(horizon or _own_horizon(params)))

    def of(task):
        if not fields:
            return params
        own = params.replace(**dict(zip(fields, task, strict=True)))
        return own.replace(**{field: compute(own) for field, compute in _FOLLOWING.get(name, {}).items()})

    see, act, sizes = _sizes(f"gymnax/{name}", made, params)

    @jax.numpy_rank_promotion("allow")
    def reset(key, task):
        key_reset, key_steps = jax.random.split(key)
        obs, inner = made.reset_env(key_reset, of(task))
        return EnvState((jax.tree.map(jnp.asarray, inner), key_steps), see(obs), jnp.zeros(()), jnp.zeros((), bool))

    @jax.numpy_rank_promotion("allow")
    def step(state, action, task):
        (inner, key), own = state.physics, of(task)
        obs, after, reward, is_over, _ = made.step_env(
            jax.random.fold_in(key, inner.time), inner, act(action, own), own
        )
        after = jax.tree.map(lambda x, like: jnp.asarray(x, like.dtype), after, inner)
        # gymnax's own time limit is not told: episodes end at the horizon anyway, and `done` is then a true end
        return EnvState((after, key), see(obs), jnp.reshape(reward, ()).astype(jnp.float32), jnp.reshape(is_over, ()))

    spec = EnvSpec(f"gymnax/{name}", horizon=_own_horizon(params), **sizes)
    draw, say = tasks.ranges(fields)
    env = Env(reset, step, draw, spec, say)
    refuse_unsound(env, spec.name)
    return env


def _own_horizon(params: Any) -> int:
    return int(params.max_steps_in_episode)


def _made(name: str) -> tuple[Any, Any]:
    """gymnax's environment and its parameters."""
    try:
        import gymnax as library
    except ImportError as error:
        raise ConfigError(f"gymnax/{name} needs gymnax ({error}): pip install 'fedjax-rl[gymnax]'") from error
    if name not in library.registered_envs:
        [nearest] = difflib.get_close_matches(name, library.registered_envs, n=1, cutoff=0.0)
        raise ConfigError(f"unknown environment 'gymnax/{name}'; the nearest name is 'gymnax/{nearest}'")
    try:
        return library.make(name)
    except Exception as error:  # one of them fetches its images
        reason = next(iter(str(error).splitlines()), "")
        raise ConfigError(f"gymnax/{name} cannot be made ({type(error).__name__}: {reason}); choose another") from error


def _refuse_fields(name: str, params: Any, fields: Mapping[str, Any]) -> None:
    """A ConfigError for a field that no client can have a value of its own of."""
    own, following = [item.name for item in dataclasses.fields(params)], _FOLLOWING.get(name, {})
    numbers = {field for field in own if isinstance(getattr(params, field), float)} - {"max_steps_in_episode"}
    legal = sorted(numbers - set(following))
    may = f"fields that may have a range: {', '.join(legal) or 'none'}"
    for field in fields:
        if field in following:
            raise ConfigError(f"gymnax/{name}: {field} follows from other fields and has no range of its own; {may}")
        if field in own and field not in legal:
            raise ConfigError(f"gymnax/{name}: {field} is {getattr(params, field)!r}, not a float; {may}")
        if field not in own:
            close = difflib.get_close_matches(field, legal, n=1, cutoff=0.4)
            hint = f" (did you mean {close[0]}?)" if close else ""
            raise ConfigError(f"gymnax/{name} has no field {field!r}{hint}; {may}")


def _sizes(name: str, made: Any, params: Any) -> tuple[Callable, Callable, dict[str, Any]]:
    """(gymnax's observation -> [O], (action, parameters) -> gymnax's action, the sizes of the spec).

    Raises:
      ConfigError: a space is none of those that our policies know.
    """
    from gymnax.environments import spaces

    shown, taken = made.observation_space(params), made.action_space(params)
    if isinstance(shown, spaces.Discrete):
        size, see = shown.n, lambda obs: jax.nn.one_hot(obs, shown.n)
    elif isinstance(shown, spaces.Box) and math.prod(shown.shape) <= MOST_ENTRIES:
        size, see = math.prod(shown.shape), lambda obs: jnp.ravel(obs).astype(jnp.float32)
    else:
        raise ConfigError(f"{name} shows {shown}; we can train on a Box of at most {MOST_ENTRIES} entries, or Discrete")
    sizes = {"observation_size": size, "init_inputs": size}
    if isinstance(taken, spaces.Discrete):
        return see, lambda action, own: action[0], {**sizes, "action_size": 1, "num_actions": taken.n}
    if not isinstance(taken, spaces.Box):
        raise ConfigError(f"{name} takes actions of {taken}; we can train with Box or Discrete")

    def act(action, own):
        box = made.action_space(own)  # its bounds may be the client's
        return jnp.clip(action.reshape(box.shape), box.low, box.high)

    return see, act, {**sizes, "action_size": math.prod(taken.shape)}

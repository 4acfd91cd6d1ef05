"""What every environment has to be, asked of one that is not ours before anything is trained in it."""

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from fedjax_rl.envs.base import LIMIT, Env, EnvSpec, EnvState, finite, idle
from fedjax_rl.host.exits import ConfigError
from fedjax_rl.host.numerics import root_key
from fedjax_rl.host.registry import reason


def refuse_unsound(env: Env, name: str) -> None:
    """See that the sizes are legal, and reset and step functions of one episode with these shapes, finite at the start.

    Raises:
      ConfigError: they are not; one line that names the environment, the function and the fault.
    """
    _refuse_sizes(env.spec, name)
    try:
        tasks, more = env.sample_tasks(root_key(0), 3), env.sample_tasks(root_key(0), 5)
        task = jax.tree.map(lambda x: x[0], tasks)
    except (Exception, SystemExit) as error:
        raise _fault(name, "sample_tasks", error, env.sample_tasks) from None
    for few, many in zip(jax.tree.leaves(tasks), jax.tree.leaves(more), strict=True):
        if few.shape != (3, *many.shape[1:]) or not np.array_equal(few, many[:3]):
            raise ConfigError(f"{name}: sample_tasks must draw task i from the key and i alone, as [n, ...]")
    state = _traced(name, "reset", env.reset, root_key(0), task)
    action = jax.eval_shape(lambda: idle(env.spec))
    first = _traced(name, "step", env.step, state, action, task)
    second = _traced(name, "the second step", env.step, first, action, task)
    wanted = {"obs": ((env.spec.observation_size,), jnp.float32), "reward": ((), jnp.float32), "done": ((), jnp.bool_)}
    for function, shown in (("reset", state), ("step", first), ("the second step", second)):
        for field, (shape, dtype) in wanted.items():
            found = getattr(shown, field)
            if (found.shape, found.dtype) != (shape, dtype):
                raise ConfigError(
                    f"{name}: {function} gives {field} {found.dtype} {list(found.shape)}; it must be "
                    f"{jnp.dtype(dtype)} {list(shape)}"
                )
    for function, shown in (("step", first), ("the second step", second)):
        if _shapes(shown.physics) != _shapes(state.physics):
            raise ConfigError(
                f"{name}: {function} gives a state {_shapes(shown.physics)}, reset one of {_shapes(state.physics)}; "
                "they must be equal"
            )
    try:
        start = env.reset(root_key(0), task)
        after = env.step(start, idle(env.spec), task)
    except (Exception, SystemExit) as error:
        raise _fault(name, "reset or step", error, env.step) from None
    for function, shown in (("reset", start), ("step", after)):
        _refuse_diverged(name, function, shown)


def _refuse_diverged(name: str, function: str, shown: EnvState) -> None:
    """A rollout ends an episode there, without its reward: it takes the simulation for one that has diverged."""
    parts = {"obs": shown.obs, "reward": shown.reward, "physics": shown.physics}
    for (part, *path), x in jax.tree_util.tree_leaves_with_path(parts):
        if not finite((jnp.asarray(x)[None], jnp.zeros(1)), 1)[0]:  # a zero, for where x is of integers
            raise ConfigError(
                f"{name}: {function} gives numbers that are not finite, or beyond {LIMIT:g}, in "
                f"{part.key}{jax.tree_util.keystr(tuple(path))}; an episode would be over there"
            )


def _refuse_sizes(spec: Any, name: str) -> None:
    if not isinstance(spec, EnvSpec):
        raise ConfigError(f"{name}: its spec is a {type(spec).__name__}; it must be an EnvSpec")
    least = {"observation_size": 1, "action_size": 1, "horizon": 1, "init_inputs": 1, "num_actions": 0}
    for key, low in least.items():
        value = getattr(spec, key)
        if type(value) is not int or value < low:  # NumPy's integers cannot be written to a run's files
            raise ConfigError(f"{name}: its spec has {key} = {value!r}; it must be an int, {low} or more")
    if spec.num_actions and spec.action_size != 1:
        raise ConfigError(
            f"{name}: its spec has action_size = {spec.action_size} with num_actions = {spec.num_actions}; it must be "
            "1 where actions are discrete"
        )
    if spec.init_inputs < spec.observation_size:  # more are legal: columns that a lineage had, and are dropped
        raise ConfigError(
            f"{name}: its spec has init_inputs = {spec.init_inputs}; it must be observation_size = "
            f"{spec.observation_size}, or more where a published network had more inputs"
        )


def _traced(name: str, function: str, fn: Any, *args: Any) -> EnvState:
    try:
        found = jax.eval_shape(fn, *args)
    except (Exception, SystemExit) as error:
        raise _fault(name, function, error, fn) from None
    if not isinstance(found, EnvState):
        raise ConfigError(f"{name}: {function} gives a {type(found).__name__}; it must be an EnvState")
    return found


def _shapes(tree: Any) -> str:
    return " ".join(f"{x.dtype}{list(x.shape)}" for x in jax.tree.leaves(tree)) or "()"


def _fault(name: str, function: str, error: BaseException, fn: Any) -> ConfigError:
    return ConfigError(f"{name}: {function} fails: {reason(error, fn)}")

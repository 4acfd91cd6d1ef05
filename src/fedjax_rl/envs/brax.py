"""Any Brax environment as an `Env`: one task, no training wrappers, a fixed horizon. Brax is imported on first use.

Brax is not developed any more, and JAX is: what an environment needs may have gone. So both of its functions are traced
when it is made, and one that cannot be is refused before anything is written. docs/environments.md has what runs.
"""

import difflib
import importlib
from collections.abc import Iterator
from contextlib import contextmanager
from importlib.metadata import version

import jax
import jax.numpy as jnp

from fedjax_rl.envs.base import Env, EnvSpec, EnvState
from fedjax_rl.envs.physics import platform
from fedjax_rl.host.numerics import root_key

_HORIZON = 1000
_BOUND = 1.0  # of an action: where its motors' ranges are others, an environment scales [-1, 1] to them itself


@contextmanager
def _as_brax_needs() -> Iterator[None]:
    """Brax promotes ranks; and its physics wants float32 products, as MJX does."""
    with jax.numpy_rank_promotion("allow"), jax.default_matmul_precision("highest"):
        yield


def brax(name: str, *, backend: str = "auto", horizon: int | None = None) -> Env:
    """The Brax environment of that name; every task is the number 0. Actions are clipped to [-1, 1].

    Args:
      name: Brax's name, such as "hopper".
      backend: "auto" (the environment's own choice of Brax pipeline) or "mjx".
      horizon: T; None for 1000, Brax's episode length.

    Raises:
      ValueError: there is no such environment, or it does not run on the backend with the versions installed.
    """
    platform()
    importlib.import_module("fedjax_rl.envs.physics.mjx")  # first, so that MJX stays silent when Brax imports it
    from brax import envs as brax_envs

    names = brax_envs._envs
    if name not in names:
        nearest = difflib.get_close_matches(name, names, n=1, cutoff=0.0)[0]
        raise ValueError(f"unknown environment 'brax/{name}'; the nearest name is 'brax/{nearest}'")
    if backend not in ("auto", "mjx"):
        raise ValueError(f"brax/{name} runs on the backends auto and mjx, not on {backend!r}")
    try:
        env = brax_envs.get_environment(name, **({} if backend == "auto" else {"backend": backend}))
        return _adapted(env, f"brax/{name}", horizon or _HORIZON)
    except Exception as error:  # whatever Brax meets in the versions installed
        reason = next(iter(str(error).splitlines()), "")
        versions = f"brax {version('brax')} and jax {jax.__version__}"
        raise ValueError(
            f"brax/{name} does not run on the backend {backend} with {versions} ({type(error).__name__}: {reason}); "
            "choose another environment"
        ) from error


def _adapted(env, name: str, horizon: int) -> Env:
    """A Brax environment as an `Env`; whatever its functions raise, they raise here."""

    def show(state):
        state = jax.tree.map(jnp.asarray, state)  # Brax leaves Python numbers in some fields
        return EnvState(state, state.obs, state.reward, state.done > 0)

    @_as_brax_needs()
    def reset(key, task):
        del task
        return show(env.reset(key))

    @_as_brax_needs()
    def step(state, action, task):
        del task
        return show(env.step(state.physics, jnp.clip(action, -_BOUND, _BOUND)))

    # Not env.observation_size, which runs a reset outside of any compiled program.
    start = jax.eval_shape(reset, root_key(0), None)
    after = jax.eval_shape(step, start, jax.ShapeDtypeStruct((env.action_size,), jnp.float32), None)
    if _shapes(start) != _shapes(after):
        raise TypeError("a step changes the shapes of its state")
    (size,) = start.obs.shape
    return Env(reset, step, lambda key, n: jnp.zeros(n), EnvSpec(name, size, env.action_size, horizon, size))


def _shapes(state: EnvState) -> tuple:
    return jax.tree.structure(state), [(x.shape, x.dtype) for x in jax.tree.leaves(state)]

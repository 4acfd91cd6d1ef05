"""Any Brax environment as an `Env`: one task, no training wrappers, a fixed horizon. Brax is imported on first use."""

import difflib
import importlib

import jax
import jax.numpy as jnp

from fedjax_rl.envs.base import Env, EnvSpec, EnvState

_HORIZON = 1000


def brax(name: str, *, backend: str = "auto", horizon: int = _HORIZON) -> Env:
    """The Brax environment of that name; every task is the number 0.

    Args:
      name: Brax's name, such as "hopper".
      backend: "auto" (the environment's own choice of Brax pipeline) or "mjx".
      horizon: T, Brax's episode length.
    """
    importlib.import_module("fedjax_rl.envs.physics.mjx")  # first, so that MJX stays silent when Brax imports it
    from brax import envs as brax_envs

    names = brax_envs._envs
    if name not in names:
        nearest = difflib.get_close_matches(name, names, n=1, cutoff=0.0)[0]
        raise ValueError(f"unknown environment 'brax/{name}'; the nearest name is 'brax/{nearest}'")
    if backend not in ("auto", "mjx"):
        raise ValueError(f"brax/{name} runs on the backends auto and mjx, not on {backend!r}")
    env = brax_envs.get_environment(name, **({} if backend == "auto" else {"backend": backend}))

    permissive = jax.numpy_rank_promotion("allow")  # Brax promotes ranks

    def show(state):
        state = jax.tree.map(jnp.asarray, state)  # Brax leaves Python numbers in some fields
        return EnvState(state, state.obs, state.reward, state.done > 0)

    def reset(key, task):
        del task
        return show(permissive(env.reset)(key))

    def step(state, action, task):
        del task
        return show(permissive(env.step)(state.physics, action))

    # Not env.observation_size, which runs a reset outside of any compiled program.
    (size,) = jax.eval_shape(permissive(env.reset), jax.random.key(0)).obs.shape
    spec = EnvSpec(f"brax/{name}", size, env.action_size, horizon, size)
    return Env(reset, step, lambda key, n: jnp.zeros(n), spec)

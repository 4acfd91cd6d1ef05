"""A policy as a function of NumPy's arrays."""

from collections.abc import Callable
from typing import Any

import jax
import numpy as np

from fedjax_rl.envs import EnvSpec
from fedjax_rl.host.numerics import pinned, root_key
from fedjax_rl.rl.policies import Policy
from fedjax_rl.types import Params


def acting(policy: Policy, spec: EnvSpec, params: Params) -> Callable[..., np.ndarray]:
    """obs [O] or [B, O] -> the action [A] or [B, A] of the greatest density, or with `rng` a sample.

    What it draws follows from `rng` alone, whatever the settings of JAX are where it is called.
    """
    says = policy.distribution
    mode = jax.jit(lambda rows: says.mode(policy.apply(params, rows)))

    @jax.jit
    def sample(rows: Any, seed: Any) -> Any:
        shape = (len(rows), spec.num_actions or spec.action_size)
        return says.act(policy.apply(params, rows), says.noise(root_key(seed), shape))

    @pinned()
    def act(obs: Any, rng: np.random.Generator | None = None) -> np.ndarray:
        rows = np.atleast_2d(np.asarray(obs, np.float32))
        actions = np.asarray(mode(rows) if rng is None else sample(rows, rng.integers(2**31, dtype=np.uint32)))
        return actions if np.ndim(obs) > 1 else actions[0]

    return act

"""Value functions whose parameters live beside the policy's, so that whatever federates the one federates the other."""

from collections.abc import Callable
from typing import Any, NamedTuple

import chex
import jax.numpy as jnp
from flax import linen as nn

from fedjax_rl.envs.base import EnvSpec
from fedjax_rl.rl.policies import HIGHEST, xavier_uniform
from fedjax_rl.types import Array, Key, Params

NAME = "critic"  # of the critic's subtree in a policy's parameters


class Critic(NamedTuple):
    """init: key -> parameters; apply: (parameters, obs [B, O], tau [B]) -> values [B], in rewards per step."""

    init: Callable[[Key], Params]
    apply: Callable[[Params, Array, Array], Array]


class ValueMLP(nn.Module):
    """[B, O + 1] -> [B]. Layers: hidden_0, hidden_1, ..., value; tanh between them."""

    hidden: tuple[int, ...]

    @nn.compact
    def __call__(self, x: Array) -> Array:
        for i, width in enumerate(self.hidden):
            dense = nn.Dense(width, kernel_init=xavier_uniform(x.shape[-1]), precision=HIGHEST, name=f"hidden_{i}")
            x = jnp.tanh(dense(x))
        return nn.Dense(1, kernel_init=xavier_uniform(x.shape[-1]), precision=HIGHEST, name="value")(x)[:, 0]


def mlp_critic(spec: EnvSpec, *, hidden: tuple[int, ...] = (64, 64)) -> Critic:
    """A tanh perceptron of the observation and of the time tau = t / T: in a fixed horizon the value depends on both.

    Its output is the value divided by the effective horizon (`effective_horizon`), a number of the size of one step's
    reward, so that the learning rates of the policy serve the critic too.
    """
    net = ValueMLP(tuple(hidden))

    def init(key: Key) -> Params:
        return net.init(key, jnp.zeros((1, spec.observation_size + 1)))["params"]

    def apply(params: Params, obs: Array, tau: Array) -> Array:
        chex.assert_rank([obs, tau], [2, 1])
        values: Any = net.apply({"params": params}, jnp.concatenate([obs, tau[:, None]], axis=1))
        return values

    return Critic(init, apply)


def effective_horizon(discount: Array | float, steps: int) -> Array:
    """sum_{t < T} discount^t: the discounted return of a reward of one in each of T steps."""
    return jnp.sum(jnp.asarray(discount) ** jnp.arange(steps))

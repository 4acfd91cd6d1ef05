"""Diagonal-Gaussian policies: a perceptron gives the mean, a learned vector gives the logarithm of the deviation."""

import functools
import math
from collections.abc import Callable
from typing import NamedTuple

import chex
import jax
import jax.numpy as jnp
from flax import linen as nn

from fedjax_rl.envs.base import EnvSpec
from fedjax_rl.types import Array, Key, Params

MIN_STD = 1e-6
# float32 products: else an accelerator rounds the same log-probability differently in a rollout and in a loss
HIGHEST = jax.lax.Precision.HIGHEST
ACTIVATIONS = {"tanh": jnp.tanh, "relu": jax.nn.relu}


class Policy(NamedTuple):
    """init: key -> parameters; apply: (parameters, obs [B, O]) -> (mean [B, A], log_std [B, A])."""

    init: Callable[[Key], Params]
    apply: Callable[[Params, Array], tuple[Array, Array]]


def xavier_uniform(fan_in: int) -> Callable[..., Array]:
    """Xavier-uniform kernels [I, J]: U(-l, l), l = sqrt(6 / (fan_in + J)) (Glorot and Bengio 2010, Eq. 16).

    `fan_in` is I, except in a first layer whose lineage also had constantly zero inputs, which are dropped here.
    """

    def init(key: Key, shape: tuple[int, int], dtype=jnp.float32) -> Array:
        limit = math.sqrt(6.0 / (fan_in + shape[1]))
        return jax.random.uniform(key, shape, dtype, -limit, limit)

    return init


class GaussianMLP(nn.Module):
    """obs [B, O] -> (mean [B, A], log_std [B, A]). Layers: hidden_0, hidden_1, ..., mean; and the vector log_std."""

    hidden: tuple[int, ...]
    activation: str
    action_size: int
    init_inputs: int

    @nn.compact
    def __call__(self, obs: Array) -> tuple[Array, Array]:
        x, fan_in = obs, self.init_inputs
        for i, width in enumerate(self.hidden):
            x = nn.Dense(width, kernel_init=xavier_uniform(fan_in), precision=HIGHEST, name=f"hidden_{i}")(x)
            x, fan_in = ACTIVATIONS[self.activation](x), width
        mean = nn.Dense(self.action_size, kernel_init=xavier_uniform(fan_in), precision=HIGHEST, name="mean")(x)
        log_std = self.param("log_std", nn.initializers.zeros_init(), (self.action_size,), jnp.float32)
        return mean, jnp.broadcast_to(jnp.maximum(log_std, math.log(MIN_STD)), mean.shape)


def gaussian_mlp(spec: EnvSpec, *, hidden: tuple[int, ...] = (64, 64), activation: str = "tanh") -> Policy:
    """N(mean(obs), diag(std^2)); std >= 1e-6 does not depend on the state and starts at 1; biases start at 0.

    `activation` is "tanh" or "relu". Actions are raw samples: it is the environment that scales and clips them.
    """
    if activation not in ACTIVATIONS:
        raise ValueError(f"unknown activation {activation!r}; one of {', '.join(ACTIVATIONS)}")
    net = GaussianMLP(tuple(hidden), activation, spec.action_size, spec.init_inputs)

    def init(key: Key) -> Params:
        return net.init(key, jnp.zeros((1, spec.observation_size)))["params"]

    def apply(params: Params, obs: Array) -> tuple[Array, Array]:
        chex.assert_rank(obs, 2)
        return net.apply({"params": params}, obs)  # a critic's parameters beside them are not looked at

    return Policy(init, apply)


POLICIES: dict[str, Callable[[EnvSpec], Policy]] = {
    "default": gaussian_mlp,
    "maml": functools.partial(gaussian_mlp, hidden=(100, 100), activation="relu"),
}


def log_prob(mean: Array, log_std: Array, action: Array) -> Array:
    """log N(action; mean, diag(exp(2 log_std))), summed over the action's dimensions.

    mean, log_std, action [B, A] -> [B].
    """
    chex.assert_rank(mean, 2)
    chex.assert_equal_shape([mean, log_std, action])
    z = (action - mean) * jnp.exp(-log_std)
    return -jnp.sum(0.5 * z * z + log_std + 0.5 * math.log(2.0 * math.pi), axis=-1)


def entropy(log_std: Array) -> Array:
    """Entropy of the diagonal Gaussian in nats, sum_a (log std_a + log(2 pi e) / 2): log_std [B, A] -> [B]."""
    chex.assert_rank(log_std, 2)
    return jnp.sum(log_std + 0.5 * math.log(2.0 * math.pi * math.e), axis=-1)

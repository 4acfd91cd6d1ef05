"""Policies: perceptrons whose output is the head of a distribution over actions."""

import functools
import math
from collections.abc import Callable
from typing import Any, NamedTuple

import chex
import jax
import jax.numpy as jnp
from flax import linen as nn

from fedjax_rl.envs.base import EnvSpec
from fedjax_rl.rl.distributions import CATEGORICAL, GAUSSIAN, Distribution
from fedjax_rl.types import Array, Key, Params, Tree

MIN_STD = 1e-6
# float32 products: else an accelerator rounds the same log-probability differently in a rollout and in a loss
HIGHEST = jax.lax.Precision.HIGHEST
ACTIVATIONS = {"tanh": jnp.tanh, "relu": jax.nn.relu}
STDS = ("free", "state")


class Policy(NamedTuple):
    """A policy: what a network says about actions, for a batch of B observations.

    Attributes:
      init: key -> parameters.
      apply: (parameters, obs [B, O]) -> the head of the distribution, leaves [B, ...]. The head of the Gaussian is
        (mean [B, A], log_std [B, A]).
      distribution: what a head means: how actions are drawn, and their log-probability. The Gaussian by default.
      cohort: f(parameters, ...) -> f, for an f that acts. Where f is mapped over clients, their parameters may be made
        ready together, once for all of its steps. None: nothing is made ready.
    """

    init: Callable[[Key], Params]
    apply: Callable[[Params, Array], Tree]
    distribution: Distribution = GAUSSIAN
    cohort: Callable[[Callable], Callable] | None = None


def xavier_uniform(fan_in: int) -> Callable[..., Array]:
    """Xavier-uniform kernels [I, J]: U(-l, l), l = sqrt(6 / (fan_in + J)) (Glorot and Bengio 2010, Eq. 16).

    `fan_in` is I, except in a first layer whose lineage also had constantly zero inputs, which are dropped here.
    """

    def init(key: Key, shape: tuple[int, int], dtype: Any = jnp.float32) -> Array:
        limit = math.sqrt(6.0 / (fan_in + shape[1]))
        return jax.random.uniform(key, shape, dtype, -limit, limit)

    return init


def inverse_root(fan_in: int) -> Callable[..., Array]:
    """Kernels and biases U(-l, l), l = 1 / sqrt(fan_in): what PyTorch's layers start from, and so many papers."""
    limit = 1.0 / math.sqrt(fan_in)
    return lambda key, shape, dtype=jnp.float32: jax.random.uniform(key, shape, dtype, -limit, limit)


# of the kernels and of the biases, from the number of inputs
INITS = {
    "xavier": (xavier_uniform, lambda fan_in: nn.initializers.zeros_init()),
    "torch": (inverse_root, inverse_root),
}


class MLP(nn.Module):
    """obs [B, O] -> an array [B, size] for each of `outputs`, then a vector [size], from 0, for each of `free`.

    Both are (name, size) pairs. Layers: hidden_0, hidden_1, ..., and the outputs.
    """

    hidden: tuple[int, ...]
    activation: str
    initial: str
    init_inputs: int
    outputs: tuple[tuple[str, int], ...]
    free: tuple[tuple[str, int], ...] = ()

    @nn.compact
    def __call__(self, obs: Array) -> list[Array]:
        kernel, bias = INITS[self.initial]

        def dense(x: Array, width: int, fan_in: int, name: str) -> Array:
            inits: dict[str, Any] = {"kernel_init": kernel(fan_in), "bias_init": bias(fan_in)}
            return nn.Dense(width, **inits, precision=HIGHEST, name=name)(x)

        x, fan_in = obs, self.init_inputs
        for i, width in enumerate(self.hidden):
            x, fan_in = ACTIVATIONS[self.activation](dense(x, width, fan_in, f"hidden_{i}")), width
        moved = [dense(x, size, fan_in, name) for name, size in self.outputs]
        zeros = nn.initializers.zeros_init()
        return moved + [self.param(name, zeros, (size,), jnp.float32) for name, size in self.free]


def _perceptron(
    spec: EnvSpec,
    distribution: Distribution,
    head: Callable[..., Tree],
    outputs: tuple[tuple[str, int], ...],
    free: tuple[tuple[str, int], ...] = (),
    *,
    hidden: tuple[int, ...],
    activation: str,
    init: str,
) -> Policy:
    """The policy whose head is `head` of the arrays that an MLP computes."""
    for option, value, legal in (("activation", activation, ACTIVATIONS), ("init", init, INITS)):
        if value not in legal:
            raise ValueError(f"unknown {option} {value!r}; one of {', '.join(legal)}")
    net = MLP(tuple(hidden), activation, init, spec.init_inputs, outputs, free)

    def start(key: Key) -> Params:
        return net.init(key, jnp.zeros((1, spec.observation_size)))["params"]

    def apply(params: Params, obs: Array) -> Tree:
        chex.assert_rank(obs, 2)
        return head(*net.apply({"params": params}, obs))  # a critic's parameters beside them are not looked at

    return Policy(start, apply, distribution)


def gaussian_mlp(
    spec: EnvSpec,
    *,
    hidden: tuple[int, ...] = (64, 64),
    activation: str = "tanh",
    init: str = "xavier",
    std: str = "free",
) -> Policy:
    """N(mean(obs), diag(std^2)), std >= 1e-6. Actions are raw samples: the environment scales and clips them.

    Args:
      spec: of the environment; its actions must be continuous.
      hidden: widths of the hidden layers.
      activation: "tanh" or "relu".
      init: "xavier" (kernels Xavier-uniform, biases 0) or "torch" (all U(-l, l), l = 1 / sqrt(inputs)).
      std: "free" (exp of a learned vector; starts at 1) or "state" (softplus of a linear head of the state).

    Raises:
      ValueError: an option is none of these, or the actions are discrete.
    """
    if spec.num_actions:
        raise ValueError(f"policy gaussian_mlp: {spec.name} has discrete actions; take categorical_mlp, or mlp")
    if std not in STDS:
        raise ValueError(f"unknown std {std!r}; one of {', '.join(STDS)}")
    size = spec.action_size
    layers: dict[str, Any] = {"hidden": hidden, "activation": activation, "init": init}
    if std == "state":
        head = lambda mean, raw: (mean, jnp.log(jax.nn.softplus(raw) + MIN_STD))
        return _perceptron(spec, GAUSSIAN, head, (("mean", size), ("std", size)), **layers)
    head = lambda mean, log_std: (mean, jnp.broadcast_to(jnp.maximum(log_std, math.log(MIN_STD)), mean.shape))
    return _perceptron(spec, GAUSSIAN, head, (("mean", size),), (("log_std", size),), **layers)


def categorical_mlp(
    spec: EnvSpec, *, hidden: tuple[int, ...] = (64, 64), activation: str = "tanh", init: str = "xavier"
) -> Policy:
    """softmax(logits(obs)) over the environment's discrete actions. Arguments as for `gaussian_mlp`.

    Raises:
      ValueError: an option is none of these, or the actions are continuous.
    """
    if not spec.num_actions:
        raise ValueError(f"policy categorical_mlp: {spec.name} has continuous actions; take gaussian_mlp, or mlp")
    layers: dict[str, Any] = {"hidden": hidden, "activation": activation, "init": init}
    return _perceptron(spec, CATEGORICAL, lambda logits: logits, (("logits", spec.num_actions),), **layers)


def mlp(
    spec: EnvSpec,
    *,
    hidden: tuple[int, ...] = (64, 64),
    activation: str = "tanh",
    init: str = "xavier",
    std: str = "free",
) -> Policy:
    """`categorical_mlp` where actions are discrete, else `gaussian_mlp`. Arguments as for these.

    Raises:
      ValueError: as for these; or `std` is given where actions are discrete.
    """
    layers: dict[str, Any] = {"hidden": hidden, "activation": activation, "init": init}
    if not spec.num_actions:
        return gaussian_mlp(spec, std=std, **layers)
    if std != "free":
        raise ValueError(f"std = {std!r}: {spec.name} has discrete actions, which have no deviation; leave it out")
    return categorical_mlp(spec, **layers)


def table(spec: EnvSpec) -> Policy:
    """A table [O, K] of what is said of each of the K discrete actions in each of O states, seen one-hot; 0 at first.

    Of other observations it is a linear function.

    Raises:
      ValueError: the actions are continuous.
    """
    if not spec.num_actions:
        raise ValueError(f"policy table: {spec.name} has continuous actions; take gaussian_mlp, or mlp")

    def init(key: Key) -> Params:
        del key
        return {"table": jnp.zeros((spec.observation_size, spec.num_actions))}

    def apply(params: Params, obs: Array) -> Tree:
        chex.assert_rank(obs, 2)
        return jnp.matmul(obs, params["table"], precision=HIGHEST)

    return Policy(init, apply, CATEGORICAL)


POLICIES: dict[str, Callable[[EnvSpec], Policy]] = {
    "default": gaussian_mlp,
    "maml": functools.partial(gaussian_mlp, hidden=(100, 100), activation="relu"),
}

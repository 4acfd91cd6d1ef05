"""What a policy's output says about actions: the diagonal Gaussian, and the categorical of discrete actions.

B rows, A entries of a continuous action, K actions to choose from. A head is what a policy computes from observations.
"""

import math
from collections.abc import Callable
from typing import NamedTuple

import chex
import jax
import jax.numpy as jnp

from fedjax_rl.types import Array, Tree


class Distribution(NamedTuple):
    """A family of distributions over actions.

    Attributes:
      noise: (key, shape [..., A or K], dtype) -> what makes samples of heads, for a whole rollout in one draw.
      act: (head, noise [B, A or K]) -> actions, [B, A] float or [B, 1] int32.
      mode: head -> the action of the greatest density.
      log_prob: (head, actions) -> [B] in nats.
      entropy: head -> [B] in nats.
      say: head -> what a client tells others of its policy in distillation, leaves [B, ...]; their means are a
        consensus.
      head_of: a consensus -> the head that says it. Liars may move it out of the distributions: a probability below 0
        then is 0, and of a deviation the sign is nothing, as in the divergence.
      divergence: (consensus, head) -> [B] in nats, how far the policy is from it; what distillation lowers.
      kl: (head of one policy, head of another) -> [B] in nats, KL(one || other).
    """

    noise: Callable[..., Array]
    act: Callable[[Tree, Array], Array]
    mode: Callable[[Tree], Array]
    log_prob: Callable[[Tree, Array], Array]
    entropy: Callable[[Tree], Array]
    say: Callable[[Tree], Tree]
    head_of: Callable[[Tree], Tree]
    divergence: Callable[[Tree, Tree], Array]
    kl: Callable[[Tree, Tree], Array]


def normal_log_prob(mean: Array, log_std: Array, action: Array) -> Array:
    """log N(action; mean, diag(exp(2 log_std))), summed over the action's dimensions.

    mean, log_std, action [B, A] -> [B].
    """
    chex.assert_rank(mean, 2)
    chex.assert_equal_shape([mean, log_std, action])
    z = (action - mean) * jnp.exp(-log_std)
    return -jnp.sum(0.5 * z * z + log_std + 0.5 * math.log(2.0 * math.pi), axis=-1)


def normal_entropy(log_std: Array) -> Array:
    """Entropy of the diagonal Gaussian in nats, sum_a (log std_a + log(2 pi e) / 2): log_std [B, A] -> [B]."""
    chex.assert_rank(log_std, 2)
    return jnp.sum(log_std + 0.5 * math.log(2.0 * math.pi * math.e), axis=-1)


def normal_kl(mean: Array, std: Array, to_mean: Array, to_std: Array) -> Array:
    """KL(N(mean, std^2) || N(to_mean, to_std^2)) in nats, summed over the action's dimensions; all [B, A] -> [B]."""
    chex.assert_equal_shape([mean, std, to_mean, to_std])
    ratio = std / to_std
    return jnp.sum(0.5 * (ratio**2 + ((mean - to_mean) / to_std) ** 2 - 1.0) - jnp.log(ratio), axis=-1)


def categorical_log_prob(logits: Array, action: Array) -> Array:
    """log softmax(logits)[action]: logits [B, K], action [B, 1] int -> [B]."""
    chex.assert_rank([logits, action], 2)
    # a product with one-hot rows: the gradient of an indexing is a scatter, which is slow on every device
    chosen = jax.nn.one_hot(action[:, 0], logits.shape[1], dtype=logits.dtype)
    return jnp.sum(chosen * jax.nn.log_softmax(logits), axis=-1)


def categorical_entropy(logits: Array) -> Array:
    """-sum_k p_k log p_k, p = softmax(logits) [B, K] -> [B], in nats."""
    chex.assert_rank(logits, 2)
    return -jnp.sum(jax.nn.softmax(logits) * jax.nn.log_softmax(logits), axis=-1)


def categorical_kl(probabilities: Array, logits: Array) -> Array:
    """KL(p || softmax(logits)) in nats; p, logits [B, K] -> [B]. A term of p_k = 0 is 0."""
    chex.assert_equal_shape([probabilities, logits])
    return jnp.sum(jax.scipy.special.xlogy(probabilities, probabilities), axis=-1) - jnp.sum(
        probabilities * jax.nn.log_softmax(logits), axis=-1
    )


# head: (mean [B, A], log_std [B, A]). Clients tell means and deviations, which are averaged apart; the divergence is
# KL(N || N_consensus), as FedHPD has it for continuous actions (Kong et al., AAMAS 2025).
GAUSSIAN = Distribution(
    noise=jax.random.normal,
    act=lambda head, noise: head[0] + jnp.exp(head[1]) * noise,
    mode=lambda head: head[0],
    log_prob=lambda head, action: normal_log_prob(head[0], head[1], action),
    entropy=lambda head: normal_entropy(head[1]),
    say=lambda head: (head[0], jnp.exp(head[1])),
    head_of=lambda consensus: (consensus[0], jnp.log(jnp.abs(consensus[1]))),
    divergence=lambda consensus, head: normal_kl(head[0], jnp.exp(head[1]), *consensus),
    kl=lambda one, other: normal_kl(one[0], jnp.exp(one[1]), other[0], jnp.exp(other[1])),
)

# head: logits [B, K]. The largest of logits and Gumbel noise is a sample (Gumbel 1954). Clients tell probabilities; the
# divergence is KL(consensus || policy), as FedHPD has it for discrete actions.
CATEGORICAL = Distribution(
    noise=jax.random.gumbel,
    act=lambda head, noise: jnp.argmax(head + noise, axis=-1, keepdims=True).astype(jnp.int32),
    mode=lambda head: jnp.argmax(head, axis=-1, keepdims=True).astype(jnp.int32),
    log_prob=categorical_log_prob,
    entropy=categorical_entropy,
    say=jax.nn.softmax,
    head_of=lambda consensus: jnp.log(jnp.maximum(consensus, 0.0)),
    divergence=categorical_kl,
    kl=lambda one, other: categorical_kl(jax.nn.softmax(one), other),
)

# head: the values [B, K] of actions, of which the largest acts; no noise is drawn.
GREEDY = CATEGORICAL._replace(
    noise=lambda key, shape, dtype=float: jnp.zeros(shape, dtype), act=lambda head, noise: CATEGORICAL.mode(head)
)

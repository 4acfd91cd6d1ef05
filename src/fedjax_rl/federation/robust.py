"""Aggregators for federations where some clients may be malicious: the rules of `rules.py` as the engine takes them.

n is the number of messages heard, f = floor(byzantine * n) how many of them are assumed to be malicious. A rule is
defined up to some share of malicious clients. Where few clients are heard, f falls to what the rule still allows.
No rule helps against everything: docstrings say what each is meant for. Distances are Euclidean, over all numbers of a
message, so that parts of a message with large numbers decide.
"""

from collections.abc import Callable

import jax
import jax.numpy as jnp
from jax.flatten_util import ravel_pytree

from fedjax_rl.federation import rules
from fedjax_rl.types import Aggregator, Array, Message, Tree


def robust(
    rule: rules.Rule,
    *,
    byzantine: Array | float = 0.0,
    needs: tuple[int, int] = (2, 1),
    init: Callable[[Array], Tree] = lambda row: (),
) -> Aggregator:
    """An aggregator of a rule on rows.

    Args:
      rule: (rows [M, d], weights [M], f (), state, key) -> (row [d], state), such as those of `rules.py`. A row is all
        numbers of a message, one after the other.
      byzantine: share of the messages heard that are assumed to be malicious; f = floor(byzantine * n).
      needs: (a, b) of a rule that is defined for n >= a f + b. f is at most what this allows, and at least 0.
      init: a message as a row [d] -> the rule's first state.

    Returns:
      The aggregator. Where nobody is heard its message is zero.
    """
    each, more = needs

    def update(messages, weights, state, key):
        rows, message_of = as_rows(messages)
        n = (weights > 0).sum()
        # a millionth more: a share such as 0.3 is rounded, and 40 times it must not be 11.99999
        f = jnp.floor(n * (byzantine + 1e-6)).astype(jnp.int32)
        f = jnp.clip(f, 0, jnp.maximum((n - more) // each, 0))
        row, state = rule(rows, weights.astype(rows.dtype), f, state, key)
        return message_of(jnp.where(n > 0, row, 0.0)), state

    return Aggregator(init=lambda message: init(ravel_pytree(message)[0]), update=update)


def as_rows(messages: Message) -> tuple[Array, Callable[[Array], Message]]:
    """(Messages [M, ...] as rows [M, d], what makes a message of a row [d])."""
    _, message_of = ravel_pytree(jax.tree.map(lambda x: x[0], messages))
    return jax.vmap(lambda message: ravel_pytree(message)[0])(messages), message_of


def median() -> Aggregator:
    """Per coordinate the median, for f < n/2. It counts clients, not weights.

    Source: Yin et al., "Byzantine-Robust Distributed Learning: Towards Optimal Statistical Rates", ICML 2018.
    """
    return robust(rules.median)


def trimmed(*, byzantine: Array | float = 0.2) -> Aggregator:
    """Per coordinate the mean without the f smallest and the f largest, for f < n/2. It counts clients, not weights.

    Source: Yin et al., "Byzantine-Robust Distributed Learning: Towards Optimal Statistical Rates", ICML 2018.
    """
    return robust(rules.trimmed, byzantine=byzantine)


def geomed() -> Aggregator:
    """The geometric median argmin_z sum_i w_i |z - m_i|, for f < n/2: eight steps of the smoothed Weiszfeld algorithm.

    They start at the mean, or as `norm_clip` where the mean is more than three times as long as the median message.
    Distances below 1e-6 count as 1e-6.

    Source: Pillutla, Kakade and Harchaoui, "Robust Aggregation for Federated Learning", IEEE Transactions on Signal
    Processing 2022. There they always start at the mean.
    """
    return robust(rules.weiszfeld(8))


def krum(*, byzantine: Array | float = 0.2) -> Aggregator:
    """The one message with the nearest neighbours, by sum of squared distances to its n - f - 2 nearest; n >= 2f + 3.

    It counts clients, not weights. All but one message are lost, so its error is large where nobody is malicious.

    Source: Blanchard et al., "Machine Learning with Adversaries: Byzantine Tolerant Gradient Descent", NeurIPS 2017.
    """
    return robust(rules.krum, byzantine=byzantine, needs=(2, 3))


def multi_krum(*, byzantine: Array | float = 0.2) -> Aggregator:
    """The mean of the n - f messages that `krum` would take first, for n >= 2f + 3. It counts clients, not weights.

    Source: Blanchard et al., "Machine Learning with Adversaries: Byzantine Tolerant Gradient Descent", NeurIPS 2017.
    """
    return robust(rules.multi_krum, byzantine=byzantine, needs=(2, 3))


def bulyan(*, byzantine: Array | float = 0.2) -> Aggregator:
    """`krum`'s best, n - 2f times; then per coordinate the mean of the n - 4f closest to their median; n >= 4f + 3.

    It counts clients, not weights.

    Source: El Mhamdi, Guerraoui and Rouault, "The Hidden Vulnerability of Distributed Learning in Byzantium", ICML
    2018.
    """
    return robust(rules.bulyan, byzantine=byzantine, needs=(4, 3))


def centered_clip(*, clip_radius: Array | float = 0.0) -> Aggregator:
    """Five times v <- v + mean_i (m_i - v) min(1, clip_radius / |m_i - v|), with weights, from the last round's v.

    For f well below n/2. The first v is zero.

    Source: Karimireddy, He and Jaggi, "Learning from History for Byzantine Robust Optimization", ICML 2021.

    Args:
      clip_radius: in the messages' own unit. 0: the median of |m_i - v|.
    """
    return robust(rules.centered_clip(clip_radius), init=jnp.zeros_like)


def norm_clip() -> Aggregator:
    """The weighted mean of messages that are clipped to the median of their norms, for a small f.

    Source: the norm bound of Sun et al., "Can You Really Backdoor Federated Learning?", 2019; a fixed one there.
    """
    return robust(rules.norm_clip)


def meamed(*, byzantine: Array | float = 0.2) -> Aggregator:
    """Per coordinate the mean of the n - f values closest to the median, for f < n/2. It counts clients, not weights.

    Source: Xie, Koyejo and Gupta, "Generalized Byzantine-tolerant SGD", 2018.
    """
    return robust(rules.meamed, byzantine=byzantine)


def nnm_trimmed(*, byzantine: Array | float = 0.2) -> Aggregator:
    """`trimmed` of messages each of which became the mean of the n - f nearest to it, for f < n/2.

    It counts clients, not weights.

    Source: Allouah et al., "Fixing by Mixing: A Recipe for Optimal Byzantine ML under Heterogeneity", AISTATS 2023.
    """
    return robust(rules.nnm(rules.trimmed), byzantine=byzantine)


def nnm_median(*, byzantine: Array | float = 0.2) -> Aggregator:
    """As `nnm_trimmed`, with the median per coordinate."""
    return robust(rules.nnm(rules.median), byzantine=byzantine)


def nnm_geomed(*, byzantine: Array | float = 0.2) -> Aggregator:
    """As `nnm_trimmed`, with the geometric median.

    It takes 64 steps, not 8: mixed messages often coincide, and the steps are small where the median is one of them.
    """
    return robust(rules.nnm(rules.weiszfeld(64)), byzantine=byzantine)


def bucket_geomed() -> Aggregator:
    """`geomed` of the means of pairs of clients drawn at random in each round, for f < n/4.

    Source: Karimireddy, He and Jaggi, "Byzantine-Robust Learning on Heterogeneous Datasets via Bucketing", ICLR 2022.
    """
    return robust(rules.bucket(rules.weiszfeld(8)))


def fedpg_br(*, byzantine: Array | float = 0.2, filter_sigma: Array | float = 1.0, episodes: int) -> Aggregator:
    """The mean of the messages around a central one, for f < n/2. It counts clients, not weights.

    A message is central if more than n/2 messages, itself included, are within r of it. The centre is the central
    message closest to the mean of the central ones. The messages within r of the centre are averaged. First
    r = 2 filter_sigma sqrt(2 ln(2n / 0.6) / episodes). Where fewer than n - f are within it, all is done again with
    r = 2 filter_sigma. Where there is no centre the message is zero.

    Source: Fan et al., "Fault-Tolerant Federated Reinforcement Learning with Theoretical Guarantee", NeurIPS 2021,
    FedPG-Aggregate with its failure probability delta = 0.6. Its messages are gradients.

    Args:
      byzantine: their alpha.
      filter_sigma: bound on how far one episode's message is from the expected one, in the messages' own unit.
      episodes: B, of which each message is a mean.
    """
    return robust(rules.fedpg_filter(filter_sigma, episodes), byzantine=byzantine)

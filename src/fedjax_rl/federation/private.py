"""Differential privacy: noise that hides what any one client sends, added by the server or by each client."""

from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import optax
from jax.flatten_util import ravel_pytree

from fedjax_rl.federation.robust import as_rows
from fedjax_rl.federation.secure import FixedPoint, scaled
from fedjax_rl.types import Aggregator, Array, Key, Message, Metrics, Tree

_NOISE = 1 << 20  # apart from the draws of a compressor, which has the same key of client and round
_RATE = 0.2  # of the adaptive clip, as its authors recommend


class Kept(NamedTuple):
    """What a private sum keeps between rounds; () where it is not needed.

    Attributes:
      clip: (), C of an adaptive clip.
      clipped_share: (), the noisy share of the last round's messages that were longer than C.
      past: [b - 1, d], the last noises of banded noise in units of its deviation, the latest first.
      secagg_clipped: () int32, of secure sums: how many of the last messages the range cut off.
    """

    clip: Tree = ()
    clipped_share: Tree = ()
    past: Tree = ()
    secagg_clipped: Tree = ()


def private(
    *,
    clip: Array | float,
    noise: Array | float,
    clients_per_round: int,
    coefficients: np.ndarray | None = None,
    quantile: Array | float | None = None,
    sums: FixedPoint | None = None,
) -> Aggregator:
    """The noisy mean of clipped messages, for differential privacy towards all who see the model (central).

      (sum_i min(w_i, 1) m_i min(1, C / |m_i|) + z C G) / M,    G ~ N(0, I)

    The server clips whatever it gets, and divides by the constant M, whoever is heard. So one client moves the sum by C
    at most, whatever it and the others do. It says the same when nobody is heard: only noise. Who drops out makes the
    steps smaller. `accountant.epsilon` says what the noise is worth.

    * Banded: G_k = (Z_k - sum_{j=1}^{b-1} c_j G_{k-j}) / c_0 with Z ~ N(0, I), and z includes the sensitivity.
    * Adaptive clip: C <- C exp(-0.2 (s - quantile)), where s = 1/2 + (sum_i (1[|m_i| <= C] - 1/2) + N(0, (M/20)^2)) / M
      is the noisy share of messages that are not clipped. The sum's z becomes (z^-2 - (M/10)^-2)^(-1/2), so that the
      two together cost what z alone costs.
    * Secure: the sum is one of fixed-point numbers of step t, and z C becomes z (C + sqrt(d) t).

    The metrics "privacy/clip" and "privacy/clipped_share" (of an adaptive clip) follow from the noisy s alone, and are
    covered by the claim. "health/secagg_clipped" (of secure sums) is not private.

    Source: McMahan et al., "Learning Differentially Private Recurrent Language Models", ICLR 2018, with a fixed
    denominator; banded noise Choquette-Choo et al., "(Amplified) Banded Matrix Factorization: A unified approach to
    private training", NeurIPS 2023; adaptive clip Andrew et al., "Differentially Private Learning with Adaptive
    Clipping", NeurIPS 2021, Algorithm 1.

    Args:
      clip: C, the largest norm of a message, in its own unit; the first one, with `quantile`.
      noise: z: the deviation of the sum's noise in units of C; of Z where it is banded. With `quantile` below M/10.
      clients_per_round: M, the cohort's mean size.
      coefficients: c [b] of banded noise, as `accountant.coefficients` gives them. None: white.
      quantile: the share of messages that shall not be clipped. None: the clip is constant.
      sums: the numbers of a secure sum. None: floats. There is no smallest cohort then: that a sum was not opened
        would show who was there.

    Returns:
      The aggregator. Its key must serve nothing else.
    """
    sigma = clients_per_round / 20  # of the count below the clip, which one client moves by 1/2
    multiplier = noise if quantile is None else (noise**-2.0 - (2 * sigma) ** -2.0) ** -0.5

    def init(message: Message) -> Kept:
        d = ravel_pytree(message)[0].size
        return Kept(
            clip=() if quantile is None else jnp.asarray(clip, jnp.float32),
            clipped_share=() if quantile is None else jnp.zeros((), jnp.float32),
            past=() if coefficients is None else jnp.zeros((len(coefficients) - 1, d), jnp.float32),
            secagg_clipped=() if sums is None else jnp.zeros((), jnp.int32),
        )

    def update(messages: Message, weights: Array, state: Kept, key: Key) -> tuple[Message, Kept]:
        norms = jax.vmap(optax.tree.norm)(messages)
        bound = clip if quantile is None else state.clip
        factors = jnp.minimum(weights, 1.0) * _shortening(norms, bound)
        total, longer, clipped = _sum(messages, factors, sums, jax.random.fold_in(key, 0))
        vector, message_of = ravel_pytree(total)
        drawn = jax.random.normal(jax.random.fold_in(key, 1), vector.shape, jnp.float32)
        drawn, past = _coloured(drawn, coefficients, state.past)
        vector += (multiplier * (bound + longer) * drawn).astype(vector.dtype)
        state = state._replace(past=past, secagg_clipped=clipped)
        if quantile is not None:
            below = jnp.where(weights > 0, jnp.where(norms <= bound, 0.5, -0.5), 0.0).sum().astype(jnp.float32)
            below += sigma * jax.random.normal(jax.random.fold_in(key, 2), (), jnp.float32)
            share = 0.5 + below / clients_per_round
            state = state._replace(clip=bound * jnp.exp(-_RATE * (share - quantile)), clipped_share=1.0 - share)
        return message_of(vector / clients_per_round), state

    return Aggregator(init, update, at_least=0, show=_shown)


def local_noise(clip: Array | float, noise: Array | float) -> optax.GradientTransformationExtraArgs:
    """An uplink that makes each message private before it is sent (local): m min(1, C / |m|) + z C N(0, I).

    Source: the Gaussian mechanism of Dwork and Roth, "The Algorithmic Foundations of Differential Privacy", 2014,
    Appendix A, at each client.

    Args:
      clip: C, the largest norm of a message, in its own unit.
      noise: z, the noise's deviation in units of C.
    """

    def update(message, state, params=None, *, key, **extra):
        del params, extra
        vector, message_of = ravel_pytree(message)
        drawn = jax.random.normal(jax.random.fold_in(key, _NOISE), vector.shape, jnp.float32)
        vector *= _shortening(jnp.linalg.norm(vector), clip).astype(vector.dtype)
        return message_of(vector + (noise * clip * drawn).astype(vector.dtype)), state

    return optax.GradientTransformationExtraArgs(lambda message: optax.EmptyState(), update)


def _shortening(norms: Array, clip: Array | float) -> Array:
    """What vectors of these norms are multiplied by, so that none is longer than C in spite of rounding."""
    return jnp.minimum(1.0, clip * (1 - 1e-6) / norms)


def _sum(
    messages: Message, factors: Array, sums: FixedPoint | None, key: Key
) -> tuple[Message, Array | float, Array | tuple]:
    """(sum_i f_i m_i, by how much a term may be longer in it, how many terms were beyond the range or ())."""
    if sums is None:

        def added(m: Array) -> Array:
            return jnp.tensordot(factors.astype(m.dtype), m, axes=1, precision="highest")

        return jax.tree.map(added, messages), 0.0, ()
    rows, message_of = as_rows(messages)
    rows, clipped = scaled(rows, factors, sums)
    return message_of(sums.total(rows, key) * sums.scale_range), sums.lengthening(rows.shape[1]), clipped


def _coloured(drawn: Array, coefficients: np.ndarray | None, past: Array) -> tuple[Array, Array]:
    """(The round's noise [d] in place of what was drawn, the noises of the last rounds [b - 1, d])."""
    if coefficients is None:
        return drawn, past
    c = jnp.asarray(coefficients, drawn.dtype)
    now = (drawn - jnp.tensordot(c[1:], past, axes=1, precision="highest")) / c[0]
    return now, jnp.concatenate([now[None], past])[: len(past)]


def _shown(state: Kept) -> Metrics:
    named = {
        "privacy/clip": state.clip,
        "privacy/clipped_share": state.clipped_share,
        "health/secagg_clipped": state.secagg_clipped,
    }
    return {name: value for name, value in named.items() if not isinstance(value, tuple)}

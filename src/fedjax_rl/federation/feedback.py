"""What a client does with a coding round after round: it may remember what was lost, and send it later."""

from collections.abc import Callable
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import optax

from fedjax_rl import trees
from fedjax_rl.types import Array, Key, Message


def wide_dtype(*leaves: Array) -> np.dtype:
    """The dtype in which numbers are computed, kept and sent: float32, or float64 where there are any."""
    return jnp.result_type(jnp.float32, *(x.dtype for x in leaves))


class Coding(NamedTuple):
    """One way to make a message shorter, without memory.

    Attributes:
      compress: (message of float32 or float64, key) -> what is reconstructed, of the same structure.
      num_bytes: as in `Compressor`.
    """

    compress: Callable[[Message, Key], Message]
    num_bytes: Callable[[Message], float]


class Compressor(NamedTuple):
    """What every client does to its message, a pytree of floats, and what the message then costs.

    Attributes:
      transform: its `update(message, state, params, key=)` returns (what the server reconstructs, state),
        with the structure, shapes and dtypes of the message. `key` is of the client and the
        round. The state is () where no memory is kept. A message that is not finite comes back as NaN.
      num_bytes: message -> bytes that one client sends for it, a fraction where the bits fill no whole byte. Leaves may
        be `jax.ShapeDtypeStruct`.
    """

    transform: optax.GradientTransformationExtraArgs
    num_bytes: Callable[[Message], float]


def with_feedback(coding: Coding, feedback: str) -> Compressor:
    """A coding C with a memory, like the message.

      none:     sent = C(x)
      classic:  p = x + e,  sent = C(p),  e <- p - sent
      ef21:     g <- g + C(x - g),  sent = g

    `classic` loses nothing for ever: all that was sent, plus e, is all that was to be sent. With `ef21` the server
    keeps a copy of every client's g, and C(x - g) is what travels. The mean is over the copies of those who are heard;
    it is not the running mean over all clients of EF21 with partial participation.

    Source: Seide, Fu, Droppo, Li and Yu, "1-Bit Stochastic Gradient Descent and its Application to Data-Parallel
    Distributed Training of Speech DNNs", Interspeech 2014, and Karimireddy et al., "Error Feedback Fixes SignSGD and
    other Gradient Compression Schemes", ICML 2019; Richtarik, Sokolov and Fatkhullin, "EF21: A New, Simpler,
    Theoretically Better, and Practically Faster Error Feedback", NeurIPS 2021.

    Args:
      coding: C. With a memory it must bring what is left closer to zero, at least in the mean.
      feedback: `none`, `classic` or `ef21`.

    Returns:
      The compressor. Its memory is of float32, or float64 where the message is.

    Raises:
      KeyError: another name.
    """
    step = {"none": _none, "classic": _classic, "ef21": _ef21}[feedback]

    def init(message: Message) -> Message:
        return () if feedback == "none" else jax.tree.map(jnp.zeros_like, _wide(message))

    def update(message, memory, params=None, *, key, **extra):
        del params, extra

        def compress(x: Message) -> Message:
            finite, sent = trees.all_finite(x), coding.compress(x, key)
            # a coding may well leave out the one number that is not finite, and the rest would be heard
            sent = jax.tree.map(lambda c: jnp.where(finite, c, jnp.nan), sent)
            return jax.tree.map(lambda c, m: c.astype(m.dtype), sent, message)

        return step(compress, message, memory)

    return Compressor(optax.GradientTransformationExtraArgs(init, update), coding.num_bytes)


Compress = Callable[[Message], Message]


def _none(compress: Compress, message: Message, memory: Message) -> tuple[Message, Message]:
    return compress(_wide(message)), memory


def _classic(compress: Compress, message: Message, memory: Message) -> tuple[Message, Message]:
    wanted = jax.tree.map(jnp.add, _wide(message), memory)
    sent = compress(wanted)
    return sent, trees.sub(wanted, _wide(sent))


def _ef21(compress: Compress, message: Message, memory: Message) -> tuple[Message, Message]:
    change = compress(trees.sub(_wide(message), memory))
    memory = jax.tree.map(jnp.add, memory, _wide(change))
    return jax.tree.map(lambda g, m: g.astype(m.dtype), memory, message), memory


def _wide(message: Message) -> Message:
    return jax.tree.map(lambda x: x.astype(wide_dtype(x)), message)

"""Shorter messages up and a shorter model down: what is lost on the way, and how many bytes are left.

Nothing is packed into bits here. A function returns what the receiver reconstructs, as arrays of the usual size; the
bytes that an encoder would need follow from shapes alone. d is the number of parameters of a message, and of the vector
that its leaves make one after another.
"""

import functools
import math

import jax
import jax.numpy as jnp
from jax.flatten_util import ravel_pytree

from fedjax_rl import trees
from fedjax_rl.federation.feedback import Coding, Compressor, wide_dtype, with_feedback
from fedjax_rl.types import Array, Key, Message, Shared

BUCKET = 512  # numbers that share one scale when they are quantised
PASSES = 3  # of subspace iteration
_is_float = lambda x: jnp.issubdtype(x.dtype, jnp.floating)
_product = functools.partial(jnp.matmul, precision="highest")


def compressor(name: str, *, ratio: float, bits: int, rank: int, feedback: str = "auto") -> Compressor:
    """What a configuration names: a coding, with or without a memory of what it lost.

    With a memory the coding C must bring what is left closer to zero. `random_k` and `quantise` are unbiased, with a
    variance of omega |x|^2, and may do the opposite. So with a memory they are divided by 1 + omega; `random_k` then
    sends its coordinates as they are.

    Source: Basu, Data, Karakus and Diggavi, "Qsparse-local-SGD", NeurIPS 2019, of that division and `top_k+quantise`.

    Args:
      name: `top_k`, `random_k`, `quantise`, `sign`, `low_rank`, or `top_k+quantise`: the kept values, quantised.
      ratio: share of the d coordinates that `top_k` and `random_k` keep, in (0, 1]; at least one is kept. Static.
      bits: of one quantised number with its sign, 2 or more. Static.
      rank: r of `low_rank`. Static.
      feedback: as `with_feedback` has it, or `auto`: `none` for `random_k` and `quantise`, `classic` for the biased.

    Returns:
      The compressor.

    Raises:
      KeyError: a name that is not among these.
    """
    if feedback == "auto":
        feedback = "none" if name in ("random_k", "quantise") else "classic"
    contract = feedback != "none"
    coding = {
        "top_k": _on_vector("top_k", ratio, None, contract),
        "random_k": _on_vector("random_k", ratio, None, contract),
        "quantise": _on_vector(None, 1.0, bits, contract),
        "sign": Coding(
            lambda message, key: jax.tree.map(sign, message),
            lambda message: sum(x.size / 8 + wide_dtype(x).itemsize for x in jax.tree.leaves(message)),
        ),
        "low_rank": _low_rank(rank),
        "top_k+quantise": _on_vector("top_k", ratio, bits, contract),
    }[name]
    return with_feedback(coding, feedback)


def top_k(vector: Array, k: int) -> Array:
    """[k] indices of the numbers of a vector [d] that are largest in size; of equal ones the first.

    C(x) is x on them and 0 elsewhere: |C(x) - x|^2 <= (1 - k/d) |x|^2.

    Source: Stich, Cordonnier and Jaggi, "Sparsified SGD with Memory", NeurIPS 2018.
    """
    return jax.lax.top_k(jnp.abs(vector), k)[1]


def random_k(key: Key, d: int, k: int) -> Array:
    """[k] different indices of d, every set equally likely. Who has the key knows them.

    C(x) is d/k x on them and 0 elsewhere: unbiased, E|C(x) - x|^2 = (d/k - 1) |x|^2.

    Source: Stich, Cordonnier and Jaggi, "Sparsified SGD with Memory", NeurIPS 2018.
    """
    # Positive floats are ordered as their bits are: 30 random bits decide, where a uniform float has 23 and more ties.
    # A CPU finds the top of floats several times faster than that of integers. The sum keeps clear of denormals.
    scores = (jax.random.bits(key, (d,), jnp.uint32) >> 2) + jnp.uint32(1 << 23)
    return jax.lax.top_k(jax.lax.bitcast_convert_type(scores, jnp.float32), k)[1]


def quantise(vector: Array, key: Key, bits: int, bucket: int = BUCKET) -> tuple[Array, Array]:
    """Round a vector to a few levels, at random and without bias.

      C(x)_j = unit level_j,  unit = |x| / s,  s = 2^(bits - 1) - 1,
      level_j = sign(x_j) (floor(y) or floor(y) + 1, so that the mean is y = |x_j| / unit)

    |x| is the norm of the bucket of D numbers that x_j is in: E|C(x) - x|^2 <= omega |x|^2 there, with
    omega = min(D/s^2, sqrt(D)/s).

    Source: Alistarh, Grubic, Li, Tomioka and Vojnovic, "QSGD: Communication-Efficient SGD via Gradient Quantization and
    Encoding", NIPS 2017, section 3.1.

    Args:
      vector: [d].
      key: of the roundings.
      bits: of a level with its sign, 2 or more; static.
      bucket: D; static.

    Returns:
      (units [B], levels [B, D]), B = ceil(d/D); levels are whole numbers from -s to s, and 0 beyond d.
    """
    most = 2 ** (bits - 1) - 1
    x = jnp.pad(vector, (0, -len(vector) % bucket)).reshape(-1, bucket)
    # the norm of x / max|x| neither overflows nor vanishes; it is 1 or more, except of zeros, and these stay zeros
    largest = jnp.max(jnp.abs(x), axis=1, keepdims=True)
    x = x / jnp.where(largest > 0, largest, 1.0)
    norm = jnp.maximum(jnp.sqrt(_sum(x * x)), 1.0)
    levels = jnp.minimum(_rounded(jnp.abs(x) / norm * most, key), most)  # y may be above s by a rounding
    return (largest * norm)[:, 0] / most, jnp.sign(x) * levels


def sign(x: Array) -> Array:
    """The sign of each number of an array, times mean|x|; that of 0 is +1, so that one bit suffices.

    |C(x) - x|^2 = |x|^2 - |x|_1^2 / d exactly.

    Source: Karimireddy, Rebjock, Stich and Jaggi, "Error Feedback Fixes SignSGD and other Gradient Compression
    Schemes", ICML 2019.
    """
    scale = _sum(jnp.abs(x).reshape(-1))[0] / x.size
    return jnp.where(x >= 0, scale, -scale)


def low_rank(matrix: Array, rank: int, key: Key) -> Array:
    """P (X^T P)^T: a matrix X [n, m] as a product of P [n, r], with orthonormal columns, and of [r, m].

    P spans (X X^T)^3 S for a normal S [n, r]. It is exact where X has rank r or less. The repetitions cost no byte,
    because P is the client's own; so nothing of them need be kept from round to round.

    Source: Vogels, Karimireddy and Jaggi, "PowerSGD", NeurIPS 2019; there P is averaged over the workers before it is
    made orthonormal, which takes a second exchange. The repetitions are the subspace iteration of Halko, Martinsson and
    Tropp, "Finding Structure with Randomness", SIAM Review 2011.
    """
    largest = jnp.max(jnp.abs(matrix))
    x = matrix / jnp.where(largest > 0, largest, 1.0)  # squares of small numbers would vanish
    start = jax.random.normal(key, (len(x), rank), x.dtype)
    p = jax.lax.fori_loop(0, PASSES, lambda _, p: _orthonormal(_product(x, _product(x.T, p))), start)
    return _product(p, _product(p.T, matrix))


def quantise_model(shared: Shared, key: Key, bits: int) -> Shared:
    """The model that clients receive: its numbers rounded at random, without bias, between the ends of their leaf.

      C(x)_j = low + step (floor(y) or floor(y) + 1, so that the mean is y = (x_j - low) / step),
      step = (high - low) / (2^bits - 1)

    Who comes late needs nothing of before. Leaves of other things than floats, and of equal numbers, stay as they are.

    Source: Suresh, Yu, Kumar and McMahan, "Distributed Mean Estimation with Limited Communication", ICML 2017.
    """

    def leaf(x: Array, key: Key) -> Array:
        wide = x.astype(wide_dtype(x))
        low, most = wide.min(), 2**bits - 1
        step = (wide.max() - low) / most
        levels = jnp.minimum(_rounded((wide - low) / jnp.where(step > 0, step, 1.0), key), most)
        return jnp.where(step == 0, x, (low + step * levels).astype(x.dtype))

    leaves, treedef = jax.tree.flatten(shared)
    fold = jax.random.fold_in
    return jax.tree.unflatten(treedef, [leaf(x, fold(key, i)) if _is_float(x) else x for i, x in enumerate(leaves)])


def model_bytes(shared: Shared, bits: int) -> float:
    """Bytes of `quantise_model`: d numbers of some bits, two ends for each leaf of floats, and all of other leaves."""
    floats = [x for x in jax.tree.leaves(shared) if _is_float(x)]
    others = trees.num_bytes(shared) - trees.num_bytes(floats)
    return sum(x.size * bits / 8 + 2 * wide_dtype(x).itemsize for x in floats) + others


def _rounded(y: Array, key: Key) -> Array:
    """Each number down or up to a whole one, so that the mean is the number."""
    return jnp.floor(y) + (jax.random.uniform(key, y.shape, y.dtype) < y - jnp.floor(y))


def _sum(x: Array) -> Array:
    """Over the last axis [..., 1], halves on halves: in this order the bits are the same in a batch of any size."""
    n = x.shape[-1]
    x = jnp.pad(x, [(0, 0)] * (x.ndim - 1) + [(0, (1 << (n - 1).bit_length()) - n)])
    return x if x.shape[-1] == 1 else _sum(jnp.add(*jnp.split(x, 2, axis=-1)))


def _orthonormal(columns: Array) -> Array:
    """Gram-Schmidt over the columns of [n, r]: a batch of them needs no LAPACK. A column of zeros stays zero."""

    def one(j: Array, p: Array) -> Array:
        c = columns[:, j]
        for _ in range(3):  # what the first time leaves of a column that depends on the others is mostly rounding
            c = c - _product(p, _product(p.T, c))
        norm = jnp.sqrt(jnp.sum(c * c))
        return p.at[:, j].set(c / jnp.where(norm > 0, norm, 1.0))

    return jax.lax.fori_loop(0, columns.shape[1], one, jnp.zeros_like(columns))


def _on_vector(chosen: str | None, ratio: float, bits: int | None, contract: bool) -> Coding:
    """Codings of the vector that the leaves make: all of its numbers, or a choice of them; quantised with `bits`."""

    def num_sent(d: int) -> int:
        return max(1, math.ceil(round(ratio * d, 9)))  # 0.07 * 100 is a little above 7

    def change(x: Array, key: Key) -> Array:
        if bits is None:
            return x
        bucket = x.size if chosen else min(BUCKET, x.size)
        units, levels = quantise(x, key, bits, bucket)
        most = 2 ** (bits - 1) - 1
        omega = min(bucket / most**2, math.sqrt(bucket) / most) if contract else 0.0
        return ((units / (1.0 + omega))[:, None] * levels).reshape(-1)[: x.size]

    def compress(message: Message, key: Key) -> Message:
        x, unravel = ravel_pytree(message)
        if chosen is None:
            return unravel(change(x, key))
        k = num_sent(x.size)
        kept = top_k(x, k) if chosen == "top_k" else random_k(key, x.size, k)
        scale = x.size / k if chosen == "random_k" and not contract else 1.0
        return unravel(jnp.zeros_like(x).at[kept].set(scale * change(x[kept], key), unique_indices=True))

    def num_bytes(message: Message) -> float:
        leaves = jax.tree.leaves(message)
        d, width = sum(x.size for x in leaves), 8 * wide_dtype(*leaves).itemsize
        index = (d - 1).bit_length() if chosen == "top_k" else 0
        scales = 0 if bits is None else 1 if chosen else math.ceil(d / BUCKET)
        return (num_sent(d) * ((bits or width) + index) + scales * width) / 8

    return Coding(compress, num_bytes)


def _low_rank(rank: int) -> Coding:
    """Of every matrix whose two factors are smaller than it is; other leaves are sent whole."""

    def numbers(x: Array) -> int:
        return min(rank * sum(x.shape), x.size) if x.ndim == 2 else x.size

    def compress(message: Message, key: Key) -> Message:
        leaves, treedef = jax.tree.flatten(message)
        draw = lambda i, x: low_rank(x, rank, jax.random.fold_in(key, i)) if numbers(x) < x.size else x
        return jax.tree.unflatten(treedef, [draw(i, x) for i, x in enumerate(leaves)])

    def num_bytes(message: Message) -> float:
        return sum(numbers(x) * wide_dtype(x).itemsize for x in jax.tree.leaves(message))

    return Coding(compress, num_bytes)

"""Advantages of one client's batch: discounted returns, a linear baseline, generalised advantages, normalisation.

E episodes, T steps, O observation entries; mask [E, T] bool is true on valid steps, which precede all others.
"""

import chex
import jax
import jax.numpy as jnp

from fedjax_rl.types import Array

RIDGE = 1e-5
NORMALISE_EPS = 1e-6
WHITEN_EPS = 1e-5
# A column is constant when its deviation is below what float32 rounding of its mean may leave.
CONSTANT_TOL = 1e-5
HIGHEST = jax.lax.Precision.HIGHEST


def discounted_returns(x: Array, factor: Array | float) -> Array:
    """y_t = sum_{k >= 0} factor^k x_{t+k} along the last axis, [E, T] -> [E, T]; a parallel scan, log2(T) deep."""
    chex.assert_rank(x, 2)

    def combine(late: tuple[Array, Array], early: tuple[Array, Array]) -> tuple[Array, Array]:
        return late[0] * early[0], early[1] + early[0] * late[1]

    return jax.lax.associative_scan(combine, (jnp.full_like(x, factor), x), reverse=True, axis=1)[1]


def gae(rewards: Array, values: Array, mask: Array, discount: float, gae_lambda: Array | float) -> Array:
    """Generalised advantage estimates (Schulman et al. 2016, Eq. 16), all arguments and the result [E, T]:

    A_t = sum_k (discount gae_lambda)^k delta_{t+k},  delta_t = r_t + discount V_{t+1} - V_t.

    The value after an episode's last valid step is 0, and so is every advantage there.
    """
    chex.assert_equal_shape([rewards, values, mask])
    values = jnp.where(mask, values, 0.0)
    after = jnp.pad(values[:, 1:], ((0, 0), (0, 1)))
    delta = jnp.where(mask, rewards + discount * after - values, 0.0)
    return discounted_returns(delta, discount * gae_lambda)


def _features(obs: Array) -> Array:
    """[o, o^2, tau, tau^2, tau^3] with tau = t/100: obs [E, T, O] -> [E, T, 2 O + 3] (Duan et al. 2016, RLLab)."""
    episodes, steps, _ = obs.shape
    tau = jnp.broadcast_to(jnp.arange(steps, dtype=obs.dtype)[None, :, None] / 100.0, (episodes, steps, 1))
    return jnp.concatenate([obs, obs**2, tau, tau**2, tau**3], axis=-1)


def _standardise(x: Array, mask: Array, count: Array) -> Array:
    """Columns of x [B, F] to mean 0, deviation 1 over the rows of mask [B]; other rows and constant columns to 0."""
    mean = jnp.sum(jnp.where(mask[:, None], x, 0.0), axis=0, keepdims=True) / count
    centred = jnp.where(mask[:, None], x - mean, 0.0)
    std = jnp.sqrt(jnp.sum(centred**2, axis=0, keepdims=True) / count)
    varies = std > CONSTANT_TOL * jnp.abs(mean)
    return jnp.where(varies, centred, 0.0) / jnp.where(varies, std, 1.0)


def solve_positive(a: Array, b: Array) -> Array:
    """x with a x = b for a symmetric positive definite a [F, F] and b [F], by Gauss-Jordan elimination, no pivoting.

    Plain XLA on purpose: on a CPU JAX's own factorisations hand their batch to the threads on which they run. Two of
    them at once, as in a round with two independent batches, then wait for each other for ever (seen with jax 0.10.2).
    """
    chex.assert_rank([a, b], [2, 1])

    def eliminate(i: Array, rows: Array) -> Array:
        pivot = rows[i] / rows[i, i]
        return (rows - rows[:, i, None] * pivot[None]).at[i].set(pivot)

    return jax.lax.fori_loop(0, len(b), eliminate, jnp.concatenate([a, b[:, None]], axis=1))[:, -1]


def linear_baseline(obs: Array, returns: Array, mask: Array) -> Array:
    """Values fitted to this very batch by ridge regression: obs [E, T, O], returns [E, T], mask [E, T] -> [E, T].

    With Z the standardised features over the n valid steps and y the returns: V = mean(y) + Z w,
    (Z'Z/n + 1e-5 I) w = Z'(y - mean(y))/n. Centring leaves the intercept unpenalised; standardising is what lets
    float32 solve it, the raw normal matrix having condition numbers above 1e10. Masked steps get 0.
    """
    chex.assert_rank(obs, 3)
    chex.assert_equal_shape([returns, mask])
    valid, y = mask.reshape(-1), returns.reshape(-1)
    count = jnp.maximum(jnp.sum(valid), 1)
    x = _features(obs)
    z = _standardise(x.reshape(-1, x.shape[-1]), valid, count)
    mean = jnp.sum(jnp.where(valid, y, 0.0)) / count
    target = jnp.where(valid, y - mean, 0.0)
    normal = jnp.matmul(z.T, z, precision=HIGHEST) / count + RIDGE * jnp.eye(z.shape[1], dtype=z.dtype)
    weights = solve_positive(normal, jnp.matmul(z.T, target, precision=HIGHEST) / count)
    # An elimination that rounding has made impossible yields NaN: then the mean alone, an unbiased baseline still.
    weights = jnp.where(jnp.all(jnp.isfinite(weights)), weights, 0.0)
    fitted = mean + jnp.matmul(z, weights, precision=HIGHEST)
    return jnp.where(valid, fitted, 0.0).reshape(returns.shape)


def normalise(advantage: Array, mask: Array) -> Array:
    """(A - mean) / (std + 1e-6) over the valid steps of [E, T], population deviation; 0 elsewhere."""
    chex.assert_equal_shape([advantage, mask])
    count = jnp.maximum(jnp.sum(mask), 1)
    mean = jnp.sum(jnp.where(mask, advantage, 0.0)) / count
    centred = jnp.where(mask, advantage - mean, 0.0)
    return centred / (_root(jnp.sum(centred**2) / count) + NORMALISE_EPS)


def whiten(advantage: Array, mask: Array) -> Array:
    """(A - mean) / (std + 1e-5) over the valid steps n of [E, T], sample deviation (n - 1); 0 elsewhere.

    How much code for REINFORCE scales its returns. With a single valid step the result is 0.
    """
    chex.assert_equal_shape([advantage, mask])
    count = jnp.sum(mask)
    mean = jnp.sum(jnp.where(mask, advantage, 0.0)) / jnp.maximum(count, 1)
    centred = jnp.where(mask, advantage - mean, 0.0)
    return centred / (_root(jnp.sum(centred**2) / jnp.maximum(count - 1, 1)) + WHITEN_EPS)


def _root(variance: Array) -> Array:
    """Its square root, whose gradient at 0 is 0: there the plain one's is infinite, and 0 times it NaN."""
    some = variance > 0
    return jnp.where(some, jnp.sqrt(jnp.where(some, variance, 1.0)), 0.0)


SCALES = {"normalised": normalise, "whitened": whiten, "plain": lambda advantage, mask: advantage}

"""A reinforcement-learning problem for the algorithms: initial parameters, samples, and the loss on a fixed batch."""

import jax.numpy as jnp

from fedjax_rl.envs.base import Env
from fedjax_rl.rl.advantages import discounted_returns, gae, linear_baseline, normalise
from fedjax_rl.rl.policies import Policy, log_prob
from fedjax_rl.rl.rollout import Trajectory, make_rollout
from fedjax_rl.rl.surrogates import SURROGATES, Batch, mean_over_valid
from fedjax_rl.types import Array, Key, Params, Problem, Task


def make_batch(trajectory: Trajectory, discount: float, gae_lambda: float) -> Batch:
    """Advantages against a linear baseline fitted to the discounted return-to-go of these very episodes, normalised."""
    obs, action, logp, reward, mask = trajectory
    values = linear_baseline(obs, discounted_returns(reward, discount), mask)
    advantage = gae(reward, values, mask, discount, gae_lambda)
    return Batch(obs, action, logp, normalise(advantage, mask), mask)


def make_problem(
    env: Env,
    policy: Policy,
    *,
    episodes: int,
    discount: float = 0.99,
    gae_lambda: float = 1.0,
    clip: float = 0.2,
    surrogate: str = "ratio",
) -> Problem:
    """The problem of acting in `env` with `policy`, `episodes` episodes a batch.

    The loss is minus the mean surrogate over valid steps. One surrogate serves the inner and the outer objective of a
    meta-learning algorithm alike. At the sampling parameters all surrogates have one gradient, so that the choice then
    shows in the inner curvature only; in later local steps it shows in the outer gradient as well.
    """
    if surrogate not in SURROGATES:
        raise ValueError(f"unknown surrogate {surrogate!r}; one of {', '.join(SURROGATES)}")
    rollout = make_rollout(env, policy, episodes)
    terms = SURROGATES[surrogate](clip)

    def sample(params: Params, task: Task, key: Key) -> tuple[Batch, Array]:
        trajectory = rollout(params, task, key)
        return make_batch(trajectory, discount, gae_lambda), jnp.mean(jnp.sum(trajectory.reward, axis=1))

    def loss(params: Params, batch: Batch) -> Array:
        # One forward pass over all E T steps: a matrix product a layer.
        flat = batch.mask.size
        mean, log_std = policy.apply(params, batch.obs.reshape(flat, -1))
        logp = log_prob(mean, log_std, batch.action.reshape(flat, -1)).reshape(batch.mask.shape)
        return -mean_over_valid(terms(logp, batch), batch.mask)

    return Problem(policy.init, sample, loss)

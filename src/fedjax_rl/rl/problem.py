"""A reinforcement-learning problem for the algorithms: initial parameters, samples, and the loss on a fixed batch."""

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import optax

from fedjax_rl.envs.base import Env
from fedjax_rl.rl import critics
from fedjax_rl.rl.advantages import SCALES, discounted_returns, gae, linear_baseline
from fedjax_rl.rl.critics import Critic
from fedjax_rl.rl.policies import Policy
from fedjax_rl.rl.rollout import Trajectory, make_rollout
from fedjax_rl.rl.surrogates import REDUCTIONS, SURROGATES, Batch, Terms, mean_over_valid
from fedjax_rl.rl.walk import make_walk
from fedjax_rl.types import Array, Key, Params, Problem, Stats, Task, Tree, Tuned, Tuning


def make_batch(
    trajectory: Trajectory,
    discount: float,
    gae_lambda: float,
    values: Array | None = None,
    target: Array | tuple = (),
    scale: str = "normalised",
) -> Batch:
    """Generalised advantages against the values [E, T], scaled as SCALES has it.

    Without values: against a linear baseline fitted to the discounted return-to-go of these very episodes.
    """
    obs, action, logp, reward, mask, _ = trajectory
    if values is None:
        values = linear_baseline(obs, discounted_returns(reward, discount), mask)
    advantage = gae(reward, values, mask, discount, gae_lambda)
    return Batch(obs, action, logp, SCALES[scale](advantage, mask), mask, target)


def _comparisons(policy: Policy) -> dict[str, Any]:
    """`kl` and `ratio` of a problem: policies compared on a batch, means over its valid steps."""
    says = policy.distribution

    def head(params: Params, batch: Batch) -> Tree:
        return policy.apply(params, batch.obs.reshape(batch.mask.size, -1))

    def kl(params: Params, at: Params, batch: Batch) -> Array:
        nats = says.kl(head(at, batch), head(params, batch))
        return mean_over_valid(nats.reshape(batch.mask.shape), batch.mask)

    def ratio(params: Params, batch: Batch) -> Array:
        logp = says.log_prob(head(params, batch), batch.action.reshape(batch.mask.size, -1))
        # selected before the exponential, which may overflow on an invalid step
        change = jnp.where(batch.mask, logp.reshape(batch.mask.shape) - batch.logp_old, 0.0)
        return mean_over_valid(jnp.exp(change), batch.mask)

    return {"kl": kl, "ratio": ratio}


def _objective(policy: Policy, reduce: Callable[[Array, Array], Array]) -> Callable[..., Array]:
    """(parameters, batch, the surrogate's terms, entropy_coef) -> the mean of terms and entropy."""
    says = policy.distribution

    def objective(params: Params, batch: Batch, terms: Terms, entropy_coef: Array | float) -> Array:
        # One forward pass over all E T steps: a matrix product a layer.
        flat = batch.mask.size
        head = policy.apply(params, batch.obs.reshape(flat, -1))
        logp = says.log_prob(head, batch.action.reshape(flat, -1)).reshape(batch.mask.shape)
        bonus = entropy_coef * says.entropy(head).reshape(batch.mask.shape)
        return reduce(terms(logp, batch) + bonus, batch.mask)

    return objective


def _tuned(policy: Policy, discount: float, surrogate: str, baseline: bool, scale: str) -> Tuned:
    """`tuned` of a problem without a critic; arguments as for `make_problem`."""
    objective = _objective(policy, mean_over_valid)

    def limit(batch: Batch, count: Array | float) -> Batch:
        mask = batch.mask & (jnp.arange(len(batch.mask)) < count)[:, None]
        reward = jnp.where(mask, batch.reward, 0.0)
        values = jnp.zeros_like(reward)
        if baseline:  # fitted to these episodes alone: an agent has no others
            values = linear_baseline(batch.obs, discounted_returns(reward, discount), mask)
        return batch._replace(mask=mask, reward=reward, values=values)

    def loss(params: Params, batch: Batch, tuning: Tuning) -> Array:
        advantage = gae(batch.reward, batch.values, batch.mask, discount, tuning.gae_lambda)
        batch = batch._replace(advantage=SCALES[scale](advantage, batch.mask))
        return -objective(params, batch, SURROGATES[surrogate](tuning.clip), tuning.entropy_coef)

    return Tuned(limit, loss)


def make_problem(
    env: Env,
    policy: Policy,
    *,
    episodes: int,
    discount: float = 0.99,
    gae_lambda: float = 1.0,
    clip: float = 0.2,
    surrogate: str = "ratio",
    critic: Critic | None = None,
    value_coef: float = 0.5,
    entropy_coef: float = 0.0,
    baseline: bool = True,
    scale: str = "normalised",
    reduction: str = "mean",
    tunable: bool = False,
) -> Problem:
    """Make the problem of acting in an environment with a policy.

      loss = -mean(S) - entropy_coef mean(H) + value_coef mean((v - G / h)^2)

    S: the surrogate's terms. H: the policy's entropy. v: the critic's output. G: the discounted return-to-go. h: the
    effective horizon, sum_{t < T} discount^t. Means are over the steps before an episode's end.

    Without a critic the last term is absent. Advantages then come from a linear baseline, fitted to the same episodes.
    Or there is no baseline: with gae_lambda 1 they are then the returns-to-go, as in REINFORCE (Williams 1992).
    With a critic they come from its values h v at the sampling parameters. Its parameters are in the policy's, under
    "critic".

    One surrogate serves the inner and the outer objective of meta-learning. At the sampling parameters all surrogates
    have one gradient: there the choice shows in the inner curvature only. After the first local step it shows in the
    outer gradient too.

    Source: Schulman et al., "Proximal Policy Optimization Algorithms", 2017, Eq. 9, with the value error in units of h.

    Args:
      env: the environment.
      policy: the policy that acts in it.
      episodes: E, episodes of a batch.
      discount: of one step.
      gae_lambda: lambda of generalised advantage estimation.
      clip: epsilon of the "ratio" surrogate, the only one that is clipped.
      surrogate: "ratio", "log" or "dice".
      critic: a neural value function, or None.
      value_coef: weight of the critic's error.
      entropy_coef: weight of the entropy.
      baseline: without a critic, is there the linear baseline?
      scale: of the advantages: "normalised" (by their mean and deviation), "whitened" (the same with n - 1) or "plain".
      reduction: "mean", as in the formula; or "sum" over an episode's steps, then the mean over the episodes.
      tunable: is there a loss `tuned` too? Batches then carry rewards; there can be no critic.

    Returns:
      The problem.

    Raises:
      ValueError: there is no such surrogate, scale or reduction; or `tunable` with a critic or a sum.

    >>> import jax
    >>> from fedjax_rl.rl.policies import gaussian_mlp
    >>> env = make_env("navigation")
    >>> problem = make_problem(env, gaussian_mlp(env.spec, hidden=(4,)), episodes=2)
    >>> key, tasks = jax.random.key(0), env.sample_tasks(jax.random.key(1), 1)
    >>> batch, stats = jax.eval_shape(problem.sample, jax.eval_shape(problem.init, key), tasks[0], key)
    >>> batch.advantage.shape, stats.returned.shape
    ((2, 100), ())
    """
    for option, value, legal in (
        ("surrogate", surrogate, SURROGATES),
        ("scale", scale, SCALES),
        ("reduction", reduction, REDUCTIONS),
    ):
        if value not in legal:
            raise ValueError(f"unknown {option} {value!r}; one of {', '.join(legal)}")
    if tunable and critic is not None:
        raise ValueError("tunable: a critic's values do not follow a strategy's advantages; leave the critic out")
    if tunable and reduction != "mean":
        raise ValueError("tunable: the episodes of a loss that is tuned are not all there; reduction must be 'mean'")
    reduce = REDUCTIONS[reduction]
    objective = _objective(policy, reduce)
    rollout, one_episode = make_rollout(env, policy, episodes), make_rollout(env, policy, 1)
    terms = SURROGATES[surrogate](clip)
    says = policy.distribution
    horizon = critics.effective_horizon(discount, env.spec.horizon)

    def init(key: Key) -> Params:
        if critic is None:
            return policy.init(key)
        return {**policy.init(key), critics.NAME: critic.init(jax.random.fold_in(key, 1))}

    def rates(params: Params, obs: Array) -> Array:
        """The critic's output [E, T], in rewards per step."""
        assert critic is not None
        episodes, steps, _ = obs.shape
        tau = jnp.tile(jnp.arange(steps, dtype=obs.dtype) / steps, episodes)
        return critic.apply(params[critics.NAME], obs.reshape(episodes * steps, -1), tau).reshape(episodes, steps)

    def batch_of(params: Params, trajectory: Trajectory) -> Batch:
        if critic is None:
            values = None if baseline else jnp.zeros_like(trajectory.reward)
            batch = make_batch(trajectory, discount, gae_lambda, values, scale=scale)
            return batch._replace(reward=trajectory.reward) if tunable else batch
        values = horizon * rates(params, trajectory.obs)
        target = discounted_returns(trajectory.reward, discount) / horizon
        return make_batch(trajectory, discount, gae_lambda, values, target, scale)

    def sample(params: Params, task: Task, key: Key) -> tuple[Batch, Stats]:
        trajectory = rollout(params, task, key)
        stats = Stats(jnp.mean(jnp.sum(trajectory.reward, axis=1)), trajectory.frozen.sum())
        return batch_of(params, trajectory), stats

    def server_sample(params: Params, key: Key, count: int) -> Batch:
        key_tasks, key_episodes = jax.random.split(key)
        each = jax.vmap(one_episode, in_axes=(None, 0, 0))
        trajectories = each(params, env.sample_tasks(key_tasks, count), jax.random.split(key_episodes, count))
        return batch_of(params, jax.tree.map(lambda x: x[:, 0], trajectories))

    def loss(params: Params, batch: Batch) -> Array:
        gain = objective(params, batch, terms, entropy_coef)
        if critic is None:
            return -gain
        error = reduce((rates(params, batch.obs) - batch.target) ** 2, batch.mask)
        return value_coef * error - gain

    def say(params: Params, obs: Array) -> Tree:
        return says.say(policy.apply(params, obs))

    def divergence(params: Params, consensus: Tree, obs: Array) -> Array:
        return jnp.mean(says.divergence(consensus, policy.apply(params, obs)))

    def distance(params: Params, consensus: Tree, obs: Array) -> Array:
        squares = jax.tree.map(lambda said, mean: (said - mean) ** 2, say(params, obs), consensus)
        return optax.tree.sum(squares) / len(obs)

    more: dict[str, Any] = {"say": say, "divergence": divergence, "distance": distance, "walk": make_walk(env, says)}
    if tunable:
        more["tuned"] = _tuned(policy, discount, surrogate, baseline, scale)
    return Problem(init, sample, loss, **more, **_comparisons(policy), server_sample=server_sample)

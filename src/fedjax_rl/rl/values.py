"""The problem of clients that learn the values of actions: epsilon-greedy steps, and the error of double Q-learning."""

from collections.abc import Callable
from typing import NamedTuple

import jax
import jax.numpy as jnp
import optax

from fedjax_rl import trees
from fedjax_rl.envs.base import Env, EnvSpec, EnvState, finite
from fedjax_rl.rl.distributions import GREEDY
from fedjax_rl.rl.policies import HIGHEST, Policy
from fedjax_rl.rl.rollout import make_rollout
from fedjax_rl.rl.surrogates import mean_over_valid
from fedjax_rl.types import Array, Key, Params, Stats, Task, Transition, Tree, ValueProblem

# the error of values [B] and their targets [B]; huber: Huber, "Robust Estimation of a Location Parameter", 1964, with 1
ERRORS: dict[str, Callable[[Array, Array], Array]] = {
    "mse": lambda value, goal: (value - goal) ** 2,
    "huber": optax.losses.huber_loss,
}


class Running(NamedTuple):
    """A running environment, an episode after another.

    state: of the present episode, its keys as data. t: () int32, its steps so far. gained: () its return so far.
    returned: () sum of the returns of the episodes that were over since it was asked. episodes: () int32, their number.
    nonfinite_envs: () int32, how many of them ceased to be finite.
    """

    state: Tree
    t: Array
    gained: Array
    returned: Array
    episodes: Array
    nonfinite_envs: Array


def make_value_problem(
    env: Env, policy: Policy, *, episodes: int, discount: Array | float = 0.9, error: str = "mse"
) -> ValueProblem:
    """Make the problem of learning the values Q(s, a) of an environment's discrete actions.

      loss = mean(l(Q(s, a), y)),  y = r + discount (1 - ended) Q_target(s', argmax_a' Q(s', a'))

    There is no gradient through y. An episode that reaches its horizon is over but not ended: s' is then what was seen
    last, and its value counts. One that ceases to be finite is ended: s' is then its last finite observation, and r is
    0. Evaluation acts by the largest value, with epsilon 0.

    Source: van Hasselt, Guez, Silver, "Deep Reinforcement Learning with Double Q-learning", AAAI 2016.

    Args:
      env: the environment; its actions are discrete, and it is stepped in the compiled program.
      policy: what it computes for observations [B, O] are the values [B, K] of the K actions.
      episodes: E, greedy episodes of a sample.
      discount: of one step.
      error: l, "mse" (the square) or "huber" (the square's half up to 1, then linear).

    Returns:
      The problem.

    Raises:
      ValueError: there is no such error, the actions are continuous, or the environment lives on the host.
    """
    if error not in ERRORS:
        raise ValueError(f"unknown error {error!r}; one of {', '.join(ERRORS)}")
    refuse_environment(env.spec)
    one, error_of, horizon = _one_step(env), ERRORS[error], env.spec.horizon

    def act(params: Params, at: Running, epsilon: Array, task: Task, key: Key) -> tuple[Running, Transition]:
        explore, which, anew = jax.random.split(key, 3)
        obs = at.state.obs
        greedy = GREEDY.mode(policy.apply(params, obs[None]))[0]
        random = jax.random.randint(which, greedy.shape, 0, env.spec.num_actions)
        action = jnp.where(jax.random.uniform(explore) < epsilon, random, greedy)
        new = one.step(at.state, action, task)
        whole = finite(jax.tree.map(lambda x: x[None], (new.physics, new.obs, new.reward)), 1)[0]
        after, reward = trees.select(whole, new, at.state), jnp.where(whole, new.reward, 0.0)
        ended = after.done | ~whole
        over = ended | (at.t + 1 >= horizon)
        gained = at.gained + reward
        then = Running(
            state=trees.select(over, one.reset(anew, task), after),
            t=jnp.where(over, 0, at.t + 1),
            gained=jnp.where(over, 0.0, gained),
            returned=at.returned + jnp.where(over, gained, 0.0),
            episodes=at.episodes + over,
            nonfinite_envs=at.nonfinite_envs + ~whole,
        )
        return then, Transition(obs, action, reward, ended, after.obs)

    def loss(params: Params, target: Params, rows: Transition, valid: Array) -> Array:
        of = lambda values, action: jnp.sum(values * jax.nn.one_hot(action[:, 0], values.shape[1]), axis=1)
        best = GREEDY.mode(policy.apply(params, rows.next_obs))
        later = jnp.where(rows.ended, 0.0, of(policy.apply(target, rows.next_obs), best))
        goal = jax.lax.stop_gradient(rows.reward + discount * later)
        return mean_over_valid(error_of(of(policy.apply(params, rows.obs), rows.action), goal), valid)

    return ValueProblem(
        init=policy.init,
        start=lambda task, key: _begin(one.reset(key, task)),
        act=act,
        loss=loss,
        sample=_greedy_episodes(env, policy, episodes),
        seen=_seen,
        blank=_blank(env, one),
        backup=_backup(env, discount),
    )


def refuse_environment(spec: EnvSpec) -> None:
    """A ValueError where values cannot be learned."""
    for is_wrong, what in (
        (not spec.num_actions, "has continuous actions, of which none has the largest value"),
        (spec.host, "is stepped on the host, where an episode cannot begin anew alone"),
    ):
        if is_wrong:
            raise ValueError(f"{spec.name} {what}; take gymnax/NAME with discrete actions, finite/random or your own")


def _begin(state: EnvState) -> Running:
    none, zero = jnp.zeros((), jnp.int32), jnp.zeros_like(state.reward)
    return Running(state, none, zero, zero, none, none)


def _seen(at: Running) -> tuple[Stats, Running]:
    """The mean return of the episodes that were over; where none was, the return so far of the one that is running."""
    mean = at.returned / jnp.maximum(at.episodes, 1)
    stats = Stats(jnp.where(at.episodes > 0, mean, at.gained), at.nonfinite_envs)
    none = jnp.zeros((), jnp.int32)
    return stats, at._replace(returned=jnp.zeros_like(mean), episodes=none, nonfinite_envs=none)


def _shapes(env: Env) -> tuple[Key, Task, EnvState]:
    """A key, a task and an episode's state, as shapes."""
    data = jax.ShapeDtypeStruct((2,), jnp.uint32)
    key = jax.eval_shape(lambda data: jax.random.wrap_key_data(data, impl="threefry2x32"), data)
    task = jax.eval_shape(lambda key: jax.tree.map(lambda x: x[0], env.sample_tasks(key, 1)), key)
    return key, task, jax.eval_shape(env.reset, key, task)


def _one_step(env: Env) -> Env:
    """The environment with its states' keys as data: what clients keep from round to round are numbers."""
    is_key = lambda x: jnp.issubdtype(x.dtype, jax.dtypes.prng_key)
    like = _shapes(env)[2]

    def bare(state: EnvState) -> EnvState:
        return jax.tree.map(lambda x: jax.random.key_data(x) if is_key(x) else x, state)

    def step(state: EnvState, action: Array, task: Task) -> EnvState:
        typed = lambda x, was: jax.random.wrap_key_data(x, impl="threefry2x32") if is_key(was) else x
        return bare(env.step(jax.tree.map(typed, state, like), action, task))

    return env._replace(reset=lambda key, task: bare(env.reset(key, task)), step=step)


def _blank(env: Env, one: Env) -> tuple[Running, Transition]:
    key, task, _ = _shapes(env)
    like = jax.eval_shape(lambda key, task: _begin(one.reset(key, task)), key, task)
    running = jax.tree.map(lambda x: jnp.zeros(x.shape, x.dtype), like)
    obs = running.state.obs
    return running, Transition(obs, jnp.zeros(1, jnp.int32), jnp.zeros(()), jnp.zeros((), bool), obs)


def _greedy_episodes(env: Env, policy: Policy, episodes: int) -> Callable:
    """E greedy episodes as transitions [E T], of which those after an episode's end are not valid."""
    # one step more than is used: it shows where the last one led to, and whether it was an end
    longer = env._replace(spec=env.spec._replace(horizon=env.spec.horizon + 1))
    rollout = make_rollout(longer, policy._replace(distribution=GREEDY), episodes)

    def sample(params: Params, task: Task, key: Key) -> tuple[tuple[Transition, Array], Stats]:
        obs, action, _, reward, mask, frozen = rollout(params, task, key)
        ended = mask[:, :-1] & ~mask[:, 1:]
        rows = Transition(obs[:, :-1], action[:, :-1], reward[:, :-1], ended, obs[:, 1:])
        flat = jax.tree.map(lambda x: x.reshape(-1, *x.shape[2:]), (rows, mask[:, :-1]))
        return flat, Stats(jnp.mean(jnp.sum(rows.reward, axis=1)), frozen[:, :-1].sum())

    return sample


def _backup(env: Env, discount: Array | float) -> Callable[[Params, Task], Params] | None:
    """(T Q)(s, a) = r(s, a) + discount sum_s' P(s' | s, a) max_a' Q(s', a'), on a table [S, A]."""
    model = env.model
    if model is None:
        return None

    def backup(params: Params, task: Task) -> Params:
        transition, reward = model(task)
        later = jnp.einsum("sap,p->sa", transition, jnp.max(params["table"], axis=1), precision=HIGHEST)
        return {"table": reward + discount * later}

    return backup

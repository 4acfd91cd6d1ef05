"""Q-learning of one client: environment steps into a replay, learning steps on batches of it."""

from collections.abc import Callable
from typing import NamedTuple

import jax
import jax.numpy as jnp
import optax

from fedjax_rl import trees
from fedjax_rl.algorithms import replay
from fedjax_rl.algorithms.parts import chunked
from fedjax_rl.types import Array, Key, Params, Task, Transition, Tree, ValueProblem


class Learned(NamedTuple):
    """What learning steps change.

    params, target: the model and its target. moments, opt: states of the direction and of the steps along it. steps: ()
    learning steps of this client so far, in all rounds.
    """

    params: Params
    target: Params
    moments: Tree
    opt: Tree
    steps: Array


Work = tuple[Learned, Tree, replay.Replay]  # with where the environment is, and the replay


def q_learning(
    problem: ValueProblem,
    *,
    direction: optax.GradientTransformation,
    opt: optax.GradientTransformation,
    epsilon: Callable[[Array], Array],
    local_steps: int,
    learn_every: int,
    learn_after: int,
    batch: int,
    sync: int,
    is_still: bool,
    client_batch: int | None,
) -> Callable[[Work, Task, Key], Work]:
    """`local_steps` times: `learn_every` epsilon-greedy steps into the replay, then a learning step on a batch of it.

    A learning step is one of `opt` along what `direction` makes of the gradient. In every `sync`-th turn the model then
    becomes the target. While the replay holds fewer than `learn_after` transitions there is none. A step that moves
    nothing is none.

    Source: Mnih et al., "Human-level Control through Deep Reinforcement Learning", Nature 2015, Algorithm 1.

    Args:
      problem: the problem.
      direction, opt: as above.
      epsilon: learning steps so far -> the probability of an action drawn at random.
      local_steps, learn_every, learn_after, sync: as above.
      batch: B, transitions of a learning step.
      is_still: do the first parameters act, and give all gradients? The steps are then added up, and the target stays.
      client_batch: clients a chunk of the gradients; None: all.

    Returns:
      A function ((learned, where the environment is, replay), task, key) -> the same three after the work of a round.
    """
    gradient, everything = chunked(jax.grad(problem.loss), client_batch), jnp.ones(batch, bool)

    def learn(learned: Learned, at: Params, rows: Transition, number: Array, is_enough: Array) -> Learned:
        towards, moments = direction.update(gradient(at, learned.target, rows, everything), learned.moments)
        updates, opt_state = opt.update(towards, learned.opt, learned.params)
        params = optax.apply_updates(learned.params, updates)
        is_due = jnp.asarray(False) if is_still else (number + 1) % sync == 0
        target = trees.select(is_due, params, learned.target)
        # where `opt` stands still, as that of a client which is late, nothing is learned either; NaN is not 0
        is_step = is_enough & (optax.tree.norm(updates) != 0)
        return trees.select(is_step, Learned(params, target, moments, opt_state, learned.steps + 1), learned)

    def work(begun: Work, task: Task, key: Key) -> Work:
        first = begun[0].params

        def step(carry: Work, number: Array) -> tuple[Work, None]:
            learned, running, memory = carry
            at, probability = first if is_still else learned.params, epsilon(learned.steps)
            step_key = jax.random.fold_in(key, number)

            def act(carry, i):
                running, seen = problem.act(at, carry[0], probability, task, jax.random.fold_in(step_key, i))
                return (running, replay.push(carry[1], seen)), None

            (running, memory), _ = jax.lax.scan(act, (running, memory), jnp.arange(learn_every))
            rows = replay.sample(memory, jax.random.fold_in(step_key, learn_every), batch)
            learned = learn(learned, at, rows, number, replay.held(memory) >= learn_after)
            return (learned, running, memory), None

        return jax.lax.scan(step, begun, jnp.arange(local_steps))[0]

    return work

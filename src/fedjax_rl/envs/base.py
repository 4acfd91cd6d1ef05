"""What an environment is: pure functions of one client's one episode, with the task as an argument."""

from collections.abc import Callable, Iterator
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp

from fedjax_rl.types import Array, Key, Task, Tree

LIMIT = 1e10  # a simulation beyond it has diverged, as MuJoCo's own check has it


class EnvSpec(NamedTuple):
    """What of an environment never changes.

    Attributes:
      name: what people call it.
      observation_size: O, entries of an observation.
      action_size: A, entries of an action; 1 where actions are discrete.
      horizon: T, environment steps of an episode; an episode may be over before.
      init_inputs: the number of inputs for which the policy's first layer is initialised. It is O, except where a
        published lineage had more columns that were always zero and are dropped here.
      num_actions: 0 where an action is [A] float. Else there are so many to choose from: an action is then [1] int32,
        0 to num_actions - 1.
      host: do episodes live outside of the compiled program, where every step costs a call? A rollout then ends when
        all are over.

    >>> EnvSpec("windy", observation_size=2, action_size=2, horizon=30, init_inputs=2).num_actions
    0
    """

    name: str
    observation_size: int
    action_size: int
    horizon: int
    init_inputs: int
    num_actions: int = 0
    host: bool = False


class EnvState(NamedTuple):
    """One episode's state: what the environment carries, and what the last step showed.

    There is no automatic reset: the rollout masks whatever follows `done`.

    Attributes:
      physics: what the environment needs for the next step, any pytree. Its floats, as those of obs and reward, must be
        finite and at most LIMIT in size: a rollout ends an episode where they are not.
      obs: [O] float32, what the policy sees.
      reward: () float32, of the last step.
      done: () bool, did the episode end with the last step? That the horizon is reached need not be told: episodes are
        over then, but what follows still has a value.
    """

    physics: Tree
    obs: Array
    reward: Array
    done: Array


class Pictures(NamedTuple):
    """How episodes look that the host steps.

    Attributes:
      show: (task, seed, actions [t, A]) -> pairs of a picture [H, W, 3] uint8 and what was paid until then: before each
        action, and after the last.
      step_ms: how long a step lasts [ms].
    """

    show: Callable[[Any, int, Any], Iterator[tuple[Any, float]]]
    step_ms: float


class Env(NamedTuple):
    """An environment: pure functions of one client's one episode, with the task as an argument.

    Attributes:
      reset: (key, task) -> the state in which an episode begins.
      step: (state, action [A], task) -> the next state.
      sample_tasks: (key, n) -> tasks [n, ...]. It draws by identity: task i depends on the key and on i, never on n.
      spec: what never changes.
      describe: task -> the task in words, for films.
      mjcf: the text of the robot whose qpos is `state.physics.qpos`, for films; "" where there is none.
      model: task -> (transition [S, A, S], reward [S, A]), where there are S states, seen one-hot, and their
        probabilities are known; None elsewhere.
      pictures: of the episode whose seed is `state.physics.seed`, for films; None where there are none.

    >>> import jax, jax.numpy as jnp
    >>> env = make_env("navigation")
    >>> state = env.reset(jax.random.key(0), task=jnp.ones(2))
    >>> env.step(state, jnp.zeros(2), jnp.ones(2)).obs.shape
    (2,)
    """

    reset: Callable[[Key, Task], EnvState]
    step: Callable[[EnvState, Array, Task], EnvState]
    sample_tasks: Callable[[Key, int], Any]
    spec: EnvSpec
    describe: Callable[[Task], str] = str
    mjcf: str = ""
    model: Callable[[Task], tuple[Array, Array]] | None = None
    pictures: Pictures | None = None


def idle(spec: EnvSpec) -> Array:
    """The action [A] of zeros, or number 0 of the discrete ones."""
    return jnp.zeros(spec.action_size, jnp.int32 if spec.num_actions else jnp.float32)


def random_actions(spec: EnvSpec, key: Key, shape: tuple[int, ...]) -> Array:
    """Actions [*shape, A]: U[-1, 1) in each entry, or uniform among the discrete ones."""
    shape = (*shape, spec.action_size)
    if spec.num_actions:
        return jax.random.randint(key, shape, 0, spec.num_actions)
    return jax.random.uniform(key, shape, jnp.float32, -1.0, 1.0)


def finite(tree: Tree, episodes: int) -> Array:
    """[E] bool: is every floating-point entry of an episode at most LIMIT, and a number? tree: leaves [E, ...]."""
    leaves = [x for x in jax.tree.leaves(tree) if jnp.issubdtype(x.dtype, jnp.inexact)]
    return jnp.stack([(jnp.abs(x) <= LIMIT).reshape(episodes, -1).all(axis=1) for x in leaves]).all(axis=0)

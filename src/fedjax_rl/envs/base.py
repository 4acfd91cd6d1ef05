"""What an environment is: pure functions of one client's one episode, with the task as an argument."""

from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp

from fedjax_rl.types import Array, Key, Task, Tree


class EnvSpec(NamedTuple):
    """Static facts: name, observation and action sizes, the fixed horizon in environment steps.

    `num_actions` is 0 where actions are vectors [A] of floats. Else there are so many to choose from: an action is then
    an int32 [1] from 0 to num_actions - 1, and `action_size` is 1.

    `init_inputs` is the number of inputs that the first layer of the policy should be initialised for, where that
    differs from `observation_size` (columns that a published lineage kept constantly zero and that are dropped here).
    """

    name: str
    observation_size: int
    action_size: int
    horizon: int
    init_inputs: int
    num_actions: int = 0


class EnvState(NamedTuple):
    """One episode's state: what the environment carries, and what the last step showed.

    `reward` () is the last step's; `done` () bool says that the episode ended with it. There is no automatic reset:
    the rollout masks whatever follows `done`.
    """

    physics: Tree
    obs: Array
    reward: Array
    done: Array


class Env(NamedTuple):
    """reset(key, task) -> state; step(state, action [A], task) -> state; sample_tasks(key, n) -> tasks [n, ...]; spec.

    `sample_tasks` draws by identity: task i depends on the key and on i alone, never on n.

    For films: `describe` says a task in words, and `mjcf` is the text of the robot whose qpos the state's physics has
    ("": there is no picture).
    """

    reset: Callable[[Key, Task], EnvState]
    step: Callable[[EnvState, Array, Task], EnvState]
    sample_tasks: Callable[[Key, int], Any]
    spec: EnvSpec
    describe: Callable[[Task], str] = str
    mjcf: str = ""


def idle(spec: EnvSpec) -> Array:
    """The action [A] of zeros, or number 0 of the discrete ones."""
    return jnp.zeros(spec.action_size, jnp.int32 if spec.num_actions else jnp.float32)


def random_actions(spec: EnvSpec, key: Key, shape: tuple[int, ...]) -> Array:
    """Actions [*shape, A]: U[-1, 1) in each entry, or uniform among the discrete ones."""
    shape = (*shape, spec.action_size)
    if spec.num_actions:
        return jax.random.randint(key, shape, 0, spec.num_actions)
    return jax.random.uniform(key, shape, jnp.float32, -1.0, 1.0)

"""The seam for environments of the host: their episodes stay there, and what a program carries is a ticket.

One call carries a whole cohort: under `vmap` of `vmap` (members, clients, episodes) the leading axes arrive together
and are flattened into the B rows of a batch, in the order of the reset. An episode is a function of its seed, its task
and its actions, and no object outlives it: nothing crosses rounds, and a resumed run has the same bits.

A state is good for one step. Each call says which step it is, of which batch and with which seeds. It returns the
number of the next step, so that the next call depends on it. A call that is lost, repeated or reordered raises.
"""

import itertools
import threading
from collections import OrderedDict
from collections.abc import Callable
from typing import NamedTuple, Protocol

import jax
import jax.numpy as jnp
import numpy as np

from fedjax_rl.envs.base import Env, EnvSpec, EnvState, Pictures
from fedjax_rl.envs.callback import host_call
from fedjax_rl.types import Array, Key, Task

MOST_BATCHES = 32  # at a time: an algorithm's batches of one round, on every device
SEED_BITS = 0x7FFFFFFF


class Batch(Protocol):
    """B episodes from their reset on. obs [B, O] float32 is what they showed last."""

    obs: np.ndarray

    def step(self, actions: np.ndarray, live: np.ndarray) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        """Actions [B, A], live [B] bool -> (obs [B, O], reward [B], done [B]); only live rows are read."""

    def close(self) -> None:
        """All episodes are over."""


class HostState(NamedTuple):
    """ticket () uint32: the reset's number; t () int32: steps since; seed () uint32."""

    ticket: Array
    t: Array
    seed: Array


class _Running:
    """A batch, which of its episodes are not over, and how many steps it has taken."""

    def __init__(self, batch: Batch, seeds: np.ndarray):
        self.batch, self.obs, self.seeds = batch, np.array(batch.obs, np.float32), seeds
        self.live, self.t = np.ones(len(seeds), bool), 0

    def step(self, actions: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """Actions [B, A] -> (reward [B], done [B]). What is over, or not finite, is not stepped again."""
        reward, live = np.zeros(len(self.live), np.float32), self.live.copy()
        if live.any():
            self.t += 1
            obs, earned, done = self.batch.step(actions, live)
            self.obs[live], reward[live] = obs[live], earned[live]
            self.live &= ~done & np.isfinite(self.obs).all(axis=1) & np.isfinite(reward)
            if not self.live.any():
                self.batch.close()
        return reward, ~self.live


class Host:
    """Every batch of an environment that may still be stepped. begin: (seeds [B], tasks [B, ...]) -> Batch."""

    def __init__(self, name: str, begin: Callable[[np.ndarray, np.ndarray], Batch]):
        self.name, self.begin = name, begin
        self.running: OrderedDict[tuple[int, int], _Running] = OrderedDict()
        self.tickets, self.lock = itertools.count(1), threading.Lock()

    def reset(self, seed, task) -> tuple[np.ndarray, np.ndarray]:
        """Host side of a reset: seed [...] uint32, task [..., ...] -> (obs [..., O], ticket [...])."""
        seed, task = np.asarray(seed), np.asarray(task)
        with self.lock:
            ticket = next(self.tickets)
            obs = self.start(ticket, seed, task).obs.copy()
        return obs.reshape(*seed.shape, -1), np.full(seed.shape, ticket, np.uint32)

    def start(self, ticket: int, seed: np.ndarray, task: np.ndarray) -> _Running:
        """A new batch; the oldest one makes way for it, of those that are over first."""
        rows, lead = seed.reshape(-1).copy(), seed.ndim
        made = _Running(self.begin(rows, task.reshape(-1, *task.shape[lead:]).copy()), rows)
        if len(self.running) >= MOST_BATCHES:
            over = (key for key, batch in self.running.items() if not batch.live.any())
            old = self.running.pop(next(over, next(iter(self.running))))
            if old.live.any():
                old.batch.close()
        self.running[ticket, len(rows)] = made
        return made

    def step(self, ticket, t, seed, task, action) -> tuple[np.ndarray, ...]:
        """Host side of a step: the state, task and action [..., A] -> (obs [..., O], reward, done, next t [...])."""
        ticket, t, seed, task, action = map(np.asarray, (ticket, t, seed, task, action))
        lead = ticket.shape
        with self.lock:
            running = self.find(ticket.reshape(-1), int(t.max()), seed, task)
            reward, done = running.step(action.reshape(ticket.size, -1))
            obs, now = running.obs.copy().reshape(*lead, -1), np.full(lead, running.t, np.int32)
        return obs, reward.reshape(lead), done.reshape(lead), now

    def find(self, tickets: np.ndarray, t: int, seed: np.ndarray, task: np.ndarray) -> _Running:
        """The batch that a step is meant for.

        Rows of finished episodes keep their t, so that the largest counts; when all are over, none does. One reset may
        serve many rollouts, as when policies differ and keys do not. Side by side they are more rows than were reset;
        one after the other, the compiler makes one reset of equal ones. Both are begun anew from their seeds.

        Raises:
          RuntimeError: there is none, or the step is not its next one.
        """
        key = int(tickets[0]), len(tickets)
        running = self.running.get(key)
        if t == 0 and (running is None or (running.t > 0 and not running.live.any())):
            running = self.start(key[0], seed, task)
        if running is None:
            raise RuntimeError(f"{self.name}: more than {MOST_BATCHES} batches of episodes at a time")
        is_next = t == running.t or not running.live.any()
        if not is_next or (tickets != key[0]).any() or (seed.reshape(-1) != running.seeds).any():
            raise RuntimeError(f"{self.name}: step {t} of batch {key[0]} came where step {running.t} was due")
        return running


def host_env(
    spec: EnvSpec,
    begin: Callable[[np.ndarray, np.ndarray], Batch],
    sample_tasks: Callable[[Key, int], Array],
    describe: Callable[[Task], str],
    pictures: Pictures | None = None,
) -> Env:
    """An environment of the host as an `Env`, whose episodes are seeded by their keys.

    Args:
      spec: with `host`.
      begin: (seeds [B] of 31 bits, tasks [B, ...]) -> B new episodes.
      sample_tasks: as in `Env`; a task is an array.
      describe, pictures: as in `Env`.
    """
    host = Host(spec.name, begin)
    shape = jax.ShapeDtypeStruct
    obs, number = shape((spec.observation_size,), jnp.float32), shape((), jnp.float32)
    call_reset = host_call(host.reset, (obs, shape((), jnp.uint32)))
    call_step = host_call(host.step, (obs, number, shape((), jnp.bool_), shape((), jnp.int32)))

    def reset(key, task):
        seed = jax.random.bits(key, dtype=jnp.uint32) & SEED_BITS
        shown, ticket = call_reset(seed, jnp.asarray(task))
        state = HostState(ticket, jnp.zeros((), jnp.int32), seed)
        return EnvState(state, shown, jnp.zeros(()), jnp.zeros((), bool))

    def step(state, action, task):
        shown, reward, done, t = call_step(*state.physics, jnp.asarray(task), action)
        return EnvState(state.physics._replace(t=t), shown, reward, done)

    return Env(reset, step, sample_tasks, spec, describe, pictures=pictures)

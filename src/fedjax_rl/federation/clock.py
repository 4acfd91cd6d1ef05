"""A virtual clock for clients that start and arrive at times of their own.

Time is counted in ticks, whole numbers, so that two arrivals at one time are so on every machine. Who arrives when
never depends on what was learned, so the clock can run ahead of the physics (`plan.py`).
"""

import functools
from typing import NamedTuple

import jax.numpy as jnp

from fedjax_rl.federation.times import TICKS, Duration
from fedjax_rl.types import Array

FAR = 2**30  # the finish of a slot that waits for the next update
RESTARTS = ("now", "update", "abort")


class Schedule(NamedTuple):
    """Who starts when, and when the server updates; static.

    Attributes:
      num_clients: N.
      in_flight: C, jobs at a time, each in a slot.
      buffer: K, arrivals of an update; under "harmonic" the most there can be.
      updates: F, updates of a plan at most; F K lanes.
      restart: "now": the slot of who arrived starts at once, on the newest parameters (AFedPG, FedAsync, FedBuff).
        "update": it waits for the next update. "abort": it starts at once on the same parameters, and at an update
        everybody drops what he does and starts anew (Rennala, Malenia).
      next: who gets a free slot: the "same" client, or an "idle" one, drawn uniformly, the leaver among them.
      due: when an update is due: at a "count" of K arrivals; or "harmonic", when every client has arrived M_i >= 1
        times and N / sum_i 1/M_i >= target / N (Malenia; Tyurin, Pozzi, Ilin and Richtarik 2023).
      target: of "harmonic".
    """

    num_clients: int
    in_flight: int
    buffer: int
    updates: int
    restart: str = "now"
    next: str = "same"
    due: str = "count"
    target: int = 0


class Time(NamedTuple):
    """The time since the beginning; () int32 each.

    Attributes:
      units: whole units.
      ticks: less than a unit.
    """

    units: Array
    ticks: Array

    def later(self, ticks: Array) -> "Time":
        """The time so many ticks later."""
        ticks = self.ticks + ticks
        return Time(self.units + ticks // TICKS, ticks % TICKS)

    def as_units(self) -> Array:
        """The time as one number of units."""
        return self.units + self.ticks / TICKS


def zero_time() -> Time:
    """The time at the beginning."""
    return Time(jnp.zeros((), jnp.int32), jnp.zeros((), jnp.int32))


class Clock(NamedTuple):
    """What is going on; all int32.

    Attributes:
      finish: [C] ticks from now on, or FAR.
      client, job, version: [C] of each slot: who works, the number of this job of his, updates before he started.
      jobs: [N] jobs that each client has begun.
      updates: () so far.
      arrivals: () so far, in all updates.
      draws: () how often idle clients have been drawn.
      time: so far.
    """

    finish: Array
    client: Array
    job: Array
    version: Array
    jobs: Array
    updates: Array
    arrivals: Array
    draws: Array
    time: Time


def start(schedule: Schedule, duration: Duration) -> Clock:
    """The clock at 0: client i works in slot i."""
    none = functools.partial(jnp.zeros, dtype=jnp.int32)  # each an array of its own, so that a state can be donated
    client = jnp.arange(schedule.in_flight, dtype=jnp.int32)
    job, version = none(client.shape), none(client.shape)
    jobs = none(schedule.num_clients).at[client].set(1)
    return Clock(duration(client, job), client, job, version, jobs, none(()), none(()), none(()), zero_time())

"""What arrives next on a clock: arrivals that can be computed side by side, with the numbers of one after another."""

from collections.abc import Callable
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from fedjax_rl import trees
from fedjax_rl.federation.clock import FAR, Clock, Schedule
from fedjax_rl.federation.metrics import ARRIVALS
from fedjax_rl.federation.times import Duration, wait_of_idle
from fedjax_rl.types import Array, Metrics


class Lanes(NamedTuple):
    """The arrivals of a plan in order, [L = F K] each.

    Attributes:
      slot, client, job, version: as in `Clock`.
      fresh: bool, did it start in this plan, before any update of it? Its parameters are then the newest.
      valid: bool, does the lane hold an arrival at all?
      due: bool, is there an update after it?
      capped: bool, is that so only since the buffer is full, although "harmonic" asks for more?
      time: ticks from the plan's start.
    """

    slot: Array
    client: Array
    job: Array
    version: Array
    fresh: Array
    valid: Array
    due: Array
    capped: Array
    time: Array


Scores = Callable[[Array], Array]  # (number of the draw) -> [N], of which the highest are taken


def _restarted(schedule: Schedule, duration: Duration, scores: Scores, clock: Clock, slots: Array, now: Array) -> Clock:
    """The clock after the slots [C] bool have begun their next jobs."""
    new = clock.client
    if schedule.next == "idle":
        stays = jnp.where(slots, schedule.num_clients, clock.client)  # whoever leaves a slot is idle again
        is_idle = jnp.ones(schedule.num_clients, bool).at[stays].set(False, mode="drop")
        many = 1 if schedule.restart == "now" else schedule.in_flight
        _, best = jax.lax.top_k(jnp.where(is_idle, scores(clock.draws), -1.0), many)
        rank = jnp.clip(jnp.cumsum(slots) - 1, 0, many - 1)  # the r-th free slot takes the r-th highest score
        new = jnp.where(slots, best[rank], new).astype(jnp.int32)
    job = jnp.where(slots, clock.jobs[new], clock.job)
    finish = jnp.where(slots, now + duration(new, job), clock.finish)
    jobs = clock.jobs.at[jnp.where(slots, new, schedule.num_clients)].add(1, mode="drop")
    version = jnp.where(slots, clock.updates, clock.version)
    return clock._replace(finish=finish, client=new, job=job, version=version, jobs=jobs, draws=clock.draws + 1)


class _Planning(NamedTuple):
    """A plan as it grows. fresh, later [C] bool: slots that started in it before, and after its first update.

    counts [N], size (): arrivals of the open buffer. done, elapsed: the clock and time at the last update.
    """

    clock: Clock
    done: Clock
    elapsed: Array
    is_open: Array
    updates: Array
    fresh: Array
    later: Array
    counts: Array
    size: Array


def _first(schedule: Schedule, lots: Scores, clock: Clock) -> Array:
    """The slot that arrives next. Of several at one time the lowest, and the others after it.

    Where an update begins all jobs anew, the others would not arrive, and the last never. There it is drawn.
    """
    if schedule.restart != "abort":
        return jnp.argmin(clock.finish)
    is_first = clock.finish == clock.finish.min()
    return jnp.argmax(jnp.where(is_first, lots(clock.updates)[clock.client], -1.0))


def _is_due(schedule: Schedule, counts: Array, size: Array) -> tuple[Array, Array]:
    """(Is an update due? Only since the buffer is full?), of the arrivals in the buffer, counts [N]."""
    full = size == schedule.buffer
    if schedule.due == "count":
        return full, jnp.zeros((), bool)
    shares = jnp.sum(1.0 / jnp.maximum(counts, 1))
    # a hair's breadth for the rounding of the sum
    enough = (counts > 0).all() & (schedule.target * shares <= schedule.num_clients**2 * (1 + 1e-6))
    return enough | full, full & ~enough


def _after(
    schedule: Schedule, duration: Duration, scores: Scores, pause: Array | int, at: _Planning, slot: Array
) -> tuple[_Planning, Array, Array]:
    """(The plan after the arrival of a slot, is an update due then, only since the buffer is full)."""
    clock, now = at.clock, at.clock.finish[slot]
    counts, size = at.counts.at[clock.client[slot]].add(1), at.size + 1
    due, capped = _is_due(schedule, counts, size)
    clock = clock._replace(updates=clock.updates + due, arrivals=clock.arrivals + 1)
    now = now + jnp.where(due, pause, 0)
    arrived = jnp.arange(schedule.in_flight) == slot
    if schedule.restart == "update":
        clock = clock._replace(finish=jnp.where(arrived, FAR, clock.finish))
        slots = (clock.finish == FAR) & due
    else:
        slots = arrived | (due & (schedule.restart == "abort"))
    begun = _restarted(schedule, duration, scores, clock, slots, now)
    clock = begun._replace(draws=jnp.where(slots.any(), begun.draws, clock.draws))
    updates = at.updates + due
    done, elapsed = trees.select(due, (clock, now), (at.done, at.elapsed))
    new = at._replace(
        clock=clock,
        done=done,
        elapsed=elapsed,
        updates=updates,
        fresh=jnp.where(slots, updates == 0, at.fresh),
        later=jnp.where(slots, updates > 0, at.later),
        counts=jnp.where(due, 0, counts),
        size=jnp.where(due, 0, size),
    )
    return new, due, capped


def plan(
    schedule: Schedule, duration: Duration, scores: Scores, lots: Scores, clock: Clock, pause: Array | int = 0
) -> tuple[Clock, Lanes]:
    """The next arrivals that can be computed together: of whole buffers, at least one, at most `updates`.

    An arrival can be computed if it started before the plan's first update. At the first one that did not, the plan
    ends. So as many arrivals are together as can be: each depends on all before the update that it started from.

    Args:
      schedule: the rules.
      duration: of a job.
      scores: of a draw of idle clients.
      lots: of an update: who of several at one time is the first.
      clock: now.
      pause: ticks that every update takes in which nobody works; for "abort", where all wait for the update anyway.

    Returns:
      (the clock after the last update, its times counted from there; the lanes).
    """

    def lane(at: _Planning, _: None) -> tuple[_Planning, tuple[Lanes, Array]]:
        slot = _first(schedule, lots, at.clock)
        valid = at.is_open & ~at.later[slot] & (at.clock.finish[slot] < FAR)
        new, due, capped = _after(schedule, duration, scores, pause, at, slot)
        row = Lanes(
            slot=slot.astype(jnp.int32),
            client=at.clock.client[slot],
            job=at.clock.job[slot],
            version=at.clock.version[slot],
            fresh=at.fresh[slot],
            valid=valid,
            due=due & valid,
            capped=capped & valid,
            time=at.clock.finish[slot],
        )
        kept = trees.select(valid, new, at)
        return kept._replace(is_open=valid), (row, at.updates)

    zero, no_slot = jnp.zeros((), jnp.int32), jnp.zeros(schedule.in_flight, bool)
    counts = jnp.zeros(schedule.num_clients, jnp.int32)
    first = _Planning(clock, clock, zero, jnp.ones((), bool), zero, no_slot, no_slot, counts, zero)
    last, (lanes, buffers) = jax.lax.scan(lane, first, length=schedule.buffer * schedule.updates)
    lanes = lanes._replace(valid=lanes.valid & (buffers < last.updates))  # those of a buffer that was not filled wait
    return _rebased(last.done, last.elapsed), lanes


def _rebased(clock: Clock, elapsed: Array) -> Clock:
    """The clock with its times counted from `elapsed` ticks later."""
    finish = jnp.where(clock.finish == FAR, FAR, clock.finish - elapsed)
    return clock._replace(finish=finish, time=clock.time.later(elapsed))


def good_updates(schedule: Schedule, speed: np.ndarray) -> int:
    """F: three quarters of sum_i t_min / t_i, the arrivals before one comes back (without noise), in whole buffers."""
    if schedule.restart != "now":
        return 1
    rest = wait_of_idle(speed, schedule.in_flight) if schedule.next == "idle" else 0.0
    working = speed if schedule.next == "idle" else speed[: schedule.in_flight]
    arrivals = 0.75 * float(np.min(working) * np.sum(1.0 / (working + rest)))
    return max(1, round(arrivals / schedule.buffer))


def shown_of(schedule: Schedule, clock: Clock, lanes: Lanes, ages: Array) -> Metrics:
    """What a round shows of its clock; times, updates and arrivals since the beginning."""
    capped = {"health/capped": lanes.capped.sum()} if schedule.due == "harmonic" else {}
    ages = jnp.where(lanes.valid, ages, 0)
    return {
        "clock/time": clock.time.as_units(),
        "clock/updates": clock.updates,
        ARRIVALS: clock.arrivals,
        "clock/staleness_mean": ages.sum() / lanes.valid.sum(),
        "clock/staleness_max": ages.max(),
        "clock/lanes": lanes.valid.mean(),
        **capped,
    }

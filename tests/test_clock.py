"""The virtual clock, against one arrival at a time from a heap, and against closed forms."""

import heapq
from fractions import Fraction

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from fedjax_rl.federation.clock import Schedule, start
from fedjax_rl.federation.plan import good_updates, plan
from fedjax_rl.federation.times import NOISES, SPEEDS, TICKS, durations, wait_of_idle

KEY = jax.random.key(7)


def speeds(name, n, ratio=4.0):
    return SPEEDS[name](jax.random.fold_in(KEY, 1), jnp.arange(n), n, ratio)


def scores_of(n):
    return lambda draw: jax.random.uniform(jax.random.fold_in(jax.random.fold_in(KEY, 2), draw), (n,))


def lots_of(n):
    return lambda update: jax.random.uniform(jax.random.fold_in(jax.random.fold_in(KEY, 4), update), (n,))


def planned(schedule, speed, noise, rounds):
    """The arrivals of some rounds: (time, client, job, staleness), the lanes' rows, the last clock."""
    duration = durations(jax.random.fold_in(KEY, 3), speed, noise)
    scores, lots = scores_of(schedule.num_clients), lots_of(schedule.num_clients)
    step = lambda clock, _: plan(schedule, duration, scores, lots, clock)
    clock, lanes = jax.jit(lambda: jax.lax.scan(step, start(schedule, duration), length=rounds))()
    found, began, updates = [], 0, 0
    lanes = jax.tree.map(np.asarray, lanes)
    for r in range(rounds):
        elapsed = 0
        for i in np.flatnonzero(lanes.valid[r]):
            version = int(lanes.version[r, i])
            found.append(
                (began + int(lanes.time[r, i]), int(lanes.client[r, i]), int(lanes.job[r, i]), updates - version)
            )
            if lanes.due[r, i]:
                updates, elapsed = updates + 1, int(lanes.time[r, i])
        began += elapsed
    assert began == int(clock.time.units) * TICKS + int(clock.time.ticks) and updates == int(clock.updates)
    return found, lanes, clock


def one_by_one(s, speed, noise, arrivals, key=None, scores_at=None):
    """The same from a heap, exactly."""
    duration = durations(jax.random.fold_in(KEY, 3) if key is None else key, speed, noise)
    table = np.asarray(
        jax.jit(jax.vmap(lambda c: jax.vmap(lambda j: duration(c, j))(jnp.arange(arrivals))))(jnp.arange(s.num_clients))
    )
    scores = np.asarray(jax.jit(jax.vmap(scores_at or scores_of(s.num_clients)))(jnp.arange(arrivals + 1)))
    lots = np.asarray(jax.jit(jax.vmap(lots_of(s.num_clients)))(jnp.arange(arrivals + 1)))
    heap, jobs, work, generation = [], [0] * s.num_clients, [None] * s.in_flight, [0] * s.in_flight
    updates, draws, waiting, buffer, found = 0, 0, [], [], []

    def begin(slot, client, now):
        work[slot] = client, jobs[client], updates
        generation[slot] += 1
        rank = -lots[updates][client] if s.restart == "abort" else slot  # of several at one time
        heapq.heappush(heap, (now + int(table[client, jobs[client]]), rank, slot, generation[slot]))
        jobs[client] += 1

    def restart(slots, now):
        nonlocal draws
        if s.next == "same":
            new = [work[slot][0] for slot in slots]
        else:
            busy = {work[slot][0] for slot in range(s.in_flight) if slot not in slots}
            idle = [client for client in range(s.num_clients) if client not in busy]
            new = sorted(idle, key=lambda client: -scores[draws][client])[: len(slots)]
        draws += 1
        for slot, client in zip(sorted(slots), new, strict=True):
            begin(slot, client, now)

    for slot in range(s.in_flight):
        begin(slot, slot, 0)
    while len(found) < arrivals:
        now, _, slot, number = heapq.heappop(heap)
        if number != generation[slot]:
            continue  # it was aborted
        client, job, version = work[slot]
        found.append((now, client, job, updates - version))
        buffer.append(client)
        counts = [buffer.count(client) for client in range(s.num_clients)]
        enough = all(counts) and Fraction(s.num_clients) ** 2 >= s.target * sum(Fraction(1, c) for c in counts)
        due = len(buffer) == s.buffer or (s.due == "harmonic" and enough)
        updates, buffer = (updates + 1, []) if due else (updates, buffer)
        if s.restart == "update":
            waiting.append(slot)
            if due:
                restart(sorted(waiting), now)
                waiting = []
        else:
            restart(range(s.in_flight) if due and s.restart == "abort" else [slot], now)
    return found


SCHEDULES = {
    "AFedPG": (Schedule(8, 8, 1, 3), "linear"),
    "AFedPG, idle": (Schedule(20, 6, 1, 4, next="idle"), "uniform"),
    "FedBuff": (Schedule(20, 8, 3, 2, next="idle"), "linear"),
    "FedBuff, same": (Schedule(8, 8, 3, 2), "one_slow"),
    "at most one message": (Schedule(20, 8, 3, 2, restart="update", next="idle"), "alternate"),
    "synchronous": (Schedule(6, 6, 6, 1, restart="update"), "lognormal"),
    "Rennala": (Schedule(6, 6, 15, 1, restart="abort"), "sqrt"),
    "Malenia": (Schedule(6, 6, 30, 1, restart="abort", due="harmonic", target=12), "sqrt"),
}


@pytest.mark.parametrize(
    ("name", "noise"), [*((name, "shifted") for name in SCHEDULES), ("AFedPG", "none"), ("Malenia", "none")]
)
def test_plans_are_one_arrival_after_another(name, noise):
    schedule, speed = SCHEDULES[name]
    speed = speeds(speed, schedule.num_clients)
    found, lanes, _ = planned(schedule, speed, noise, 40)
    assert found == one_by_one(schedule, speed, noise, len(found))
    assert (lanes.due.sum(axis=1) >= 1).all()  # every plan makes an update
    ends = [lanes.due[r][lanes.valid[r]][-1] for r in range(40)]
    assert all(ends)  # and ends with one


@pytest.mark.parametrize("updates", [1, 7, 20])
def test_lanes_change_no_arrival(updates):
    speed = speeds("linear", 20)
    found, *_ = planned(Schedule(20, 20, 1, updates), speed, "lognormal", 120 // updates)
    assert found == one_by_one(Schedule(20, 20, 1, 1), speed, "lognormal", len(found))
    assert len(found) >= 60


@pytest.mark.parametrize("speed", ["equal", "one_slow", "alternate"])
def test_an_update_that_aborts_hears_every_one_of_the_equally_fast(speed):
    schedule = Schedule(12, 12, 3, 1, restart="abort")
    found, *_ = planned(schedule, speeds(speed, 12), "none", 200)
    assert found == one_by_one(schedule, speeds(speed, 12), "none", len(found))
    heard = np.bincount([client for _, client, _, _ in found], minlength=12)
    fast = heard[np.asarray(speeds(speed, 12)) == 1.0]
    assert heard.sum() == 600 and fast.sum() == 600  # who is slower never is among the first three
    assert abs(fast - 600 / len(fast)).max() < 5 * np.sqrt(600 / len(fast))


def test_what_started_after_the_first_update_is_never_in_the_plan():
    schedule = Schedule(20, 20, 2, 8)
    _, lanes, _ = planned(schedule, speeds("linear", 20), "exponential", 60)
    before = np.concatenate([[0], np.cumsum(lanes.due.sum(axis=1))[:-1]])[:, None]
    assert (lanes.version <= before)[lanes.valid].all()  # known at the plan's start
    assert (lanes.version == before)[lanes.valid & lanes.fresh].all() and (lanes.valid & lanes.fresh).any()


@pytest.mark.parametrize(
    ("speed", "n", "rate"),
    [("one_slow", 4, 3.25), ("sqrt", 10, 5.021), ("linear", 8, 1.946 * 2), ("linear", 40, 1.865 * 10)],
)
def test_updates_a_unit_of_time_are_the_sum_of_the_clients_rates(speed, n, rate):
    schedule = Schedule(n, n, 1, n)
    _, _, clock = planned(schedule, speeds(speed, n), "none", 600)
    time = float(clock.time.as_units())
    assert int(clock.updates) / time == pytest.approx(rate, rel=0.01)
    assert rate == pytest.approx(np.sum(1 / np.asarray(speeds(speed, n))), rel=1e-3)


STALENESS = {  # the mean of (C - 1) / K, (C - K) / K where clients wait for the update, and 0 where they are aborted
    "AFedPG": (Schedule(8, 8, 1, 3), 7.0),
    "AFedPG, many": (Schedule(20, 20, 1, 7), 19.0),
    "FedBuff": (Schedule(40, 20, 5, 1, next="idle"), 19 / 5),
    "at most one message": (Schedule(40, 20, 5, 1, restart="update", next="idle"), 15 / 5),
    "Rennala": (Schedule(6, 6, 15, 1, restart="abort"), 0.0),
}


@pytest.mark.parametrize(("noise", "close"), [("exponential", 0.02), ("pareto", 0.05)])
@pytest.mark.parametrize("name", STALENESS)
def test_mean_staleness_does_not_depend_on_the_times(name, noise, close):
    """Nor on a noise without a variance, whose rare long jobs make its estimate slower."""
    schedule, expected = STALENESS[name]
    c = schedule.in_flight
    found, *_ = planned(schedule, speeds("linear", schedule.num_clients), noise, 60 * c // schedule.buffer)
    stale = [row[3] for row in found[10 * c :]]
    assert len(stale) >= 40 * c
    assert np.mean(stale) == pytest.approx(expected, rel=close, abs=1e-9)


@pytest.mark.parametrize(("target", "time"), [(10, 2.828), (20, 5.0), (30, 6.928), (50, 11.0)])
def test_rennala_waits_for_as_many_gradients_from_whomever(target, time):
    """The M-th smallest of {j t_i}."""
    speed = speeds("sqrt", 10)
    _, _, clock = planned(Schedule(10, 10, target, 1, restart="abort"), speed, "none", 3)
    assert (float(clock.time.as_units())) / 3 == pytest.approx(time, abs=1e-3)
    multiples = np.sort(np.outer(np.arange(1, target + 1), np.asarray(speed)).ravel())
    assert multiples[target - 1] == pytest.approx(time, abs=1e-3)


@pytest.mark.parametrize(("target", "time", "gradients"), [(10, 3.162, 13), (30, 8.0, 36), (60, 15.0, 71)])
def test_malenia_waits_for_a_harmonic_mean(target, time, gradients):
    schedule = Schedule(10, 10, 100, 1, restart="abort", due="harmonic", target=target)
    found, lanes, clock = planned(schedule, speeds("sqrt", 10), "none", 2)
    assert (float(clock.time.as_units())) / 2 == pytest.approx(time, abs=1e-3)
    # at one time the lowest slot comes first, and what is enough may be there before all of that time
    assert abs(len(found) / 2 - gradients) <= 2 and not lanes.capped.any()
    capped = planned(schedule._replace(buffer=target // 2), speeds("sqrt", 10), "none", 1)[1]
    assert capped.capped.sum() == 1 and capped.valid.sum() == target // 2


@pytest.mark.parametrize("c", [10, 40])
def test_idle_clients_arrive_in_proportion_to_their_rate_and_a_common_wait(c):
    n, schedule = 40, Schedule(40, c, 5, 1, next="idle")
    speed = speeds("linear", n)
    found, *_ = planned(schedule, speed, "none", 4000)
    share = np.bincount([row[1] for row in found[10 * c :]], minlength=n)
    w = wait_of_idle(np.asarray(speed), c)
    want = 1 / (np.asarray(speed) + w)
    np.testing.assert_allclose(share / share.sum(), want / want.sum(), rtol=0.12)
    assert np.sum(np.asarray(speed) / (np.asarray(speed) + w)) == pytest.approx(c, rel=1e-6)


def test_a_plan_of_one_arrival_an_update_is_as_long_as_the_fastest_one_is_away():
    n = 50
    speed = speeds("linear", n)
    _, lanes, _ = planned(Schedule(n, n, 1, n), speed, "none", 300)
    mean = float(np.sum(np.min(speed) / np.asarray(speed)))
    assert lanes.valid[100:].sum(axis=1).mean() == pytest.approx(mean, rel=0.03)
    schedule = Schedule(n, n, 1, 1)
    assert good_updates(schedule, np.asarray(speed)) == round(0.75 * mean)
    _, lanes, _ = planned(schedule._replace(updates=round(0.75 * mean)), speed, "none", 300)
    assert lanes.valid[100:].mean() > 0.98


@pytest.mark.parametrize("name", [name for name in NOISES if name != "lognormal"])
def test_noises_have_the_mean_one(name):
    draws = np.asarray(jax.jit(jax.vmap(NOISES[name]))(jax.random.split(KEY, 40_000)))
    assert (draws > 0).all()
    if name == "pareto":  # of tail 3/2, which has no variance: by its floor and its median
        assert draws.min() >= 1 / 3 and np.median(draws) == pytest.approx(2 ** (2 / 3) / 3, rel=0.02)
    else:
        assert draws.mean() == pytest.approx(1.0, abs=0.03)


def test_speeds_follow_from_the_client_alone():
    for name in ("uniform", "lognormal"):
        some = SPEEDS[name](KEY, jnp.arange(3, 6), 100, 4.0)
        np.testing.assert_array_equal(some, SPEEDS[name](KEY, jnp.arange(100), 100, 4.0)[3:6])
    assert float(jnp.min(speeds("uniform", 500))) >= 1 and float(jnp.max(speeds("uniform", 500))) <= 4
    assert speeds("alternate", 4).tolist() == [1, 4, 1, 4] and speeds("one_slow", 3).tolist() == [1, 1, 4]
    assert speeds("linear", 1).tolist() == [1]

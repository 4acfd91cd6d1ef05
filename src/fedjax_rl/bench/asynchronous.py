"""P12: a client's job in an asynchronous federation, beside one in a synchronous round; and what the plan costs."""

import functools
from collections.abc import Callable
from typing import Any

import jax
import numpy as np

from fedjax_rl.bench.rows import Row, interleaved, median, row, spread
from fedjax_rl.config import Config, build, presets
from fedjax_rl.envs import engine
from fedjax_rl.federation import clock, plan, simulate
from fedjax_rl.federation.times import durations
from fedjax_rl.host.numerics import root_key
from fedjax_rl.runs import assemble, loop, timing
from fedjax_rl.types import Array

SIZES, EPISODES, ROUNDS = (8, 40, 200), 10, 5
COHORT = 40  # clients of a synchronous round, at most


def asynchronous(env: str, backend: str, sizes: tuple[int, ...], repeats: int) -> list[Row]:
    """AFedPG for each number of clients, with times of 1 to 4; and FedBuff with buffers of ten."""
    common: dict[str, Any] = {"env": env, "backend": engine(env, backend), "episodes": EPISODES, "speed": "linear"}
    rows = []
    for n in sizes or SIZES:
        cohort = min(n, COHORT)
        late = build("afedpg", presets.preset("laptop", "afedpg", env), common, {"num_clients": n})
        plain = {"num_clients": n, "clients_per_round": cohort}
        waiting = build("fedavg", presets.preset("fedpg", "fedavg", env), common, plain)
        rows.append(compared("AFedPG", timing.with_lanes(late), waiting, repeats))
    late = build("fedavg", presets.preset("fedbuff", "fedavg", env), common)
    waiting = build("fedavg", presets.preset("laptop", "fedavg", env), common, {"clients_per_round": late.buffer})
    return [*rows, compared("FedBuff", late, waiting, repeats)]


def compared(what: str, late: Config, waiting: Config, repeats: int) -> Row:
    """Seconds of a job in both, and of a plan."""
    jobs: dict[str, list[float]] = {"late": [], "waiting": []}
    fns = {"late": rounds(late, jobs["late"]), "waiting": rounds(waiting, jobs["waiting"]), "plan": plans(late)}
    seconds = interleaved(fns, repeats)
    per_job = {name: median(seconds[name]) / float(np.mean(jobs[name])) for name in jobs}
    return row(
        "P12",
        what=what,
        env=late.env,
        backend=late.backend,
        clients=late.num_clients,
        lanes=late.clients_per_round,
        lanes_used=float(np.mean(jobs["late"])) / (ROUNDS * late.clients_per_round),
        cohort=waiting.clients_per_round,
        job_s=per_job["late"],
        synchronous_job_s=per_job["waiting"],
        job_over_synchronous=per_job["late"] / per_job["waiting"],
        plan_of_round=median(seconds["plan"]) / median(seconds["late"]),
        round_range=[x / ROUNDS for x in spread(seconds["late"])],
    )


def rounds(config: Config, jobs: list[float]) -> Callable[[], Any]:
    """() -> the metrics of the next ROUNDS rounds; `jobs` gets how many clients worked in them."""
    group = assemble.make_group([config])
    step, states = loop.compile_round(group).step, [assemble.initial_states(group)]
    alive = np.ones(1, bool)

    def call() -> Any:
        shown = []
        for _ in range(ROUNDS):
            states[0], _, metrics = step(states[0], alive, group.values)
            shown.append(jax.block_until_ready(metrics))
        jobs.append(float(sum((np.asarray(m["who/selected"]) >= 0).sum() for m in shown)))
        return shown

    return call


def plans(config: Config) -> Callable[[], Any]:
    """() -> the clock after ROUNDS plans, which knows no parameters."""
    schedule, key = timing.schedule_of(config), root_key(0)
    pace = timing.pace_of(vars(config))
    duration = durations(simulate.stream(key, simulate.DELAY), pace.speeds(key, config.num_clients), pace.noise)

    def drawn(name: int, number: Array) -> Array:
        return jax.random.uniform(simulate.stream(key, name, number), (config.num_clients,))

    scores, lots = (functools.partial(drawn, name) for name in (simulate.SELECT, simulate.TIES))
    step = jax.jit(lambda now: plan.plan(schedule, duration, scores, lots, now))
    at = [jax.jit(lambda: clock.start(schedule, duration))()]

    def call() -> Any:
        for _ in range(ROUNDS):
            at[0], lanes = step(at[0])
            jax.block_until_ready(lanes)
        return at[0]

    return call

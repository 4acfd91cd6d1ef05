"""Federations on a clock, against one arrival after another in NumPy, and against the synchronous engine."""

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from contracts.quadratic import PROBLEM, STEPS, VALUES, federation, make, sample_tasks
from fedjax_rl.config import CONFIGS
from fedjax_rl.federation import aggregators, attacks, compress, robust, secure, simulate
from fedjax_rl.federation.asynchronous import make_async_simulation
from fedjax_rl.federation.clock import Schedule
from fedjax_rl.federation.exchange import Wires
from fedjax_rl.federation.staleness import Discount
from fedjax_rl.federation.times import EQUAL, Pace
from fedjax_rl.host import registry
from fedjax_rl.host.exits import ConfigError
from fedjax_rl.types import Attack, Stats
from test_clock import one_by_one

pytestmark = pytest.mark.usefixtures("x64")
ALONE = [name for name in registry.OWN["algorithm"] if not CONFIGS[name].refuses_async]


def noisy(params, task, key):
    """The quadratic with a draw of its own in every job."""
    return {**task, "u": task["u"] + jax.random.normal(key, (3,), jnp.float64)}, Stats(
        jnp.zeros(()), jnp.zeros((), int)
    )


NOISY = PROBLEM._replace(sample=noisy)
NOISY_VALUES = VALUES._replace(
    act=lambda params, at, epsilon, task, key: VALUES.act(params, at, epsilon, noisy(params, task, key)[0], key)
)


def asynchronous(algorithm, schedule, pace=EQUAL, **options):
    return make_async_simulation(
        algorithm,
        num_clients=schedule.num_clients,
        schedule=schedule,
        sample_tasks=sample_tasks,
        pace=pace,
        **{"aggregator": aggregators.mean(), **options},
    )


def all_rounds(simulation, rounds, seed=0):
    """The state after each of some rounds, and the metrics."""
    step = jax.jit(
        lambda state: jax.lax.scan(lambda s, _: (lambda n: (n[0], n))(simulation.round(s)), state, length=rounds)
    )
    return step(simulation.init(jax.random.key(seed)))[1]


def assert_same(x, y, rtol=1e-12):
    for a, b in zip(jax.tree.leaves(x), jax.tree.leaves(y), strict=True):
        np.testing.assert_allclose(a, b, rtol=rtol, atol=rtol)


@pytest.mark.parametrize(
    "name",
    [name if name in ("fmrl", "scaffold") else pytest.param(name, marks=pytest.mark.nightly) for name in ALONE],
)
def test_who_wait_for_all_of_equal_speed_are_the_synchronous_federation(name):
    """K = C = N and `update`: identity 1 of every algorithm, its clients' states and its metrics too."""
    algorithm = make(
        name,
        problem=NOISY_VALUES if CONFIGS[name].learns_values else NOISY,
        **({} if name == "independent" else {"server_opt": optax.adam(0.1)}),
    )
    downlink = lambda shared, key: jax.tree.map(lambda x: x + 0.01 * jax.random.normal(key, x.shape, x.dtype), shared)
    attack = Attack(0.3, attacks.forge("noise", 2.0, aggregators.mean())) if name == "scaffold" else None
    clipped = {"wires": Wires(optax.clip_by_global_norm(0.1), downlink=downlink), "attack": attack, "dropout": 0.3}
    plain = all_rounds(federation(algorithm, pace=EQUAL, **clipped), 5)
    other = all_rounds(asynchronous(algorithm, Schedule(6, 6, 6, 1, restart="update"), **clipped), 5)
    assert_same(other[0].server, plain[0].server)
    assert_same(other[0].clients, plain[0].clients)
    assert set(other[1]) - set(plain[1]) == {
        "clock/updates", "clock/arrivals", "clock/staleness_mean", "clock/staleness_max", "clock/lanes"
    }  # fmt: skip
    assert_same(*[{key: m[key] for key in plain[1]} for m in (other[1], plain[1])])
    assert np.asarray(plain[1]["clock/time"]).tolist() == [1, 2, 3, 4, 5]


ORACLE = {
    "AFedPG": (Schedule(8, 8, 1, 3), Pace("linear", noise="shifted"), Discount()),
    "FedAsync": (Schedule(20, 6, 1, 4, next="idle"), Pace("uniform", noise="exponential"), Discount("hinge", 0.3, 2.0)),
    "FedBuff": (Schedule(20, 8, 3, 2, next="idle"), Pace("linear", noise="lognormal"), Discount("polynomial")),
    "FedBuff, fair": (Schedule(8, 8, 3, 2), Pace("one_slow"), Discount(fair=True)),
    "one message each": (Schedule(20, 8, 3, 2, "update", "idle"), Pace("alternate", noise="pareto"), Discount()),
    "synchronous": (Schedule(6, 6, 6, 1, "update"), Pace("lognormal"), Discount()),
    "Rennala": (Schedule(6, 6, 15, 1, "abort"), Pace("sqrt", noise="shifted"), Discount()),
    "Malenia": (Schedule(6, 6, 30, 1, "abort", due="harmonic", target=12), Pace("sqrt", noise="shifted"), Discount()),
}  # fmt: skip


def average(clients, messages, weights):
    return np.tensordot(weights / weights.sum(), messages, axes=1)


def replayed(algorithm, schedule, discount, key, found, sent=lambda change: change, combined=average):
    """Server models after each update, one arrival at a time in NumPy; `found`: (client, job, age) in order.

    sent: what a client sends of its change. combined: what the server makes of (clients, messages, weights).
    """
    sample = jax.jit(
        lambda i, j: noisy(None, {"u": jnp.zeros(3)}, jax.random.fold_in(simulate.stream(key, simulate.UPDATE, j), i))[
            0
        ]["u"]
    )
    tasks = jax.tree.map(np.asarray, sample_tasks(simulate.stream(key, simulate.TASKS), schedule.num_clients))
    x = np.asarray(algorithm.init(simulate.stream(key, simulate.INIT)).shared["x"])
    past, buffer, arrivals = [x], [], np.zeros(schedule.num_clients)
    for client, job, age in found:
        arrivals[client] += 1
        y = start = past[-1 - age]
        u = tasks["u"][client] + np.asarray(sample(client, job))
        for _ in range(STEPS):
            y = y - 0.05 * tasks["a"][client] * (y - u)
        factor = {
            "constant": 1.0,
            "polynomial": (1 + age) ** -0.5,
            "hinge": 1.0 if age <= 2 else 1 / (0.3 * (age - 2) + 1),
        }[discount.name]
        factor *= arrivals.mean() / arrivals[client] if discount.fair else 1.0
        buffer.append((client, factor * sent(y - start)))
        counts = np.bincount([c for c, _ in buffer], minlength=schedule.num_clients)
        enough = counts.all() and schedule.num_clients**2 >= schedule.target * np.sum(1 / counts)
        if len(buffer) == schedule.buffer or (schedule.due == "harmonic" and enough):
            weights = np.array([1 / counts[c] if schedule.due == "harmonic" else 1.0 for c, _ in buffer])
            past.append(past[-1] + combined(*map(np.array, zip(*buffer, strict=True)), weights))
            buffer = []
    return past


def arrivals(schedule, pace, metrics, key):
    """(time, client, job, age) of each arrival in order."""
    speed = pace.speeds(simulate.stream(key, simulate.SPEED), schedule.num_clients)
    scores = lambda draw: jax.random.uniform(simulate.stream(key, simulate.SELECT, draw), (schedule.num_clients,))
    total = int(metrics["clock/arrivals"][-1])
    return one_by_one(schedule, speed, pace.noise, total, simulate.stream(key, simulate.DELAY), scores)


@pytest.mark.parametrize("name", ORACLE)
def test_models_are_those_of_one_arrival_after_another(name):
    schedule, pace, discount = ORACLE[name]
    algorithm = make("fedavg", problem=NOISY)
    states, metrics = all_rounds(asynchronous(algorithm, schedule, pace, discount=discount), 25, seed=7)
    key = jax.random.key(7)
    found = arrivals(schedule, pace, metrics, key)
    past = replayed(algorithm, schedule, discount, key, [row[1:] for row in found])
    updates = np.asarray(metrics["clock/updates"])
    for r, number in enumerate(updates):
        np.testing.assert_allclose(states.server.shared["x"][r], past[number], rtol=1e-12, atol=1e-13)
    assert len(past) == updates[-1] + 1 and len(updates) == 25
    assert float(metrics["clock/time"][-1]) == pytest.approx(found[-1][0] / 2**14, rel=1e-6)
    ages, ends = np.array([row[3] for row in found]), np.asarray(metrics["clock/arrivals"])
    for r in range(25):
        some = ages[ends[r - 1] if r else 0 : ends[r]]
        assert float(metrics["clock/staleness_mean"][r]) == pytest.approx(some.mean())
        assert int(metrics["clock/staleness_max"][r]) == some.max()


def largest_two(change):
    return np.where(np.abs(change) >= np.sort(np.abs(change))[1], change, 0.0)


TRUSTED = {
    "compression and a rule": {
        "wires": Wires(compress.compressor("top_k", ratio=0.6, bits=8, rank=1, feedback="none").transform),
        "aggregator": robust.median(),
    },
    "a secure sum": {"aggregator": secure.secure_mean(secure.FixedPoint(24, 16.0), at_least=2)},
}


@pytest.mark.parametrize("name", TRUSTED)
def test_what_is_done_to_messages_is_done_to_those_of_a_buffer(name):
    """FedBuff under attack, each arrival in NumPy: shortened where it is sent; forged and combined in threes."""
    schedule, pace, discount = ORACLE["FedBuff"]
    algorithm, key = make("fedavg", problem=NOISY), jax.random.key(7)
    attack = Attack(0.3, attacks.forge("sign_flip", 1.5, aggregators.mean()))
    simulation = asynchronous(algorithm, schedule, pace, discount=discount, attack=attack, **TRUSTED[name])
    states, metrics = all_rounds(simulation, 25, seed=7)
    bad = np.asarray(attacks.is_malicious(simulate.stream(key, simulate.MALICIOUS), 20, 0.3))

    def combined(clients, messages, weights):
        forged = np.where(bad[clients, None], -1.5, 1.0) * messages
        return average(clients, forged, weights) if name == "a secure sum" else np.median(forged, axis=0)

    found = [row[1:] for row in arrivals(schedule, pace, metrics, key)]
    does = {"combined": combined} if name == "a secure sum" else {"combined": combined, "sent": largest_two}
    past = np.array(replayed(algorithm, schedule, discount, key, found, **does))[metrics["clock/updates"]]
    rounding = 1e-4 if name == "a secure sum" else 1e-12  # steps of 16 / 2^23, 17 times
    np.testing.assert_allclose(states.server.shared["x"], past, rtol=1e-10, atol=rounding)
    assert len(np.unique(metrics["clock/updates"])) > 10


def test_who_lies_is_discounted_like_the_others():
    """All lie, and send 7s: the server moves by 7 s(age). A lie that changes nothing changes no harmonic mean."""
    sevens = Attack(1.0, lambda messages, *_: jax.tree.map(lambda m: jnp.full_like(m, 7.0), messages))
    simulation = asynchronous(
        make("fedavg"), Schedule(6, 6, 1, 1), Pace("linear"), discount=Discount("polynomial", 0.5), attack=sevens
    )
    states, metrics = all_rounds(simulation, 12)
    ages = np.asarray(metrics["clock/staleness_mean"])
    assert ages.max() > 3
    moved = np.diff(np.asarray(states.server.shared["x"])[:, 0])
    np.testing.assert_allclose(moved, 7 / np.sqrt(1 + ages[1:]), rtol=1e-10)
    schedule, pace = Schedule(2, 2, 50, 1, restart="abort", due="harmonic", target=3), Pace("alternate")
    true = Attack(1.0, lambda messages, *_: messages)
    found = [
        all_rounds(asynchronous(make("fedavg", problem=NOISY), schedule, pace, attack=attack), 3)[0].server.shared["x"]
        for attack in (None, true)
    ]
    np.testing.assert_allclose(*found, rtol=1e-12)


def test_lanes_change_no_number():
    pace, algorithm = Pace("linear", noise="lognormal"), make("fedavg", problem=NOISY)
    at = {}
    for lanes in (1, 7, 20):
        states, metrics = all_rounds(asynchronous(algorithm, Schedule(20, 20, 1, lanes), pace), 80 // lanes)
        at[lanes] = dict(zip(np.asarray(metrics["clock/updates"]).tolist(), states.server.shared["x"], strict=True))
    for lanes in (7, 20):
        both = sorted(set(at[lanes]) & set(at[1]))
        assert len(both) >= 3
        np.testing.assert_allclose([at[lanes][n] for n in both], [at[1][n] for n in both], rtol=1e-12)


def test_a_client_of_one_is_one_client():
    algorithm = make("fedavg", problem=NOISY)
    one = all_rounds(asynchronous(algorithm, Schedule(1, 1, 1, 1), Pace("linear")), 5)
    assert_same(one[0].server, all_rounds(federation(algorithm, n=1, m=1), 5)[0].server)


@pytest.mark.parametrize("fault", ["nan", "dropped"])
def test_a_message_that_is_lost_counts_as_an_arrival_and_no_more(fault):
    """The clock of a run with a client that is never heard is that of the run; the server stays at its arrivals."""
    algorithm, schedule, pace = make("fedavg", problem=NOISY), Schedule(4, 4, 1, 1), Pace("linear", noise="shifted")
    tasks = federation(algorithm, n=4, m=4).init(jax.random.key(0)).tasks

    def update(shared, client, task, key):
        upload, client, metrics = algorithm.client_update(shared, client, task, key)
        bad = task["a"] == tasks["a"][2]
        if fault == "nan":
            return (
                upload._replace(message=jax.tree.map(lambda x: jnp.where(bad, jnp.nan, x), upload.message)),
                client,
                metrics,
            )
        return upload._replace(weight=jnp.where(bad, 0.0, upload.weight)), client, metrics

    whole = all_rounds(asynchronous(algorithm, schedule, pace), 20)
    lossy = all_rounds(asynchronous(algorithm._replace(client_update=update), schedule, pace), 20)
    assert_same(lossy[0].clock, whole[0].clock, 0.0)
    who = np.asarray(whole[1]["who/selected"])[:, 0]
    x = np.asarray(lossy[0].server.shared["x"])
    stays = np.abs(np.diff(x, axis=0)).max(axis=1) == 0
    assert (stays == (who[1:] == 2)).all() and stays.any()
    assert (np.asarray(lossy[1]["comm/uploads"]) == (who != 2)).all()


def test_two_halves_equal_the_whole_and_one_program_serves_all_rounds():
    simulation = asynchronous(
        make("fmrl", problem=NOISY), Schedule(20, 8, 2, 2, next="idle"), Pace("linear", noise="shifted")
    )
    step = jax.jit(simulation.round)
    state = simulation.init(jax.random.key(3))
    for _ in range(6):
        state, _ = step(state)
    assert step._cache_size() == 1
    both, _ = simulate.run_rounds(simulation, simulation.init(jax.random.key(3)), 3)
    both, _ = simulate.run_rounds(simulation, both, 3)
    assert_same(both._replace(key=()), state._replace(key=()), 1e-12)


def test_jobs_wait_for_their_links_and_an_update_that_aborts_waits_once():
    """Three numbers of 8 bytes down and up, 24 bytes a unit: a unit each way, and half of t for the message itself."""
    algorithm = make("fedavg")
    pace = Pace("one_slow", ratio=2.0, up=24.0, down=24.0, link=0.5)
    _, metrics = all_rounds(federation(algorithm, n=3, m=3, pace=pace), 2)
    assert np.asarray(metrics["clock/time"]).tolist() == [5.0, 10.0]  # 2 + 1 + 1 + 1
    _, metrics = all_rounds(asynchronous(algorithm, Schedule(3, 3, 1, 2), pace), 1)
    assert float(metrics["clock/time"][0]) == 3.5 and int(metrics["clock/arrivals"][0]) == 2
    _, metrics = all_rounds(asynchronous(algorithm, Schedule(3, 3, 4, 1, restart="abort"), pace), 2)
    assert np.asarray(metrics["clock/time"]).tolist() == [2.0 + 3.0, 2 * (2.0 + 3.0)]  # two arrive at 1, two at 2


def test_an_update_that_aborts_is_one_message_of_each_client_that_arrived():
    """The slow one of two arrives once, the other ten times: two messages up, and two models down."""
    pace = Pace("one_slow", ratio=10.0)
    schedule = Schedule(2, 2, 50, 1, restart="abort", due="harmonic", target=3)
    _, metrics = all_rounds(asynchronous(make("fedavg"), schedule, pace), 2)
    assert np.asarray(metrics["comm/uploads"]).tolist() == [2, 2]
    assert np.asarray(metrics["comm/up_bytes"]).tolist() == np.asarray(metrics["comm/down_bytes"]).tolist() == [48, 48]
    schedule = Schedule(2, 2, 4, 1, restart="abort")  # four arrivals of the fast one, and none of the slow one
    _, metrics = all_rounds(asynchronous(make("fedavg"), schedule, pace), 2)
    assert np.asarray(metrics["comm/uploads"]).tolist() == [1, 1]
    assert np.asarray(metrics["comm/down_bytes"]).tolist() == [48, 48]


def test_time_never_runs_backwards_however_slow_the_links():
    _, metrics = all_rounds(asynchronous(make("fedavg"), Schedule(3, 3, 3, 1, restart="abort"), Pace(up=1e-4)), 3)
    assert np.asarray(metrics["clock/time"]).tolist() == [8193.0, 2 * 8193.0, 3 * 8193.0]  # 8192 at most, and the job


def test_a_round_may_end_with_its_fastest():
    algorithm, pace = make("fedavg", problem=NOISY), Pace("linear")
    whole, some = (federation(algorithm, pace=pace, wait_for=m) for m in (0, 4))
    state = whole.init(jax.random.key(1))
    _, metrics = whole.round(state)
    assert float(metrics["clock/time"]) == 4.0
    after, metrics = some.round(state)
    assert float(metrics["clock/time"]) == pytest.approx(1 + 3 * 3 / 5, abs=1e-4)
    assert metrics["comm/uploads"] == 4 and metrics["who/unheard"].tolist() == [False] * 4 + [True] * 2
    changes = []
    for i in range(4):
        rows = jax.tree.map(lambda x: x[i], whole.cohort(state)[1:])
        changes.append(np.asarray(whole.work(*rows)[0].message["x"]))
    moved = np.asarray(after.server.shared["x"]) - np.asarray(state.server.shared["x"])
    np.testing.assert_allclose(moved, np.mean(changes, axis=0), rtol=1e-12)


def test_of_the_equally_fast_each_is_in_time_as_often():
    simulation = federation(make("fedavg"), n=9, m=9, pace=Pace("one_slow"), wait_for=4)
    _, metrics = all_rounds(simulation, 400)
    heard = (~np.asarray(metrics["who/unheard"])).sum(axis=0)
    assert heard[-1] == 0 and heard.sum() == 1600
    assert abs(heard[:-1] - 200).max() < 5 * np.sqrt(400 / 4)


def test_a_round_keeps_one_model_for_each_job_and_no_more():
    """No array of a model for each of N = 50 clients, where C = 6 are at work."""
    simulation = asynchronous(make("fedavg"), Schedule(50, 6, 1, 4, next="idle"))
    state = simulation.init(jax.random.key(0))
    assert [x.shape for x in jax.tree.leaves(state.snapshots)] == [(6, 3)]
    shapes = {v.aval.shape for eqn in jax.make_jaxpr(simulation.round)(state).eqns for v in eqn.outvars}
    assert (6, 3) in shapes and (4, 3) in shapes
    tasks = {leaf.shape for leaf in jax.tree.leaves(state.tasks)}
    assert not {shape for shape in shapes if shape[:1] == (50,) and shape[1:] == (3,)} - tasks


def test_what_is_kept_between_jobs_needs_the_restart_at_updates():
    uplink = optax.trace(0.9)
    simulation = asynchronous(make("fedavg"), Schedule(4, 4, 2, 1), wires=Wires(uplink))
    with pytest.raises(ConfigError, match="restart: uplinks here keep something"):
        simulation.init(jax.random.key(0))
    asynchronous(make("fedavg"), Schedule(4, 4, 2, 1, "update"), wires=Wires(uplink)).init(jax.random.key(0))

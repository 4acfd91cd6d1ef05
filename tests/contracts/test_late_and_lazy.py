"""AFedPG, NIGT, FedAsync and LAPG, in closed form and against NumPy."""

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from contracts.quadratic import LOCAL_LR, federation, make
from fedjax_rl.federation import simulate
from fedjax_rl.federation.clock import Schedule
from fedjax_rl.federation.staleness import STALENESS, Discount
from fedjax_rl.federation.times import Pace
from test_asynchronous import NOISY, all_rounds, assert_same, asynchronous
from test_clock import one_by_one

pytestmark = pytest.mark.usefixtures("x64")


def gradients(simulation, seed=0):
    """Of a client at a point, ascent, times LOCAL_LR."""
    tasks = jax.tree.map(np.asarray, simulation.init(jax.random.key(seed)).tasks)
    return lambda x, i: -LOCAL_LR * tasks["a"][i] * (x - tasks["u"][i])


@pytest.mark.parametrize("lookahead", [True, False])
def test_the_direction_is_the_gradient_where_the_model_is(lookahead):
    """One client with exact gradients, linear in theta: what was sampled ahead makes up for the old ones exactly."""
    simulation = asynchronous(make("afedpg", local_steps=1, lookahead=lookahead), Schedule(1, 1, 1, 1))
    states, _ = all_rounds(simulation, 40)
    at = np.asarray(states.server.shared["params"]["x"])[:-1]
    d = np.asarray(states.server.private["direction"]["x"])[1:]
    want = np.array([gradients(simulation)(x, 0) for x in at])
    apart = np.linalg.norm(d - want, axis=1) / np.linalg.norm(want, axis=1)
    assert apart.max() < 1e-12 if lookahead else apart.max() > 0.1


def test_ahead_is_where_the_weights_of_late_gradients_balance():
    """(1 - a) (theta_(k-1) - theta_k) + a (ahead_k - theta_k) = 0, and every step is as long as it says."""
    algorithm = make("afedpg", momentum=0.05, momentum_power=0.8, step_length=0.3, length_power=1.0, problem=NOISY)
    states, _ = all_rounds(asynchronous(algorithm, Schedule(6, 6, 1, 1), Pace("linear")), 20)
    x, ahead = (np.asarray(states.server.shared[name]["x"]) for name in ("params", "ahead"))
    k = np.arange(2, 21)  # updates before each of the states but the first
    a = np.maximum(0.05, (k + 1.0) ** -0.8)[:, None]
    np.testing.assert_allclose((1 - a) * (x[:-1] - x[1:]) + a * (ahead[1:] - x[1:]), 0.0, atol=1e-15)
    np.testing.assert_allclose(np.linalg.norm(np.diff(x, axis=0), axis=1), 0.3 / k, rtol=1e-9)


def test_a_momentum_of_one_is_the_normalised_gradient():
    states, _ = all_rounds(federation(make("afedpg", momentum=1.0)), 5)
    assert_same(states.server.shared["params"], states.server.shared["ahead"])


@pytest.mark.parametrize("power", [0.0, 0.8])
def test_afedpg_is_one_arrival_after_another(power):
    """In NumPy: the weight of a gradient is that of the version that its client was sent."""
    schedule, pace = Schedule(8, 8, 1, 3), Pace("linear", noise="shifted")
    algorithm = make("afedpg", local_steps=1, momentum_power=power, step_length=0.2, length_power=0.5)
    simulation = asynchronous(algorithm, schedule, pace)
    states, metrics = all_rounds(simulation, 20)
    key = jax.random.key(0)
    speed = pace.speeds(simulate.stream(key, simulate.SPEED), 8)
    total = int(metrics["clock/arrivals"][-1])
    found = one_by_one(schedule, speed, pace.noise, total, simulate.stream(key, simulate.DELAY))
    alpha = lambda k: 0.1 if power == 0 else max(0.1, (k + 1.0) ** -power)
    x = np.asarray(algorithm.init(simulate.stream(key, simulate.INIT)).shared["params"]["x"])
    past, ahead, d, gradient = [x], [x], 0.0, gradients(simulation)
    for k, (_, client, _, age) in enumerate(found):
        a = alpha(k - age) if k else 1.0
        d = (1 - a) * d + a * gradient(ahead[k - age], client)
        new = past[-1] + 0.2 * (k + 1) ** -0.5 * d / (np.linalg.norm(d) + 1e-12)
        ahead.append(new + (1 - alpha(k + 1)) / alpha(k + 1) * (new - past[-1]))
        past.append(new)
    for r, k in enumerate(np.asarray(metrics["clock/updates"])):
        np.testing.assert_allclose(states.server.shared["params"]["x"][r], past[k], rtol=1e-10)
        np.testing.assert_allclose(states.server.shared["ahead"]["x"][r], ahead[k], rtol=1e-10)
    assert max(row[3] for row in found) >= 9


def test_ages_that_count_lost_updates_are_no_trouble():
    """With nine of ten messages lost the server's count falls far behind the clock's."""
    algorithm = make("afedpg", momentum_power=0.8, step_length=0.2)
    states, metrics = all_rounds(asynchronous(algorithm, Schedule(8, 8, 1, 3), Pace("linear"), dropout=0.9), 20)
    updates = np.asarray(states.server.private["updates"])
    assert 0 < updates[-1] < int(metrics["clock/updates"][-1]) / 4
    assert np.isfinite(np.asarray(states.server.shared["ahead"]["x"])).all()


def test_rennala_malenia_and_synchronous_are_one_where_all_are_equally_fast():
    algorithm = make("nigt", local_steps=1)
    ends = [all_rounds(federation(algorithm), 4)[0].server]
    for schedule in (
        Schedule(6, 6, 6, 1, "abort"),
        Schedule(6, 6, 9, 1, "abort", due="harmonic", target=6),
        Schedule(6, 6, 6, 1, "update"),
    ):
        ends.append(all_rounds(asynchronous(algorithm, schedule), 4)[0].server)
    for other in ends[1:]:
        assert_same(other, ends[0])


def test_of_rennalas_first_gradient_only_the_fastest_is_heard():
    _, metrics = all_rounds(asynchronous(make("nigt"), Schedule(5, 5, 1, 1, "abort"), Pace("linear")), 9)
    assert np.asarray(metrics["who/selected"]).ravel().tolist() == [0] * 9
    assert np.asarray(metrics["clock/staleness_max"]).max() == 0


@pytest.mark.parametrize("mixing", [1.0, 0.3])
def test_fedasync_of_one_client_is_training_alone_step_after_step(mixing):
    """theta' = theta + mixing (theta_local - theta), which is FedAvg's with that rate."""
    one = all_rounds(asynchronous(make("fedasync", mixing=mixing, mu=0.0, problem=NOISY), Schedule(1, 1, 1, 1)), 5)
    plain = make("fedavg", server_opt=optax.sgd(mixing), problem=NOISY)
    assert_same(one[0].server.shared, all_rounds(federation(plain, n=1, m=1), 5)[0].server.shared)


def test_fedasync_mixes_the_models_that_arrive():
    """theta' = (1 - a s) theta + a s theta_local, for several ages and s = (1 + age)^-1/2."""
    schedule, pace, algorithm = Schedule(4, 4, 1, 1), Pace("linear"), make("fedasync", mixing=0.6, mu=0.1)
    simulation = asynchronous(algorithm, schedule, pace, discount=Discount("polynomial", 0.5))
    state = simulation.init(jax.random.key(0))
    step = jax.jit(simulation.round)
    ages = []
    for _ in range(8):
        _, *rows = simulation.cohort(state)
        local = np.asarray(simulation.work(*jax.tree.map(lambda x: x[0], rows))[0].message["params"]["x"])
        after, metrics = step(state)
        ages.append(int(metrics["clock/staleness_max"]))
        s = 0.6 * (1 + ages[-1]) ** -0.5
        want = (1 - s) * np.asarray(state.server.shared["x"]) + s * local
        np.testing.assert_allclose(after.server.shared["x"], want, rtol=1e-12)
        state = after
    assert min(ages) == 0 and max(ages) >= 3


def test_staleness_by_its_formulas():
    age = jnp.arange(10.0)
    np.testing.assert_array_equal(STALENESS["polynomial"](age, 0.0, 6.0), STALENESS["constant"](age, 0.5, 6.0))
    np.testing.assert_array_equal(STALENESS["hinge"](age, 10.0, jnp.inf), np.ones(10))
    np.testing.assert_allclose(STALENESS["hinge"](age, 10.0, 4.0)[3:7], [1, 1, 1 / 11, 1 / 21])
    np.testing.assert_allclose(STALENESS["polynomial"](age, 0.5, 6.0), (1 + np.arange(10)) ** -0.5)
    fair = Discount(fair=True).factors(age, jnp.array([4.0] + [1.0] * 9), jnp.full(10, 2.0))
    assert fair.tolist() == [0.5] + [2.0] * 9


def lazy(rounds, **settings):
    return all_rounds(federation(make("lapg", server_opt=optax.sgd(0.2), **settings)), rounds)


def test_lapg_without_patience_is_the_policy_gradient():
    states, metrics = lazy(20, patience=0.0, noise_factor=0.0)
    sgd = make("fedavg", local_steps=1, server_opt=optax.sgd(0.2 / LOCAL_LR))
    assert_same(states.server.shared["params"], all_rounds(federation(sgd), 20)[0].server.shared, 1e-12)
    assert (np.asarray(metrics["comm/uploads"]) == 6).all()


def test_lapg_that_never_speaks_again_goes_on_in_its_first_direction():
    states, metrics = lazy(10, patience=1e6)
    x = np.asarray(states.server.shared["params"]["x"])
    np.testing.assert_allclose(np.diff(x, axis=0), np.broadcast_to(x[1] - x[0], (9, 3)), rtol=1e-9)
    assert np.asarray(metrics["comm/uploads"]).tolist() == [6] + [0] * 9
    assert np.asarray(metrics["comm/up_bytes"])[1:].sum() == 0
    assert np.isfinite(np.asarray(metrics["train/return/adapt_0"])).all()  # the silent have worked too
    assert np.asarray(metrics["health/dropped_clients"]).sum() == 0


def test_lapgs_server_holds_the_mean_of_what_was_last_sent():
    """And who sends is who has more to say than the last ten steps, recomputed in NumPy."""
    states, metrics = lazy(40, patience=0.5)
    nabla, last = np.asarray(states.server.private["nabla"]["x"]), np.asarray(states.clients["last"]["x"])
    np.testing.assert_allclose(nabla, last.mean(axis=1), rtol=1e-9, atol=1e-12)
    gradient = gradients(federation(make("lapg")))
    x = np.concatenate(
        [
            np.asarray(make("lapg").init(simulate.stream(jax.random.key(0), simulate.INIT)).shared["params"]["x"])[
                None
            ],
            states.server.shared["params"]["x"],
        ]
    )
    past, kept, sent = np.zeros(10), np.zeros((6, 3)), []
    for k in range(40):
        new = np.array([-gradient(x[k], i) / LOCAL_LR for i in range(6)])
        says = (((new - kept) ** 2).sum(axis=1) >= 0.5 * past.mean()) | (k == 0)
        kept = np.where(says[:, None], new, kept)
        past = np.concatenate([[(kept.mean(axis=0) ** 2).sum()], past[:-1]])
        sent.append(says.sum())
    assert np.asarray(metrics["comm/uploads"]).tolist() == sent
    assert 0.1 < np.mean(sent) / 6 < 0.9


def test_lapg_holds_back_what_is_noise():
    """At the optimum of a noisy problem delta is noise alone: the larger the factor, the fewer messages."""
    shares = []
    for factor in (0.0, 2.0, 8.0):
        algorithm = make("lapg", server_opt=optax.sgd(0.2), problem=NOISY, noise_factor=factor)
        _, metrics = all_rounds(federation(algorithm), 120)
        shares.append(np.asarray(metrics["comm/uploads"])[40:].mean() / 6)
    assert shares[0] > 0.9 and shares[0] > shares[1] + 0.2 and shares[1] > shares[2] + 0.1

"""What the engine does with wires, attacks, and who is selected: on the quadratic federation, in float64."""

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from contracts.quadratic import PROBLEM, STEPS, federation, make
from fedjax_rl import trees
from fedjax_rl.federation import accountant, aggregators, attacks, compress, selection, simulate
from fedjax_rl.federation.exchange import Wires
from fedjax_rl.types import Aggregator, Attack, Stats

pytestmark = pytest.mark.usefixtures("x64")
SGD = {"server_opt": optax.sgd(1.0)}


def one_round(simulation, seed=0):
    before = simulation.init(jax.random.key(seed))
    after, metrics = jax.jit(simulation.round)(before)
    return before, after, jax.tree.map(np.asarray, metrics)


def changes(state, shared=None):
    """What each client's local steps make of what it is sent [N, 3], in NumPy."""
    x = np.asarray(state.server.shared["x"] if shared is None else shared)
    a, u = (np.asarray(state.tasks[name]) for name in ("a", "u"))
    return ((1 - 0.05 * a[:, None]) ** STEPS - 1) * (x - u)


def test_poisson_selection_draws_each_client_by_itself():
    """2000 rounds: the mean number, its deviation, the capacity, and no client more likely than another."""
    n, m = 30, 6
    ids, chosen = jax.vmap(lambda r: selection.poisson(jax.random.key(0), r, n, m))(jnp.arange(2000))
    ids, chosen = np.asarray(ids), np.asarray(chosen)
    assert ids.shape[1] == accountant.capacity(n, m) == 13
    counts = chosen.sum(axis=1)
    assert abs(counts.mean() - m) < 0.3 and abs(counts.std() - np.sqrt(m * 0.8)) < 0.15
    together = np.zeros((2000, n), bool)
    np.put_along_axis(together, ids, chosen, axis=1)
    np.testing.assert_allclose(together.mean(axis=0), m / n, atol=5 * np.sqrt(0.16 / 2000))
    assert np.abs(np.corrcoef(together.T) - np.eye(n)).max() < 0.12


def test_cyclic_selection_gives_everybody_one_turn_a_cycle():
    ids = np.asarray(jax.vmap(lambda r: selection.cyclic(jax.random.key(3), r, 12, 4)[0])(jnp.arange(7)))
    assert sorted(ids[:3].ravel()) == list(range(12))
    np.testing.assert_array_equal(ids[:3], ids[3:6])
    assert not (np.sort(ids[0]) == np.arange(4)).all()


def test_places_that_nobody_was_drawn_for_do_nothing():
    """As in a round of those drawn alone: their mean, their states, their bytes; the others keep theirs."""
    simulation = federation(make("ditto", **SGD), n=30, m=6, select=selection.poisson)
    before, after, metrics = one_round(simulation)
    ids, chosen = selection.poisson(jax.random.fold_in(before.key, simulate.SELECT), 0, 30, 6)
    who = np.asarray(ids)[np.asarray(chosen)]
    assert 0 < len(who) < len(ids)
    assert metrics["who/selected"].tolist() == np.where(chosen, ids, -1).tolist()
    moved = np.asarray(after.server.shared["x"] - before.server.shared["x"])
    np.testing.assert_allclose(moved, changes(before)[who].mean(axis=0), rtol=1e-12)
    kept = np.setdiff1d(np.arange(30), who)
    for old, new in zip(jax.tree.leaves(before.clients), jax.tree.leaves(after.clients), strict=True):
        np.testing.assert_array_equal(np.asarray(old)[kept], np.asarray(new)[kept])
        assert (np.asarray(old)[who] != np.asarray(new)[who]).any(axis=-1).all()
    assert metrics["comm/up_bytes"] == metrics["comm/down_bytes"] == 24 * len(who)
    assert metrics["comm/uploads"] == len(who) and metrics["health/dropped_clients"] == 0
    assert metrics["health/padding"] == len(ids) - len(who)


def test_clients_start_from_what_the_downlink_left_and_the_server_keeps_its_own():
    wires = Wires(downlink=lambda shared, key: compress.quantise_model(shared, key, 2), down_bytes=lambda shared: 7.0)
    before, after, metrics = one_round(federation(make("fedavg", **SGD), wires=wires))
    exact = before.server.shared["x"]
    sent = compress.quantise_model({"x": exact}, simulate.stream(before.key, simulate.DOWNLINK, 0), 2)["x"]
    assert np.abs(np.asarray(sent - exact)).max() > 1e-3
    np.testing.assert_allclose(after.server.shared["x"], exact + changes(before, sent).mean(axis=0), rtol=1e-12)
    assert metrics["comm/down_bytes"] == 6 * 7.0 and metrics["comm/up_bytes"] == 6 * 24


def test_an_uplink_gets_a_key_of_its_client_and_round_and_its_bytes_are_counted():
    drawing = optax.GradientTransformationExtraArgs(
        lambda message: (),
        lambda message, state, params=None, *, key: (
            jax.tree.map(lambda x: jax.random.normal(key, x.shape, x.dtype), message), state
        ),
    )  # fmt: skip
    simulation = federation(make("fedavg", **SGD), n=6, m=3, wires=Wires(drawing, up_bytes=lambda message: 0.5))
    state, drawn = simulation.init(jax.random.key(0)), []
    for _ in range(4):
        _, sent, own, tasks, keys = simulation.cohort(state)
        drawn += [
            simulation.work(*jax.tree.map(lambda x: x[i], (sent, own, tasks)), keys[i])[0].message["x"][0]
            for i in range(3)
        ]
        state, metrics = simulation.round(state)
        assert metrics["comm/up_bytes"] == 1.5
    assert len({float(x) for x in drawn}) == 12


def test_a_key_in_the_memory_of_an_uplink_is_each_clients_own():
    """optax.add_noise keeps a key: the same for all, all would draw the same noise, which no mean would take away."""
    simulation = federation(make("fedavg", **SGD), wires=Wires(optax.add_noise(1.0, 0.0, jax.random.key(0))))
    state = simulation.init(jax.random.key(0))
    _, sent, own, tasks, keys = simulation.cohort(state)
    upload, _, _ = jax.vmap(simulation.work)(sent, own, tasks, keys)
    noise = np.asarray(upload.message["x"]) - changes(state)
    assert len(np.unique(noise.round(9))) == noise.size


def test_the_memory_of_an_uplink_is_not_emptied_by_a_message_that_was_lost():
    wires = Wires(compress.compressor("top_k", ratio=0.4, bits=8, rank=1, feedback="classic").transform)
    simulation = federation(make("fedavg", **SGD), wires=wires, dropout=0.5)
    before, after, metrics = one_round(simulation, seed=2)
    lost = metrics["who/unheard"]
    assert 0 < lost.sum() < 6
    old, new = (np.asarray(jax.tree.leaves(state.uplink)[0]) for state in (before, after))
    assert (new[lost] == old[lost]).all() and (new[~lost] != old[~lost]).any(axis=1).all()


def boosted(messages, honest, malicious, key):
    return jax.tree.map(lambda m: jnp.where(malicious[:, None], -10.0 * m, m), messages)


def test_the_malicious_always_arrive_and_metrics_are_of_the_honest():
    """Everybody drops out, but for those who attack: the server takes what they forged, with weight 1."""
    attack = Attack(0.5, lambda messages, honest, malicious, key: {"x": jnp.full((6, 3), 7.0)})
    simulation = federation(make("fedavg", **SGD), attack=attack, dropout=1.0)
    before, after, metrics = one_round(simulation)
    np.testing.assert_allclose(after.server.shared["x"] - before.server.shared["x"], 7.0)
    assert metrics["comm/uploads"] == metrics["health/attacked"] == 3

    simulation = federation(make("fedavg", **SGD), attack=Attack(0.5, boosted))
    before, after, metrics = one_round(simulation)
    bad = np.asarray(attacks.is_malicious(simulate.stream(before.key, simulate.MALICIOUS), 6, 0.5))
    sent = np.where(bad[:, None], -10.0, 1.0) * changes(before)
    moved = np.asarray(after.server.shared["x"] - before.server.shared["x"])
    np.testing.assert_allclose(moved, sent.mean(axis=0), rtol=1e-12)
    a, u, x = (np.asarray(v) for v in (before.tasks["a"], before.tasks["u"], before.server.shared["x"]))
    returns = -0.5 * a * ((x - u) ** 2).sum(axis=1)
    np.testing.assert_allclose(metrics["train/return/adapt_0"], returns[~bad].mean(), rtol=1e-12)
    distance = np.linalg.norm(sent.mean(axis=0) - changes(before)[~bad].mean(axis=0))
    np.testing.assert_allclose(metrics["robust/distance"], distance, rtol=1e-12)


def test_what_attackers_send_that_is_not_finite_is_dropped_and_counted():
    forge = lambda messages, honest, malicious, key: {"x": jnp.where(malicious[:, None], jnp.inf, messages["x"])}
    before, after, metrics = one_round(federation(make("fedavg", **SGD), attack=Attack(0.5, forge)))
    bad = np.asarray(attacks.is_malicious(simulate.stream(before.key, simulate.MALICIOUS), 6, 0.5))
    moved = np.asarray(after.server.shared["x"] - before.server.shared["x"])
    np.testing.assert_allclose(moved, changes(before)[~bad].mean(axis=0), rtol=1e-12)
    assert metrics["health/nonfinite_clients"] == 3 and metrics["comm/uploads"] == 3


def test_who_is_malicious_is_who_is_lied_to():
    """An attack in the world: the client's task says whether it is malicious; the state does not."""

    def sample(params, world, key):
        away = jnp.where(world["malicious"], 100.0, 0.0)
        task = {**world["task"], "u": world["task"]["u"] + away}
        return task, Stats(away, jnp.zeros((), int))

    problem = PROBLEM._replace(sample=sample)
    attack = Attack(0.5, lambda messages, honest, malicious, key: messages, in_world=True)
    simulation = federation(make("fedavg", problem=problem, **SGD), attack=attack)
    before, after, metrics = one_round(simulation)
    assert set(before.tasks) == {"a", "u"} and metrics["train/return/adapt_0"] == 0.0
    bad = np.asarray(attacks.is_malicious(simulate.stream(before.key, simulate.MALICIOUS), 6, 0.5))
    tasks = {**before.tasks, "u": np.asarray(before.tasks["u"]) + 100.0 * bad[:, None]}
    moved = np.asarray(after.server.shared["x"] - before.server.shared["x"])
    np.testing.assert_allclose(moved, changes(before._replace(tasks=tasks)).mean(axis=0), rtol=1e-12)


@pytest.mark.parametrize(
    ("at_least", "dropout", "moves"), [(0, 1.0, True), (1, 1.0, False), (7, 0.0, False), (6, 0.0, True)]
)
def test_an_aggregate_exists_where_enough_are_heard(at_least, dropout, moves):
    """0: also where nobody is, so that a server cannot tell; the state of the aggregator follows the server."""
    aggregator = Aggregator(
        lambda message: jnp.zeros(()), lambda m, w, s, k: (jax.tree.map(lambda x: x[0] * 0 + 1.0, m), s + 1), at_least,
        lambda state: {"shown": state},
    )  # fmt: skip
    before, after, metrics = one_round(federation(make("fedavg", **SGD), aggregator=aggregator, dropout=dropout))
    np.testing.assert_allclose(after.server.shared["x"] - before.server.shared["x"], float(moves))
    assert after.aggregator == metrics["shown"] == float(moves)


def test_where_nobody_may_see_who_came_all_have_come():
    seen = []
    algorithm = make("fedavg", **SGD)

    def server_update(server, aggregate, key):
        jax.debug.callback(lambda share: seen.append(float(share)), aggregate.participation)
        return algorithm.server_update(server, aggregate, key)

    watched = algorithm._replace(server_update=server_update)
    for at_least in (0, 1):
        aggregator = aggregators.mean()._replace(at_least=at_least)
        one_round(federation(watched, n=12, m=6, aggregator=aggregator, dropout=0.5), seed=1)
    jax.effects_barrier()
    assert seen[0] == 0.5 and 0 < seen[1] < 0.5


def test_an_attack_reaches_every_exchange_of_a_round():
    """FedHPD: with all others honest, one client that boosts moves what they learn from each other too."""
    rows = []
    for attack in (None, Attack(0.2, boosted)):
        algorithm = make("fedhpd")
        simulation = federation(algorithm, attack=attack)
        _, after, _ = one_round(simulation)
        rows.append(jax.tree.leaves(after.clients))
    assert any((np.asarray(x) != np.asarray(y)).any() for x, y in zip(*rows, strict=True))


def test_a_cohort_names_who_was_drawn_and_what_they_work_with():
    simulation = federation(make("fedavg", **SGD), n=30, m=6, select=selection.poisson)
    state = simulation.init(jax.random.key(0))
    ids, _, _, tasks, _ = simulation.cohort(state)
    drawn = ids >= 0
    want = trees.take(state.tasks, ids[drawn])
    np.testing.assert_array_equal(tasks["u"][drawn], want["u"])

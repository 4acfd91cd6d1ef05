"""What every algorithm of the registry must do, on a quadratic federation in float64."""

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from contracts.quadratic import STEPS, federation, make, problem_of, sample_tasks
from fedjax_rl import trees
from fedjax_rl.config import CONFIGS
from fedjax_rl.federation import evaluate, simulate
from fedjax_rl.federation.aggregators import mean
from fedjax_rl.federation.exchange import Wires
from fedjax_rl.host import registry
from fedjax_rl.types import Aggregate, Stats

pytestmark = pytest.mark.usefixtures("x64")
NAMES = tuple(registry.OWN["algorithm"])
every = pytest.mark.parametrize("name", NAMES)
KINDS = ("fmrl", "ditto", "scaffold")  # samples twice; keeps a model of its own; keeps something that the server needs
FAULTS = ("weight 0", "nan", "inf", "1e300", "nan state")


def but_for_kinds(some, *values):
    """Every algorithm with every value; with some of them nightly, but for one algorithm of each kind.

    One test of finiteness serves all algorithms and all numbers that are not finite, and one map all cohorts.
    """
    marks = lambda name, value: pytest.mark.nightly if value in some and name not in KINDS else ()
    return [pytest.param(name, v, marks=marks(name, v)) for name in NAMES for v in values]


def assert_same(x, y, rtol=0.0):
    def plain(a):
        return jax.random.key_data(a) if jnp.issubdtype(a.dtype, jax.dtypes.prng_key) else a

    assert jax.tree.structure(x) == jax.tree.structure(y)
    for a, b in zip(jax.tree.leaves(x), jax.tree.leaves(y), strict=True):
        np.testing.assert_allclose(plain(a), plain(b), rtol=rtol, atol=rtol)


@every
def test_state_keeps_its_form_and_stays_finite(name):
    simulation = federation(make(name), n=6, m=3)
    state = simulation.init(jax.random.key(0))
    after, metrics = simulation.round(state)
    assert jax.tree.map(lambda x: (x.shape, x.dtype), after) == jax.tree.map(lambda x: (x.shape, x.dtype), state)
    assert all(np.isfinite(v).all() for v in metrics.values())
    assert int(after.round) == 1
    assert metrics["health/dropped_clients"] == 0
    sent = 3 * {"scaffold": 2, "meta_sgd": 2, "independent": 0}.get(name, 1)  # entries; two vectors, or none
    sent += name == "fedasync"  # its share
    said = {"fedhpd": 10 * 4, "dpa_fedrl": 1}  # of half the public states in each exchange; of one state
    said["fedstrategy"] = 7 * 4  # whatever the model
    sent = said.get(name, sent)
    assert metrics["comm/up_bytes"] == 3 * sent * 8  # M clients, float64


@every
def test_second_call_does_not_recompile(name):
    simulation = federation(make(name))
    round = jax.jit(simulation.round)
    state, _ = round(simulation.init(jax.random.key(0)))
    round(state)
    assert round._cache_size() == 1


@every
def test_permuting_clients_leaves_the_server_alone(name):
    simulation = federation(make(name))
    state = simulation.init(jax.random.key(0))
    order = jnp.array([3, 1, 5, 0, 2, 4])
    state = simulation.round(state)[0]  # so that the clients' states differ
    moved = state._replace(tasks=trees.take(state.tasks, order), clients=trees.take(state.clients, order))
    one, two = simulation.round(state)[0], simulation.round(moved)[0]
    assert_same(one.server, two.server, 1e-12)
    assert_same(trees.take(one.clients, order), two.clients, 1e-12)


# all that an algorithm keeps is in one state, and one loop runs all
@pytest.mark.parametrize("name", [n if n in KINDS else pytest.param(n, marks=pytest.mark.nightly) for n in NAMES])
def test_two_halves_equal_the_whole(name):
    simulation = federation(make(name, server_opt=optax.adam(0.1)), n=6, m=2)
    whole, _ = simulate.run_rounds(simulation, simulation.init(jax.random.key(1)), 6)
    half, _ = simulate.run_rounds(simulation, simulation.init(jax.random.key(1)), 3)
    again, _ = simulate.run_rounds(simulation, half, 3)
    assert_same(whole, again)


@pytest.mark.parametrize(("name", "fault"), but_for_kinds(("inf", "1e300"), *FAULTS))
def test_a_silent_client_leaves_no_trace(name, fault):
    """With client 2 silent, the server moves as the others' mean does; found by asking each client alone.

    1e300 is finite, but its norm is not: a clip makes zeros of it (1e30 does the same in float32).
    """
    algorithm = make(name)
    keeps = bool(jax.tree.leaves(algorithm.init_client(algorithm.init(jax.random.key(0)).shared, jax.random.key(1), 0)))
    if (fault == "nan state" and not keeps) or (fault in ("nan", "inf", "1e300") and name == "independent"):
        pytest.skip("nothing to break: no such state, no such message")

    def update(shared, client, task, key):
        upload, client, metrics = algorithm.client_update(shared, client, task, key)
        bad = task["a"] == tasks["a"][2]
        if fault == "weight 0":
            upload = upload._replace(weight=jnp.where(bad, 0.0, upload.weight))
        elif fault == "nan state":
            client = jax.tree.map(lambda x: jnp.where(bad, jnp.nan, x) if x.dtype == jnp.float64 else x, client)
        else:
            broken = jax.tree.map(lambda x: jnp.where(bad, float(fault), x), upload.message)
            upload = upload._replace(message=broken)
        return upload, client, metrics

    tasks = federation(algorithm).init(jax.random.key(0)).tasks
    wires = Wires(optax.clip_by_global_norm(1e6) if fault == "1e300" else None)
    simulation = federation(algorithm._replace(client_update=update, exchanges=None), wires=wires)
    state = simulation.init(jax.random.key(0))
    after, metrics = simulation.round(state)
    changes = []
    for i in (0, 1, 3, 4, 5):
        client, task = trees.take((state.clients, state.tasks), i)
        changes.append(algorithm.client_update(state.server.shared, client, task, state.key)[0].message)
    mean = jax.tree.map(lambda *x: sum(x) / 5, *changes)
    want = algorithm.server_update(state.server, Aggregate(mean, jnp.array(5 / 6)), state.key)
    assert_same(after.server, want, 1e-12)
    assert_same(trees.take(after.clients, 2), trees.take(state.clients, 2))
    assert metrics["comm/uploads"] == 5
    assert metrics["health/dropped_clients"] == metrics["health/nonfinite_clients"] == (fault != "weight 0")


@every
def test_nobody_left_and_the_server_stays(name):
    algorithm = make(name, server_opt=optax.adam(0.1))

    def silent(*args):
        upload, client, metrics = algorithm.client_update(*args)
        return upload._replace(weight=jnp.zeros(())), client, metrics

    simulation = federation(algorithm._replace(client_update=silent))
    state = simulation.init(jax.random.key(0))
    assert_same(simulation.round(state)[0].server, algorithm.idle(state.server))
    if name != "lapg":  # whose server goes on with what it has
        assert_same(algorithm.idle(state.server), state.server)


@every
def test_a_zero_message_leaves_the_model_where_the_optimiser_says(name):
    if name == "dpa_fedrl":
        pytest.skip("its server has no model: it acts, whatever is said")
    algorithm = make(name, server_opt=optax.sgd(1.0))
    server = algorithm.init(jax.random.key(0))
    client = algorithm.init_client(server.shared, jax.random.key(1), 0)
    task = trees.take(sample_tasks(jax.random.key(2), 1), 0)
    message = jax.eval_shape(algorithm.client_update, server.shared, client, task, jax.random.key(3))[0].message
    zero = jax.tree.map(lambda x: jnp.zeros(x.shape, x.dtype), message)
    after = algorithm.server_update(server, Aggregate(zero, jnp.ones(())), jax.random.key(1))
    assert_same(after.shared, server.shared)


@pytest.mark.parametrize(("name", "client_batch"), but_for_kinds((1,), 1, 4))
def test_chunks_equal_the_whole_cohort(name, client_batch):
    whole, chunked = federation(make(name)), federation(make(name, client_batch=client_batch))
    state = whole.init(jax.random.key(0))
    assert_same(whole.round(state)[0], chunked.round(state)[0], 1e-12)


@every
def test_only_the_selected_move_the_server(name):
    """A cohort of one of six: the server goes where exactly one client's message leads; the others keep their state."""
    algorithm = make(name)
    simulation = federation(algorithm, n=6, m=1)
    state = simulation.init(jax.random.key(3))
    after, _ = simulation.round(state)
    distances, kept = [], []
    for i in range(6):
        client, task = trees.take((state.clients, state.tasks), i)
        upload = algorithm.client_update(state.server.shared, client, task, state.key)[0]
        want = algorithm.server_update(state.server, Aggregate(upload.message, jnp.array(1 / 6)), state.key)
        distances.append(gap(after.server.shared, want.shared))
        kept.append(gap(trees.take(after.clients, i), client) == 0.0)
    assert sum(d < 1e-12 for d in distances) == (6 if name == "independent" else 1)
    assert sum(kept) == (5 if jax.tree.leaves(state.clients) else 6)


def gap(x, y):
    return max([0.0, *(np.abs(a - b).max() for a, b in zip(jax.tree.leaves(x), jax.tree.leaves(y), strict=True))])


@every
def test_the_configuration_knows_how_many_batches_a_client_samples(name):
    """Counted by running one client step by step, without compilation."""
    sampled = []

    def counting(*args):
        sampled.append(args)
        return problem_of(name).sample(*args)

    algorithm = make(name, problem=problem_of(name)._replace(sample=counting))
    server = algorithm.init(jax.random.key(0))
    client = algorithm.init_client(server.shared, jax.random.key(1), 0)
    with jax.disable_jit():
        algorithm.client_update(
            server.shared, client, trees.take(sample_tasks(jax.random.key(2), 1), 0), jax.random.key(3)
        )
    steps = 1 if name in ("lapg", "npg_admm", "fedpg_br") else STEPS
    values = {"learn_after": 1} if name == "dqn_avg" else {}
    assert len(sampled) == CONFIGS[name](local_steps=steps, **values).batches


@every
def test_evaluation_follows_the_quadratic(name):
    """After j steps of rate s the return is -a/2 (1 - s a)^(2j) |x - u|^2."""
    algorithm = make(name)
    simulation = federation(algorithm)
    state = simulation.init(jax.random.key(0))
    run = evaluate.make_evaluate(lambda values: (problem_of(name), algorithm))
    returns = run([()] * 4, state.server.shared, state.clients, state.tasks, jax.random.key(5))
    a = np.asarray(state.tasks["a"])[:, None]
    models = jax.vmap(algorithm.personal_params, in_axes=(None, 0), axis_size=6)(state.server.shared, state.clients)
    apart = np.sum((np.asarray(models["x"]) - np.asarray(state.tasks["u"])) ** 2, axis=1, keepdims=True)
    np.testing.assert_allclose(returns, -0.5 * a * apart * (1 - 0.2 * a) ** (2 * np.arange(4)), rtol=1e-12)


def test_a_client_whose_model_is_not_finite_has_no_return():
    """It takes no step, and 0 may be the best return that there is."""
    problem, algorithm = problem_of("fedavg"), make("fedavg")
    still = problem._replace(sample=lambda params, task, key: (params, Stats(jnp.zeros(()), jnp.zeros((), jnp.int32))))
    spoilt = algorithm._replace(adapt=lambda shared, client, params, batch: {"x": params["x"] / client["n"]})
    clients, tasks = {"n": jnp.array([1.0, 0.0])}, jnp.ones(2)
    spoilt = spoilt._replace(personal_params=lambda shared, client: shared)
    run = evaluate.make_evaluate(lambda values: (still, spoilt))
    returns = run([()] * 2, {"x": jnp.ones(3)}, clients, tasks, jax.random.key(0))
    np.testing.assert_array_equal(returns, [[0, 0], [0, np.nan]])


def test_run_rounds_takes_no_memory_but_its_states():
    """The key and the tasks are their owner's: a federation begins from them again."""
    key, drawn = jax.random.key(0), sample_tasks(jax.random.key(1), 6)
    options = {"num_clients": 6, "clients_per_round": 3, "aggregator": mean()}
    simulation = simulate.make_simulation(make("fedavg"), sample_tasks=lambda key, n: drawn, **options)
    first, second = (simulate.run_rounds(simulation, simulation.init(key), 2)[0] for _ in range(2))
    np.testing.assert_array_equal(first.server.shared["x"], second.server.shared["x"])

"""What each algorithm is, in closed form."""

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from contracts.quadratic import INNER_LR, LOCAL_LR, PROBLEM, STEPS, federation, make
from fedjax_rl import trees
from fedjax_rl.federation import selection, simulate
from fedjax_rl.federation.exchange import Wires
from fedjax_rl.types import Stats

pytestmark = pytest.mark.usefixtures("x64")
TASK = {"a": np.float64(1.3), "u": np.array([1.0, -2.0, 0.5])}
START = {"x": np.array([0.2, 0.1, -0.4])}
SILENT = Stats(np.zeros(()), np.zeros((), int))


def message(name, **settings):
    with jax.enable_x64(True):
        upload, _, _ = make(name, **settings).client_update(START, (), TASK, jax.random.key(0))
    return np.asarray(upload.message["x"])


def test_fedavg_contracts_towards_the_optimum():
    a, gap = 1.3, np.asarray(START["x"]) - np.asarray(TASK["u"])
    np.testing.assert_allclose(message("fedavg"), ((1 - LOCAL_LR * a) ** STEPS - 1) * gap, rtol=1e-12)


def test_fedprox_ends_where_its_recursion_says():
    """theta - theta* shrinks by 1 - b (a + mu), theta* = (a u + mu theta_k) / (a + mu)."""
    a, mu, x, u = 1.3, 0.7, np.asarray(START["x"]), np.asarray(TASK["u"])
    optimum = (a * u + mu * x) / (a + mu)
    end = optimum + (1 - LOCAL_LR * (a + mu)) ** STEPS * (x - optimum)
    np.testing.assert_allclose(message("fedprox", mu=mu), end - x, rtol=1e-12)


def test_fedprox_by_divergence_ends_where_its_recursion_says():
    """The quadratic's divergence from the received model is a/2 |x - x_k|^2."""
    x, mu, a, u = np.asarray(START["x"]), 0.7, 1.3, np.asarray(TASK["u"])
    end = x
    for _ in range(STEPS):
        end = end - LOCAL_LR * (a * (end - u) + mu * a * (end - x))
    np.testing.assert_allclose(message("fedprox", mu=mu, proximal="kl"), end - x, rtol=1e-12)


def test_fedprox_without_its_term_is_fedavg():
    np.testing.assert_allclose(message("fedprox", mu=0.0), message("fedavg"), rtol=1e-12)


@pytest.mark.parametrize(("order", "power"), [("first", 1), ("second", 2)])
def test_fmrl_contracts_as_its_order_says(order, power):
    """The meta-gradient is a (1 - s a)^power (theta - u)."""
    a, gap = 1.3, np.asarray(START["x"]) - np.asarray(TASK["u"])
    rate = LOCAL_LR * a * (1 - INNER_LR * a) ** power
    np.testing.assert_allclose(message("fmrl", order=order), ((1 - rate) ** STEPS - 1) * gap, rtol=1e-12)


def test_fmrl_without_adaptation_is_fedavg_on_the_second_batch():
    """The batches differ by their keys: FedAvg is handed the one that FMRL samples second."""

    def noisy(params, task, key):
        noise = jax.random.normal(key, (3,), jnp.float64)
        return {**task, "u": task["u"] + noise}, SILENT

    key = jax.random.key(9)
    problem = PROBLEM._replace(sample=noisy)
    one = make("fmrl", problem=problem, inner_lr=0.0).client_update(START, (), TASK, key)[0].message["x"]
    second = jax.random.split(key)[1]
    two = make("fedavg", problem=problem).client_update(START, (), TASK, second)[0].message["x"]
    np.testing.assert_allclose(one, two, rtol=1e-12)


def test_fmrl_message_is_descent_on_grad_through_adaptation():
    def objective(p):
        psi = trees.axpy(-INNER_LR, jax.grad(PROBLEM.loss)(p, TASK), p)
        return PROBLEM.loss(psi, TASK)

    p = START
    for _ in range(STEPS):
        p = trees.axpy(-LOCAL_LR, jax.grad(objective)(p), p)
    np.testing.assert_allclose(message("fmrl"), trees.sub(p, START)["x"], rtol=1e-10)


def test_fedavg_with_the_mean_model_finds_the_federated_optimum():
    """With one local step and equal rates FedAvg descends sum_i a_i |x - u_i|^2: it ends at the weighted mean."""
    simulation = federation(make("fedavg"))
    algorithm = simulation.init(jax.random.key(0))
    state = algorithm
    for _ in range(400):
        state, _ = jax.jit(simulation.round)(state)
    a, u = np.asarray(state.tasks["a"])[:, None], np.asarray(state.tasks["u"])
    pull = 1 - (1 - LOCAL_LR * a) ** STEPS  # of several local steps: the fixed point weighs clients by their pull
    np.testing.assert_allclose(state.server.shared["x"], (pull * u).sum(0) / pull.sum(), rtol=1e-9)


def test_uplink_is_applied_to_every_message_before_the_mean():
    """Clipping each change to norm c, then averaging: |server change| <= c, and equals the mean of the clipped."""
    clip = 0.01
    simulation = federation(make("fedavg"), wires=Wires(optax.clip_by_global_norm(clip)))
    state = simulation.init(jax.random.key(0))
    after, _ = simulation.round(state)
    algorithm, changes = make("fedavg"), []
    for i in range(6):
        x = algorithm.client_update(state.server.shared, (), trees.take(state.tasks, i), state.key)[0].message["x"]
        changes.append(np.asarray(x) * min(1.0, clip / np.linalg.norm(x)))
    np.testing.assert_allclose(
        after.server.shared["x"] - state.server.shared["x"], np.mean(changes, axis=0), rtol=1e-10
    )


def test_an_uplinks_memory_is_each_clients_own_and_lasts():
    """Momentum 0.9 on the way up, two of three clients a round: a client's second message holds its first."""
    simulation = federation(make("fedavg", server_opt=optax.sgd(0.0)), n=3, m=2, wires=Wires(optax.trace(0.9)))
    state = simulation.init(jax.random.key(2))
    changes = [
        make("fedavg").client_update(state.server.shared, (), trees.take(state.tasks, i), state.key)[0].message["x"]
        for i in range(3)
    ]
    memory = np.zeros((3, 3))
    for _ in range(4):
        key = jax.random.fold_in(state.key, simulate.SELECT)
        for i in np.asarray(selection.uniform(key, state.round, 3, 2)[0]):
            memory[i] = 0.9 * memory[i] + np.asarray(changes[i])
        state, _ = simulation.round(state)
        np.testing.assert_allclose(jax.tree.leaves(state.uplink)[0], memory, rtol=1e-12)


def update(name, client, *, shared=START, key=0, **settings):
    with jax.enable_x64(True):
        return make(name, **settings).client_update(shared, client, TASK, jax.random.key(key))


def test_pfedme_takes_the_proximal_steps_of_its_closed_form():
    """Towards v* = (a u + lam w) / (a + lam), K steps of size s from w end at v* + (1 - s (a + lam))^K (w - v*)."""
    a, u, lam, s, k = 1.3, np.asarray(TASK["u"]), 4.0, 0.05, 5
    w = x = np.asarray(START["x"])
    for _ in range(STEPS):
        optimum = (a * u + lam * w) / (a + lam)
        v = optimum + (1 - s * (a + lam)) ** k * (w - optimum)
        w = w - LOCAL_LR * lam * (w - v)
    upload, personal, _ = update("pfedme", START, penalty=lam, personal_lr=s, personal_steps=k)
    np.testing.assert_allclose(upload.message["x"], w - x, rtol=1e-12)
    np.testing.assert_allclose(personal["x"], v, rtol=1e-12)


def test_pfedmes_personal_model_is_not_the_global_one():
    simulation = federation(make("pfedme"))
    algorithm, state = make("pfedme"), simulation.init(jax.random.key(0))
    after, _ = simulation.round(state)
    personal = jax.vmap(algorithm.personal_params, in_axes=(None, 0))(after.server.shared, after.clients)["x"]
    apart = np.linalg.norm(np.asarray(personal) - np.asarray(after.server.shared["x"]), axis=1)
    assert apart.min() > 1e-3
    assert len(np.unique(np.round(apart, 9))) == 6


def test_ditto_is_fedavg_for_the_server_and_settles_between_the_task_and_the_global_model():
    """v contracts by 1 - s (a + lam) a step towards (a u + lam theta_k) / (a + lam), theta_k as received."""
    a, u, lam, s = 1.3, np.asarray(TASK["u"]), 2.0, 0.1
    v = np.array([3.0, 3.0, 3.0])
    optimum = (a * u + lam * np.asarray(START["x"])) / (a + lam)
    upload, personal, _ = update("ditto", {"x": v}, penalty=lam, personal_lr=s)
    np.testing.assert_allclose(upload.message["x"], message("fedavg"), rtol=1e-12)
    np.testing.assert_allclose(personal["x"], optimum + (1 - s * (a + lam)) ** STEPS * (v - optimum), rtol=1e-12)


def test_ditto_reports_the_return_of_the_personal_model():
    personal = {"x": np.array([3.0, 3.0, 3.0])}
    metrics = update("ditto", personal)[2]
    np.testing.assert_allclose(metrics["return/adapt_0"], -0.5 * 1.3 * np.sum((personal["x"] - TASK["u"]) ** 2))


def two_parts():
    """The quadratic with a head: parameters {"body", "mean"}, each three entries of one vector of six."""

    def loss(params, batch):
        both = jnp.concatenate([params["body"], params["mean"]])
        return 0.5 * jnp.sum((both - batch["u"]) ** 2) + jnp.sum(params["body"] * params["mean"])

    def init(key):
        body, mean = jax.random.normal(key, (2, 3), jnp.float64)
        return {"body": body, "mean": mean}

    return PROBLEM._replace(init=init, loss=loss, sample=lambda params, task, key: (task, SILENT))


def test_fedrep_steps_on_the_head_then_on_the_body_and_sends_the_body_alone():
    algorithm = make("fedrep", problem=two_parts(), head_steps=2)
    server = algorithm.init(jax.random.key(0))
    client = algorithm.init_client(server.shared, jax.random.key(1), 0)
    u = np.arange(6.0)
    upload, after, _ = algorithm.client_update(server.shared, client, {"u": jnp.array(u)}, jax.random.key(2))
    body, head = np.array(server.shared["body"]), np.array(client["kept"]["mean"])
    for _ in range(2):
        head = head - LOCAL_LR * (head - u[3:] + body)
    start = body
    for _ in range(STEPS):
        body = body - LOCAL_LR * (body - u[:3] + head)
    np.testing.assert_allclose(after["kept"]["mean"], head, rtol=1e-12)
    np.testing.assert_allclose(upload.message["body"], body - start, rtol=1e-12)
    assert jax.tree.leaves(upload.message["mean"]) == [] == jax.tree.leaves(server.shared["mean"])
    assert sum(x.size for x in jax.tree.leaves(upload.message)) == 3


def test_fedreps_heads_differ_from_client_to_client_and_a_new_client_has_a_fresh_one():
    algorithm = make("fedrep", problem=two_parts())
    server = algorithm.init(jax.random.key(0))
    heads = [algorithm.init_client(server.shared, jax.random.key(i), 0)["kept"]["mean"] for i in (1, 2)]
    assert np.abs(heads[0] - heads[1]).min() > 1e-3


def test_fedrep_with_nothing_in_the_head_is_fedavg():
    with jax.enable_x64(True):
        algorithm = make("fedrep", head=())
        client = algorithm.init_client(START, jax.random.key(0), 0)
        upload, _, _ = algorithm.client_update(START, client, TASK, jax.random.key(0))
    np.testing.assert_allclose(upload.message["x"], message("fedavg"), rtol=1e-12)


def test_scaffolds_variate_is_option_two():
    """c_i' = c_i - c + (x - y) / (T b), whatever the variates before."""
    own, common = {"x": np.array([0.3, -0.1, 0.2])}, {"x": np.array([-0.2, 0.4, 0.1])}
    upload, new, _ = update("scaffold", own, shared={"params": START, "variate": common})
    want = own["x"] - common["x"] - np.asarray(upload.message["params"]["x"]) / (STEPS * LOCAL_LR)
    np.testing.assert_allclose(new["x"], want, rtol=1e-12)
    np.testing.assert_allclose(upload.message["variate"]["x"], want - own["x"], rtol=1e-12)
    y, a = np.asarray(START["x"]), 1.3
    for _ in range(STEPS):
        y = y - LOCAL_LR * (a * (y - TASK["u"]) - own["x"] + common["x"])
    np.testing.assert_allclose(upload.message["params"]["x"], y - START["x"], rtol=1e-12)


def test_scaffolds_common_variate_is_the_mean_of_all_clients_own():
    """c = (1/N) sum_i c_i after every round, selected or not."""
    simulation = federation(make("scaffold"), n=6, m=2)
    state, _ = simulate.run_rounds(simulation, simulation.init(jax.random.key(0)), 5)
    own = np.asarray(state.clients["x"])
    np.testing.assert_allclose(state.server.shared["variate"]["x"], own.mean(axis=0), rtol=1e-12)
    assert np.abs(own).max() > 0.1


def test_scaffold_finds_the_exact_optimum_where_fedavg_is_biased():
    ends = {}
    for name in ("scaffold", "fedavg"):
        simulation = federation(make(name), n=6, m=3)
        state = simulation.init(jax.random.key(0))
        for _ in range(4):
            state, _ = simulate.run_rounds(simulation, state, 500)
        shared = state.server.shared
        ends[name] = np.asarray(shared["params"]["x"] if name == "scaffold" else shared["x"])
    a, u = np.asarray(state.tasks["a"])[:, None], np.asarray(state.tasks["u"])
    optimum = (a * u).sum(0) / a.sum()
    np.testing.assert_allclose(ends["scaffold"], optimum, atol=1e-9)
    assert np.abs(ends["fedavg"] - optimum).max() > 1e-3


@pytest.mark.parametrize(("order", "power"), [("first", 1), ("second", 2)])
def test_per_fedavg_on_repeated_batches_is_fmrl(order, power):
    """Without noise every fresh batch is the same, and Per-FedAvg must equal FMRL's closed form."""
    a, gap = 1.3, np.asarray(START["x"]) - np.asarray(TASK["u"])
    rate = LOCAL_LR * a * (1 - INNER_LR * a) ** power
    np.testing.assert_allclose(message("per_fedavg", order=order), ((1 - rate) ** STEPS - 1) * gap, rtol=1e-12)


def noisy_problem():
    def noisy(params, task, key):
        return {**task, "u": task["u"] + jax.random.normal(key, (3,), jnp.float64)}, SILENT

    return PROBLEM._replace(sample=noisy)


def test_per_fedavg_and_reptile_sample_afresh_for_every_step():
    """Replayed by hand with the same keys: a step's batches are its own."""
    key, a, u = jax.random.key(4), 1.3, np.asarray(TASK["u"])
    x = y = np.asarray(START["x"])
    for step_key in jax.random.split(key, STEPS):
        shown = [u + np.asarray(jax.random.normal(k, (3,), jnp.float64)) for k in jax.random.split(step_key)]
        psi = x - INNER_LR * a * (x - shown[0])
        x = x - LOCAL_LR * (1 - INNER_LR * a) * a * (psi - shown[1])
        y = y - LOCAL_LR * a * (y - (u + np.asarray(jax.random.normal(step_key, (3,), jnp.float64))))
    for name, end in (("per_fedavg", x), ("reptile", y)):
        upload, _, _ = update(name, (), key=4, problem=noisy_problem())
        np.testing.assert_allclose(upload.message["x"], end - START["x"], rtol=1e-10, err_msg=name)


def test_independent_clients_follow_their_own_tasks():
    """A client selected in every round contracts towards its own optimum; the server never moves."""
    simulation = federation(make("independent"))
    state = simulation.init(jax.random.key(0))
    after, _ = simulate.run_rounds(simulation, jax.tree.map(jnp.copy, state), 7)
    a, u = np.asarray(state.tasks["a"])[:, None], np.asarray(state.tasks["u"])
    start = np.asarray(state.server.shared["x"])
    np.testing.assert_allclose(after.clients["x"], u + (1 - LOCAL_LR * a) ** (7 * STEPS) * (start - u), rtol=1e-12)
    np.testing.assert_array_equal(after.server.shared["x"], start)


def test_meta_sgd_moves_start_and_rates_by_the_chain_rule():
    """On the quadratic: d/dtheta = (1 - r a) a (psi - u), d/dr = -a (theta - u) a (psi - u), entry by entry."""
    a, u = 1.3, np.asarray(TASK["u"])
    start, rates = np.asarray(START["x"]), np.array([0.1, 0.3, 0.05])
    for order in ("first", "second"):
        x, r = start, rates
        for _ in range(STEPS):
            inner = a * (x - u)
            outer = a * (x - r * inner - u)
            x, r = x - LOCAL_LR * (1 if order == "first" else 1 - r * a) * outer, r + LOCAL_LR * inner * outer
        shared = {"params": START, "rates": {"x": rates}}
        upload, _, _ = update("meta_sgd", (), shared=shared, order=order)
        np.testing.assert_allclose(upload.message["params"]["x"], x - start, rtol=1e-10)
        np.testing.assert_allclose(upload.message["rates"]["x"], r - rates, rtol=1e-10)


def test_meta_sgd_adapts_with_its_learned_rates():
    rates = np.array([0.1, 0.3, 0.05])
    with jax.enable_x64(True):
        algorithm = make("meta_sgd")
        adapted = algorithm.adapt({"params": START, "rates": {"x": rates}}, (), START, TASK)
        first = algorithm.init(jax.random.key(0)).shared["rates"]["x"]
    want = np.asarray(START["x"]) - rates * 1.3 * (np.asarray(START["x"]) - np.asarray(TASK["u"]))
    np.testing.assert_allclose(adapted["x"], want, rtol=1e-12)
    np.testing.assert_array_equal(first, INNER_LR)


def test_the_second_batch_is_sampled_with_the_adapted_parameters():
    """A problem whose batches show where they were sampled, u + 2 x: replayed by hand for the three that adapt."""
    a, u, start, s = 1.3, np.asarray(TASK["u"]), np.asarray(START["x"]), INNER_LR

    def sample(params, task, key):
        return {**task, "u": task["u"] + 2 * params["x"]}, SILENT

    def adapted(x, inner):
        return x - s * a * (x - inner)

    def step(x, inner, outer):
        return x - LOCAL_LR * (1 - s * a) * a * (adapted(x, inner) - outer)

    inner = u + 2 * start
    outer = u + 2 * adapted(start, inner)
    x = y = z = start
    r = np.full(3, s)
    for _ in range(STEPS):
        x = step(x, inner, outer)
        fresh = u + 2 * y
        y = step(y, fresh, u + 2 * adapted(y, fresh))
        g0 = a * (z - inner)
        g1 = a * (z - r * g0 - outer)
        z, r = z - LOCAL_LR * (1 - r * a) * g1, r + LOCAL_LR * g0 * g1
    problem = PROBLEM._replace(sample=sample)
    for name, end in (("fmrl", x), ("per_fedavg", y)):
        np.testing.assert_allclose(update(name, (), problem=problem)[0].message["x"], end - start, rtol=1e-10)
    shared = {"params": START, "rates": {"x": np.full(3, s)}}
    moved = update("meta_sgd", (), shared=shared, problem=problem)[0].message["params"]["x"]
    np.testing.assert_allclose(moved, z - start, rtol=1e-10)

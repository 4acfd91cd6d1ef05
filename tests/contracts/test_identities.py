"""What each algorithm is, in closed form."""

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from contracts.quadratic import INNER_LR, LOCAL_LR, PROBLEM, STEPS, federation, make
from fedjax_rl import trees

pytestmark = pytest.mark.usefixtures("x64")
TASK = {"a": np.float64(1.3), "u": np.array([1.0, -2.0, 0.5])}
START = {"x": np.array([0.2, 0.1, -0.4])}


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
        return {**task, "u": task["u"] + noise}, jnp.zeros(())

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
    simulation = federation(make("fedavg"), uplink=optax.clip_by_global_norm(clip))
    state = simulation.init(jax.random.key(0))
    after, _ = simulation.round(state)
    algorithm, changes = make("fedavg"), []
    for i in range(6):
        x = algorithm.client_update(state.server.shared, (), trees.take(state.tasks, i), state.key)[0].message["x"]
        changes.append(np.asarray(x) * min(1.0, clip / np.linalg.norm(x)))
    np.testing.assert_allclose(
        after.server.shared["x"] - state.server.shared["x"], np.mean(changes, axis=0), rtol=1e-10
    )

"""Natural policy gradients against dense Fisher matrices, and the federation's one by ADMM against its solution."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from scipy import integrate

from fedjax_rl import trees
from fedjax_rl.algorithms.npg import fisher, npg, solve
from fedjax_rl.algorithms.npg_admm import npg_admm
from fedjax_rl.config import ConfigError, build
from fedjax_rl.config.presets import preset
from fedjax_rl.envs import make_env
from fedjax_rl.federation.aggregators import mean
from fedjax_rl.federation.simulate import make_simulation, run_rounds
from fedjax_rl.rl.distributions import CATEGORICAL, GAUSSIAN
from fedjax_rl.rl.policies import mlp
from fedjax_rl.rl.problem import make_problem
from fedjax_rl.types import Problem, Stats
from rl.test_distributions import guess

pytestmark = pytest.mark.usefixtures("x64")
# two clients of sum_i (y' F_i y / 2 - g_i' y), all F_i diagonal
CURVATURES = np.array([[1.0, 4.0, 0.5], [3.0, 0.2, 2.0]])
GRADIENTS = np.array([[1.0, 2.0, 3.0], [0.0, -1.0, 1.0]])


def sample(params, task, key):
    return task, Stats(jnp.zeros(()), jnp.zeros((), int))


KNOWN = Problem(
    init=lambda key: {"x": jnp.zeros(3)},
    sample=sample,
    loss=lambda params, task: jnp.sum(task["g"] * params["x"]),
    kl=lambda params, at, task: 0.5 * jnp.sum(task["F"] * (params["x"] - at["x"]) ** 2),
)
ORDINARY = {"client_opt": optax.sgd(1.0), "server_opt": optax.sgd(1.0), "local_steps": 1, "inner_lr": 0.1}


def after(algorithm, rounds):
    tasks = {"F": jnp.asarray(CURVATURES), "g": jnp.asarray(GRADIENTS)}
    sizes = {"num_clients": 2, "clients_per_round": 2}
    simulation = make_simulation(algorithm, sample_tasks=lambda key, n: tasks, aggregator=mean(), **sizes)
    return run_rounds(simulation, simulation.init(jax.random.key(0)), rounds)[0]


def test_divergences_of_policies_are_those_of_their_densities():
    """The Gaussian's by quadrature on a grid, the categorical's by its sum."""
    rng = np.random.default_rng(0)
    mean_one, mean_two = rng.normal(size=(2, 4, 1))
    log_one, log_two = 0.3 * rng.normal(size=(2, 4, 1))
    x = np.linspace(-15, 15, 20001)[None]
    density = lambda m, s: np.exp(-0.5 * ((x - m) / np.exp(s)) ** 2 - s) / np.sqrt(2 * np.pi)
    one, two = density(mean_one, log_one), density(mean_two, log_two)
    want = integrate.trapezoid(one * (np.log(one + 1e-300) - np.log(two + 1e-300)), x, axis=1)
    np.testing.assert_allclose(GAUSSIAN.kl((mean_one, log_one), (mean_two, log_two)), want, rtol=1e-7)
    logits = rng.normal(size=(2, 5, 3))
    p, q = np.exp(logits) / np.exp(logits).sum(axis=-1, keepdims=True)
    np.testing.assert_allclose(CATEGORICAL.kl(*logits), np.sum(p * np.log(p / q), axis=1), rtol=1e-12)


@functools.cache
def on(kind):
    """(A problem, its parameters away from the start, a batch, the policy), in float64."""
    env = make_env("navigation")._replace(spec=make_env("navigation").spec._replace(horizon=12))
    env = env if kind == "gaussian" else guess(ends=4)  # whose episodes end before their 6 steps
    policy = mlp(env.spec, hidden=(5,))
    problem = make_problem(env, policy, episodes=21)
    params = problem.init(jax.random.key(0))
    params = jax.tree.map(lambda x: x + 0.1 * jax.random.normal(jax.random.key(x.size), x.shape, x.dtype), params)
    task = trees.take(env.sample_tasks(jax.random.key(1), 3), 2)
    batch, _ = jax.jit(problem.sample)(params, task, jax.random.key(2))
    double = lambda tree: jax.tree.map(lambda x: x.astype(float) if x.dtype == jnp.float32 else x, tree)
    return problem, double(params), double(batch), policy


def dense(policy, params, batch):
    """F [d, d], the mean over valid steps of J' (Hessian of KL in the head) J."""
    flat, unravel = jax.flatten_util.ravel_pytree(params)
    head = lambda x: policy.apply(unravel(x), batch.obs.reshape(batch.mask.size, -1))
    jacobian, at = jax.jit(lambda x: (jax.jacobian(head)(x), head(x)))(flat)
    if policy.distribution is GAUSSIAN:
        precision = np.exp(-2 * np.asarray(at[1]))
        each = np.einsum("bai,ba,baj->bij", jacobian[0], precision, jacobian[0])
        each += 2 * np.einsum("bai,baj->bij", jacobian[1], jacobian[1])
    else:
        p = np.asarray(jax.nn.softmax(at))
        curvature = np.einsum("bk,kl->bkl", p, np.eye(p.shape[1])) - np.einsum("bk,bl->bkl", p, p)
        each = np.einsum("bki,bkl,blj->bij", jacobian, curvature, jacobian)
    return each[np.asarray(batch.mask).ravel()].mean(axis=0), unravel


@pytest.mark.parametrize("kind", ["gaussian", "categorical"])
def test_fisher_products_are_those_of_the_dense_matrix(kind):
    problem, params, batch, policy = on(kind)
    matrix, unravel = dense(policy, params, batch)
    assert bool(batch.mask.all()) == (kind == "gaussian")
    product = jax.jit(lambda v: jax.flatten_util.ravel_pytree(fisher(problem, params, batch)(unravel(v)))[0])
    for v in np.random.default_rng(0).normal(size=(3, len(matrix))):
        np.testing.assert_allclose(product(v), matrix @ v, rtol=1e-9, atol=1e-12)


def test_conjugate_gradients_solve_what_a_dense_solver_does():
    rng = np.random.default_rng(1)
    root = rng.normal(size=(30, 30))
    matrix, b = root @ root.T / 30, rng.normal(size=30)
    product = lambda v: {"x": jnp.asarray(matrix) @ v["x"]}
    answer = lambda damping, steps: np.asarray(solve(product, {"x": jnp.asarray(b)}, damping, steps)["x"])
    np.testing.assert_allclose(answer(0.1, 60), np.linalg.solve(matrix + 0.1 * np.eye(30), b), rtol=1e-8)
    error = [np.linalg.norm(answer(0.1, k) - answer(0.1, 60)) for k in (0, 5, 10)]
    assert error[0] > 4 * error[1] > 8 * error[2] > 0


def test_conjugate_gradients_end_where_nothing_is_left_to_solve():
    """In float32 the squares of what is left underflow after a while; their quotients would be NaN."""
    for seed in range(6):
        rng = np.random.default_rng(seed)
        root, b = rng.normal(size=(5, 5)), np.float32(1e-3 * rng.normal(size=5))
        matrix = np.float32(root @ root.T / 5)
        found = solve(lambda v, matrix=matrix: matrix @ v, jnp.asarray(b), 0.1, 1000)
        want = np.linalg.solve(np.float64(matrix) + 0.1 * np.eye(5), b)
        np.testing.assert_allclose(found, want, rtol=1e-3, atol=1e-6)


def test_a_bandits_natural_gradient_is_the_variance_times_its_gradient():
    """F = I / sigma^2, so the step is sigma^2 g min(sqrt(2 max_kl / (sigma^2 g'g)), max_step)."""
    sigma, g = 0.4, np.array([0.3, -1.2])
    head = lambda params: (params["mean"][None], jnp.full((1, 2), np.log(sigma)))
    problem = Problem(
        init=lambda key: {"mean": jnp.array([1.0, 2.0])},
        sample=sample,
        loss=lambda params, task: jnp.sum(jnp.asarray(g) * params["mean"]),
        kl=lambda params, at, task: GAUSSIAN.kl(head(at), head(params))[0],
    )
    start = problem.init(None)
    for options, factor in (
        ({"max_step": 1.0, "max_kl": 10.0}, 1.0),
        ({"max_kl": 0.02}, np.sqrt(0.04 / (sigma**2 * g @ g))),
        ({"max_kl": 0.02, "local_steps": 3}, 3 * np.sqrt(0.04 / (sigma**2 * g @ g))),
    ):
        algorithm = npg(problem, **{**ORDINARY, "damping": 0.0, **options})
        moved = algorithm.client_update(start, (), jnp.zeros(()), jax.random.key(0))[0].message
        np.testing.assert_allclose(moved["mean"], -factor * sigma**2 * g, rtol=1e-10)
    damped = npg(problem, **ORDINARY, damping=2.0, max_kl=10.0, max_step=1.0)
    moved = damped.client_update(start, (), jnp.zeros(()), jax.random.key(0))[0].message
    np.testing.assert_allclose(moved["mean"], -g / (1 / sigma**2 + 2.0), rtol=1e-10)


def test_a_step_has_the_divergence_that_was_asked_for():
    """And with half the rate a quarter of it."""
    problem, params, batch, _ = on("gaussian")
    fixed = problem._replace(sample=lambda params, task, key: (batch, Stats(jnp.zeros(()), jnp.zeros((), int))))

    @jax.jit
    def step(max_kl, rate):
        algorithm = npg(fixed, **{**ORDINARY, "client_opt": optax.sgd(rate)}, max_kl=max_kl, max_step=1e9)
        new = trees.axpy(1.0, algorithm.client_update(params, (), (), jax.random.key(0))[0].message, params)
        return problem.kl(new, params, batch), problem.loss(new, batch) - problem.loss(params, batch)

    for max_kl, rate in ((0.01, 1.0), (0.001, 1.0), (0.01, 0.5)):
        moved, gain = step(max_kl, rate)
        assert float(moved) == pytest.approx(rate**2 * max_kl, rel=0.1) and gain < 0


def test_a_gradient_of_zero_is_a_step_of_zero():
    still = KNOWN._replace(loss=lambda params, task: 0.0 * jnp.sum(params["x"]))
    for damping in (0.0, 0.1):
        assert not np.asarray(after(npg(still, **ORDINARY, damping=damping), 1).server.shared["x"]).any()
    common = after(npg_admm(still, server_opt=optax.sgd(1.0), inner_lr=0.1), 3).server.shared["direction"]["x"]
    assert not np.asarray(common).any()


def test_admm_finds_the_natural_gradient_of_the_federation():
    """In NumPy, one client after the other; and towards (sum F)^-1 sum g, as far as it is after 10 and 50 rounds."""
    averaged = after(npg(KNOWN, **ORDINARY, damping=0.0, max_kl=1e6, max_step=1.0), 1).server.shared["x"]
    np.testing.assert_allclose(-np.asarray(averaged), [0.5, -2.25, 3.25], rtol=1e-9)  # which is another
    solution = GRADIENTS.sum(axis=0) / CURVATURES.sum(axis=0)
    np.testing.assert_allclose(solution, [0.25, 0.238095, 1.6], atol=1e-6)
    own, dual, common = np.zeros((2, 3)), np.zeros((2, 3)), np.zeros(3)
    for number in range(1, 51):
        dual += own - common
        own = (GRADIENTS - dual + common) / (CURVATURES + 1.0)
        common = (own + dual).mean(axis=0)
        if number in (1, 2, 10, 50):
            state = after(npg_admm(KNOWN, server_opt=optax.sgd(0.0), inner_lr=0.1, penalty=1.0), number)
            np.testing.assert_allclose(state.server.shared["direction"]["x"], common, rtol=1e-9)
            np.testing.assert_allclose(state.clients["dual"]["x"], dual, rtol=1e-9, atol=1e-12)
            error = np.abs(np.asarray(state.server.shared["direction"]["x"]) - solution).max()
            assert {1: 0.1, 2: 0.05, 10: 2e-3, 50: 0}[number] < error < {1: 2, 2: 2, 10: 3e-3, 50: 1e-12}[number]


def test_a_client_sends_its_direction_and_its_dual():
    """Where all have taken part the duals' sum is 0, and the mean of the messages would hide it."""
    algorithm = npg_admm(KNOWN, server_opt=optax.sgd(1.0), inner_lr=0.1, penalty=0.5)
    x = lambda *numbers: {"x": jnp.array(numbers)}
    shared, client = (
        {"params": x(0.0, 0, 0), "direction": x(1.0, 2, 3)},
        {"direction": x(2.0, 2, 1), "dual": x(3.0, 1, 0)},
    )
    task = {"F": jnp.asarray(CURVATURES[0]), "g": jnp.asarray(GRADIENTS[0])}
    upload, after_it, _ = algorithm.client_update(shared, client, task, jax.random.key(0))
    dual = np.array([3.0, 1, 0]) + 0.5 * np.array([1.0, 0, -2])
    own = (GRADIENTS[0] - dual + 0.5 * np.array([1.0, 2, 3])) / (CURVATURES[0] + 0.5)
    np.testing.assert_allclose(after_it["dual"]["x"], dual, rtol=1e-12)
    np.testing.assert_allclose(after_it["direction"]["x"], own, rtol=1e-9)
    np.testing.assert_allclose(upload.message["x"], own + dual / 0.5, rtol=1e-9)


def test_the_server_moves_along_the_consensus():
    state = after(npg_admm(KNOWN, server_opt=optax.sgd(0.25), inner_lr=0.1, penalty=1.0), 1)
    consensus = np.asarray(state.server.shared["direction"]["x"])
    np.testing.assert_allclose(consensus, (GRADIENTS / (CURVATURES + 1.0)).mean(axis=0), rtol=1e-12)
    np.testing.assert_allclose(state.server.shared["params"]["x"], -0.25 * consensus, rtol=1e-12)


def test_a_sweep_over_dampings_in_chunks_is_each_alone():
    tasks = {"F": jnp.asarray(CURVATURES), "g": jnp.asarray(GRADIENTS)}

    def changes(damping, max_kl, client_batch):
        algorithm = npg(KNOWN, **ORDINARY, damping=damping, max_kl=max_kl, client_batch=client_batch)
        of_client = lambda task: algorithm.client_update(KNOWN.init(None), (), task, jax.random.key(0))[0].message["x"]
        return jax.vmap(of_client)(tasks)

    dampings, limits = np.array([0.05, 2.0]), np.array([0.01, 0.02])
    swept = jax.jit(jax.vmap(functools.partial(changes, client_batch=1)))(dampings, limits)
    u = GRADIENTS / (CURVATURES + dampings[:, None, None])
    length = np.sqrt(2 * limits[:, None] / np.sum(CURVATURES * u**2, axis=2))
    np.testing.assert_allclose(swept, -length[..., None] * u, rtol=1e-9)


@pytest.mark.parametrize(
    ("values", "message"),
    [
        ({"clients_per_round": 3, "num_clients": 9}, "clients_per_round = 3: npg_admm needs all clients.* set it to 9"),
        ({"dropout": 0.1}, "dropout = 0.1: npg_admm needs all clients"),
        ({"wait_for": 4, "speed": "linear"}, "wait_for = 4: npg_admm needs all clients"),
        ({"stragglers": 0.1}, "stragglers = 0.1: not for this npg_admm"),
        ({"schedule": "async"}, "schedule = 'async': not for npg_admm: its iteration needs all clients"),
        ({"local_steps": 2}, "local_steps = 2: must be"),
    ],
)
def test_admm_without_all_clients_is_refused_in_one_line(values, message):
    with pytest.raises(ConfigError, match=message) as caught:
        build("npg_admm", values)
    assert "\n" not in str(caught.value)


def test_admm_takes_all_clients():
    assert build("npg_admm", preset("laptop", "npg_admm")).clients_per_round == 200
    assert build("npg_admm", {"num_clients": 7, "clients_per_round": 7}).clients_per_round == 7


def test_a_problem_without_divergence_is_refused():
    with pytest.raises(ValueError, match="no `kl`"):
        after(npg(KNOWN._replace(kl=None), **ORDINARY), 1)

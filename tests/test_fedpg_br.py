"""FedPG-BR's server: how many steps, along what, when it stops; and the gradient of another policy's episodes."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from scipy import stats

from fedjax_rl.algorithms.fedpg_br import fedpg_br
from fedjax_rl.config import build
from fedjax_rl.config.presets import preset
from fedjax_rl.envs import make_env
from fedjax_rl.rl.policies import mlp
from fedjax_rl.rl.problem import make_problem
from fedjax_rl.types import Aggregate, Problem, Stats
from rl.test_distributions import guess

pytestmark = pytest.mark.usefixtures("x64")
MU = {"x": np.array([0.4, -1.0])}


def toy(**fields):
    """L(x; u) = sum cosh(x - u), where the episodes u of a server at x are drawn around x."""
    usual = {
        "init": lambda key: {"x": jnp.array([0.3, -0.2])},
        "sample": lambda params, task, key: (task, Stats(jnp.zeros(()), jnp.zeros((), int))),
        "loss": lambda params, batch: jnp.sum(jnp.cosh(params["x"] - batch["u"])),
        "ratio": lambda params, batch: jnp.ones(()),
        "server_sample": lambda params, key, count: {"u": params["x"] + jax.random.normal(key, (2,))},
    }
    return Problem(**{**usual, **fields})


def make(problem, **options):
    return fedpg_br(problem, **{"server_opt": optax.sgd(0.1), "inner_lr": 0.1, **options})


def after(algorithm, key, mu=MU):
    """The server after an update from its start."""
    server = algorithm.init(jax.random.key(0))
    return algorithm.server_update(server, Aggregate(jax.tree.map(jnp.asarray, mu), jnp.ones(())), key)


def test_the_servers_steps_are_those_of_a_replay():
    """In NumPy, from the episodes that the server drew: v = grad L(x_n; u) - grad L(x_0; u) + mu, and Adam's state."""
    drawn = []

    def server_sample(params, key, count):
        assert count == 7
        drawn.append((np.asarray(params["x"]), np.asarray(jax.random.normal(key, (2,)))))
        return {"u": jnp.asarray(drawn[-1][1])}

    lengths = set()
    for number in range(6):
        drawn.clear()
        algorithm = make(toy(server_sample=server_sample), server_opt=optax.adam(0.1), inner_steps=3.0, inner_batch=7)
        with jax.disable_jit():
            server = after(algorithm, jax.random.key(number))
        x = start = np.array([0.3, -0.2])
        m, v = np.zeros(2), np.zeros(2)
        for n in range(len(drawn) + 1):
            direction = np.array(MU["x"])
            if n:
                at, u = drawn[n - 1]
                np.testing.assert_allclose(at, x, rtol=1e-9)
                direction = np.sinh(x - u) - np.sinh(start - u) + direction
            m, v = 0.9 * m + 0.1 * direction, 0.999 * v + 0.001 * direction**2
            x = x - 0.1 * (m / (1 - 0.9 ** (n + 1))) / (np.sqrt(v / (1 - 0.999 ** (n + 1))) + 1e-8)
        np.testing.assert_allclose(server.shared["x"], x, rtol=1e-8)
        assert int(server.private[0].count) == len(drawn) + 1
        assert len({tuple(u) for _, u in drawn}) == len(drawn)  # fresh episodes in every step
        lengths.add(len(drawn))
    assert len(lengths) > 2


def steps_taken(keys, **options):
    """How many steps of length 0.1 the server takes, for each key; the correction of a linear loss is 0."""
    problem = toy(loss=lambda params, batch: jnp.sum(params["x"] * batch["u"]))
    algorithm = make(problem._replace(**options.pop("fields", {})), **options)
    moved = jax.vmap(lambda key: after(algorithm, key).shared["x"] - jnp.array([0.3, -0.2]))(keys)
    return np.round(-np.asarray(moved)[:, 0] / (0.1 * MU["x"][0])).astype(int)


def test_the_number_of_steps_is_geometric():
    counts = steps_taken(jax.random.split(jax.random.key(1), 4000), inner_steps=5.0)
    found = np.bincount(np.minimum(counts, 16), minlength=17)[1:]
    want = 0.2 * 0.8 ** np.arange(15)
    assert stats.chisquare(found, 4000 * np.append(want, 1 - want.sum())).pvalue > 1e-3
    assert (steps_taken(jax.random.split(jax.random.key(1), 100), inner_steps=1.0) == 1).all()


def test_it_stops_before_the_step_that_sees_too_unlike_policies():
    """The ratio is 1 + what was moved; 0.14 a step, so that it leaves 1 +- 0.35 after three."""
    far = lambda params, batch: 1.0 + jnp.sum(jnp.abs(params["x"] - batch["at"]))
    drawn = lambda params, key, count: {"u": jnp.zeros(2), "at": params["x"]}
    for sign in (1.0, -1.0):
        ratio = lambda params, batch, sign=sign: 1.0 + sign * (far(params, batch) - 1.0)
        fields = {"ratio": ratio, "server_sample": drawn}
        keys = jax.random.split(jax.random.key(2), 4)
        for tolerance, count in ((0.0, 1), (0.35, 3), (0.5, 4)):
            options = {"fields": fields, "inner_steps": 1e6, "ratio_tolerance": tolerance}
            assert steps_taken(keys, **options).tolist() == [count] * 4


def test_after_it_has_stopped_nothing_more_is_sampled():
    drawn = []

    def server_sample(params, key, count):
        drawn.append(key)
        return {"u": params["x"], "is_like": jnp.asarray(float(len(drawn) != 2))}

    problem = toy(server_sample=server_sample, ratio=lambda params, batch: batch["is_like"])
    with jax.disable_jit():
        after(make(problem, inner_steps=1000.0), jax.random.key(4))
    assert len(drawn) == 2


def test_without_clients_gradients_it_stands_still():
    server = after(make(toy(), inner_steps=20.0), jax.random.key(0), {"x": np.zeros(2)})
    np.testing.assert_array_equal(server.shared["x"], [0.3, -0.2])


def test_a_client_sends_the_gradient_at_what_it_was_sent():
    problem = toy()
    algorithm = make(problem, client_batch=1)
    tasks = {"u": jnp.arange(6.0).reshape(3, 2)}
    of = lambda task: algorithm.client_update(problem.init(None), (), task, jax.random.key(0))[0]
    upload = jax.jit(jax.vmap(of))(tasks)
    np.testing.assert_allclose(upload.message["x"], np.sinh([0.3, -0.2] - np.arange(6.0).reshape(3, 2)), rtol=1e-12)
    assert upload.weight.tolist() == [1.0] * 3


def test_members_of_a_sweep_are_each_alone():
    def one(steps, rate, tolerance, key):
        options = {"inner_steps": steps, "ratio_tolerance": tolerance, "server_opt": optax.adam(rate)}
        return after(make(toy(), **options), key).shared["x"]

    values = (np.array([2.0, 9.0]), np.array([0.1, 0.02]), np.array([0.1, 0.2]), jax.random.split(jax.random.key(3), 2))
    swept = jax.jit(jax.vmap(one))(*values)
    for i in range(2):
        np.testing.assert_allclose(swept[i], one(*(value[i] for value in values)), rtol=1e-9)


@functools.cache
def discrete(surrogate):
    """(Problem, policy, two policies' parameters, a batch of the second); episodes end before their steps do."""
    env = guess(ends=4)
    policy = mlp(env.spec, hidden=(3,))
    options = {"discount": 0.9, "clip": 10.0, "baseline": False, "scale": "plain", "reduction": "sum"}
    problem = make_problem(env, policy, episodes=5, surrogate=surrogate, **options)
    other = jax.tree.map(lambda x: x.astype(float), problem.init(jax.random.key(0)))
    params = jax.tree.map(lambda x: x + 0.3 * jax.random.normal(jax.random.key(x.size), x.shape), other)
    return (
        problem,
        policy,
        other,
        params,
        jax.jit(problem.server_sample, static_argnums=2)(params, jax.random.key(5), 5),
    )


@pytest.mark.parametrize("surrogate", ["ratio", "dice", "log"])
def test_the_gradient_at_another_policy_is_weighed_by_the_ratio(surrogate):
    """grad L(theta_0; D) = -(1/b) sum_e sum_t w_t A_t grad log pi_0(a_t | s_t), by a Jacobian."""
    problem, policy, other, params, batch = discrete(surrogate)
    flat, unravel = jax.flatten_util.ravel_pytree(other)

    def logp(x):
        head = policy.apply(unravel(x), batch.obs.reshape(batch.mask.size, -1))
        return policy.distribution.log_prob(head, batch.action.reshape(batch.mask.size, -1)).reshape(batch.mask.shape)

    jacobian, mask = np.asarray(jax.jit(jax.jacobian(logp))(flat)), np.asarray(batch.mask)
    change = np.where(mask, np.asarray(logp(flat)) - batch.logp_old, 0.0)
    weight = {"ratio": np.exp(change), "dice": np.exp(np.cumsum(change, axis=1)), "log": np.ones(change.shape)}[
        surrogate
    ]
    want = -np.einsum("et,et,etd->d", weight, np.where(mask, batch.advantage, 0.0), jacobian) / len(mask)
    found = jax.flatten_util.ravel_pytree(jax.jit(jax.grad(problem.loss))(other, batch))[0]
    np.testing.assert_allclose(found, want, rtol=1e-5, atol=1e-9)
    assert not mask.all() and np.abs(change).max() > 0.1
    np.testing.assert_allclose(problem.ratio(other, batch), np.exp(change[mask]).mean(), rtol=1e-6)
    np.testing.assert_allclose(problem.ratio(params, batch), 1.0, rtol=1e-6)


def test_every_episode_of_the_server_has_a_task_of_its_own():
    """Its goal, found from three distances that were paid: with a discount of 0 an advantage is the reward."""
    env = make_env("navigation")
    policy = mlp(env.spec, hidden=(3,))
    problem = make_problem(env, policy, episodes=2, discount=0.0, baseline=False, scale="plain")
    params = jax.tree.map(lambda x: x.astype(jnp.float32), problem.init(jax.random.key(0)))
    batch = jax.jit(problem.server_sample, static_argnums=2)(params, jax.random.key(1), 6)
    assert batch.obs.shape == (6, 100, 2) and batch.mask.all()
    at, distance = np.float64(batch.obs[:, 1:]), -np.float64(batch.advantage[:, :-1])
    goals = []
    for p, d in zip(at, distance, strict=True):
        gaps = 0.5 * (d[0] ** 2 - d[1:] ** 2 + (p[1:] ** 2).sum(axis=1) - (p[0] ** 2).sum())
        goals.append(np.linalg.lstsq(p[1:] - p[0], gaps, rcond=None)[0])
        np.testing.assert_allclose(np.linalg.norm(p - goals[-1], axis=1), d, atol=1e-4)
    assert np.abs(goals).max() < 0.5 and min(np.linalg.norm(a - b) for a in goals for b in goals if a is not b) > 1e-2
    assert len(np.unique(batch.action[:, 0], axis=0)) == 6


def test_the_published_setting_is_a_preset():
    made = build("fedpg_br", preset("fedpg-br-cartpole", "fedpg_br"))
    assert (made.num_clients, made.clients_per_round, made.episodes, made.inner_batch) == (10, 10, 16, 4)
    assert made.inner_steps == (made.episodes + made.inner_batch) / made.inner_batch
    assert (made.server, made.server_lr, made.discount, made.hidden) == ("adam", 0.001, 0.999, (16, 16))


@pytest.mark.parametrize("lacks", ["ratio", "server_sample"])
def test_a_problem_without_a_server_that_samples_is_refused(lacks):
    with pytest.raises(ValueError, match="no `ratio` and `server_sample`"):
        make(toy()._replace(**{lacks: None}))

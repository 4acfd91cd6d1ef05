"""Strategies against a problem whose best rates are known, finite differences, and one another."""

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from fedjax_rl.algorithms.fedstrategy import (
    CLIP,
    ENTROPY,
    LAMBDA,
    LOG_STD,
    OUTPUT,
    SIZE,
    _meta_gradient,
    _trained,
    capability,
    fedstrategy,
    roles,
)
from fedjax_rl.config import ConfigError, build
from fedjax_rl.config.presets import preset
from fedjax_rl.envs import make_env
from fedjax_rl.federation.aggregators import mean
from fedjax_rl.federation.simulate import make_simulation, run_rounds
from fedjax_rl.rl.critics import mlp_critic
from fedjax_rl.rl.kinds import mixed_policy, mixed_problem
from fedjax_rl.rl.policies import mlp
from fedjax_rl.rl.problem import make_problem
from fedjax_rl.types import Problem, Stats, Tuned, Tuning

SIZE_OF_X, MOST = 10, 64


def unit(key):
    x = jax.random.normal(key, (SIZE_OF_X,))
    return {"x": x / jnp.linalg.norm(x)}


def noisy(params, noise, tuning=None):
    """|x|^2 / 2, whose gradient is x + noise."""
    return 0.5 * jnp.sum(params["x"] ** 2) + jnp.sum(noise * params["x"])


def first_mean(batch, count):
    """The mean noise of the first episodes: its deviation is 1 / sqrt(count)."""
    return jnp.sum(jnp.where((jnp.arange(MOST) < count)[:, None], batch, 0.0), axis=0) / count


NOISY = Problem(
    init=unit,
    sample=lambda params, task, key: (
        jax.random.normal(key, (MOST, SIZE_OF_X)),
        Stats(-0.5 * jnp.sum(params["x"] ** 2), jnp.zeros((), int)),
    ),
    loss=lambda params, batch: noisy(params, first_mean(batch, MOST)),
    tuned=Tuned(first_mean, noisy),
)


def make(problem=NOISY, **options):
    usual = {"server_opt": optax.adam(0.01), "local_steps": 1, "inner_lr": 0.05, "episodes": MOST}
    return fedstrategy(problem, **{**usual, **options})


def federation(algorithm, num_clients=20, tasks=lambda key, n: jnp.zeros(n)):
    sizes = {"num_clients": num_clients, "clients_per_round": num_clients}
    return make_simulation(algorithm, sample_tasks=tasks, aggregator=mean(), **sizes)


def test_the_map_finds_the_best_rate_of_every_capability():
    """With E episodes the best rate is 1 / (1 + 10 / E), and the loss after one step known in closed form."""
    algorithm = make(step="plain", client_episodes=(1, 4, 16, 64))

    def update(shared, client, task, key):  # every round from a new point, as far from the best one
        at, rest = jax.random.split(key)
        return algorithm.client_update(shared, {**client, "params": unit(at)}, task, rest)

    simulation = federation(algorithm._replace(client_update=update))
    state, _ = run_rounds(simulation, simulation.init(jax.random.key(0)), 2000)
    episodes = np.array([1.0, 4.0, 16.0, 64.0])
    x = np.stack([np.ones(4), np.log2(episodes) / 6, np.zeros(4), np.full(4, np.log2(SIZE_OF_X) / 20)])
    learned = np.exp(np.asarray(state.server.shared)[OUTPUT] @ x)
    loss = lambda rate: float(np.mean(0.5 * ((1 - rate) ** 2 + rate**2 * SIZE_OF_X / episodes)))
    floor = loss(1 / (1 + SIZE_OF_X / episodes))
    one_rate = min(loss(rate) for rate in np.linspace(0.01, 1, 500))
    assert floor == pytest.approx(0.268, abs=1e-3)
    assert one_rate == pytest.approx(0.384, abs=1e-3)
    assert loss(learned) < 1.05 * floor
    assert loss(learned) < 0.8 * one_rate
    assert (np.diff(learned) > 0).all()


CARTPOLE = "gymnax/CartPole-v1?horizon=12"


def batches(env, policy, episodes=3, **options):
    problem = make_problem(env, policy, episodes=episodes, tunable=True, **options)
    task = jax.tree.map(lambda x: x[0], env.sample_tasks(jax.random.key(0), 1))
    params = problem.init(jax.random.key(1))
    sampled = [problem.sample(params, task, jax.random.key(2 + i))[0] for i in range(2)]
    return problem, params, sampled


@pytest.mark.usefixtures("x64")
@pytest.mark.parametrize("step", ["normalised", "plain"])
def test_the_meta_gradient_is_that_of_finite_differences(step):
    """Through all steps, in every number of the strategy. The division's own derivative is left out, so that the
    differences hold its sizes at what they are."""
    env = make_env("navigation")
    env = env._replace(spec=env.spec._replace(horizon=6))
    double = lambda tree: jax.tree.map(lambda x: x.astype(float) if x.dtype == jnp.float32 else x, tree)
    problem, params, (inner, outer) = batches(env, mlp(env.spec, hidden=(3, 2)))
    params, inner, outer = double(params), double(inner), double(outer)
    evaluated = Tuning(0.0, 1.0, 0.2)
    can = {"episodes": jnp.array(2.0), "steps": jnp.array(3.0)}
    z = jnp.array([-1.0, -1.5, -1.2, -0.8, -2.0, 1.0, -1.6])
    strategy = jnp.zeros((SIZE, 4)).at[:, 0].set(z)
    got = _meta_gradient(problem, step, 4, evaluated)(params, strategy, can, inner, outer)[1]
    x = capability(params, can)
    np.testing.assert_allclose(got, got[:, :1] * x[None], rtol=1e-12)  # x_0 = 1
    limited, fresh = problem.tuned.limit(inner, 2.0), problem.tuned.limit(outer, 2.0)

    def sizes_at(z):
        """The normalising sizes of the three steps at z."""
        found, at = [], params
        for _ in range(3):
            g = jax.grad(problem.tuned.loss)(at, limited, tuning(z))
            size = jax.tree.map(lambda g: jnp.sqrt(jnp.mean(g**2)) + 1e-8 if step == "normalised" else jnp.ones(()), g)
            found.append(size)
            at = jax.tree.map(lambda r, p, g, s: p - jnp.exp(z[r]) * g / s, roles(params), at, g, size)
        return found

    tuning = lambda z: Tuning(jnp.exp(z[ENTROPY]), jax.nn.sigmoid(z[LAMBDA]), jnp.exp(z[CLIP]))
    held = sizes_at(z)

    @jax.jit
    def objective(z):
        at = params
        for size in held:
            g = jax.grad(problem.tuned.loss)(at, limited, tuning(z))
            at = jax.tree.map(lambda r, p, g, s: p - jnp.exp(z[r]) * g / s, roles(params), at, g, size)
        return problem.tuned.loss(at, fresh, evaluated)

    eye, tiny = np.eye(SIZE), 1e-5
    want = np.array([(objective(z + tiny * e) - objective(z - tiny * e)) / (2 * tiny) for e in eye])
    assert (np.abs(want[: LAMBDA + 1]) > 1e-6).all()  # all but the clip have a say here
    np.testing.assert_allclose(got[:, 0], want, rtol=1e-5, atol=1e-8)


def test_a_client_of_one_step_is_one_of_a_federation_whose_most_is_one():
    params, batch = unit(jax.random.key(0)), jax.random.normal(jax.random.key(1), (MOST, SIZE_OF_X))
    strategy = jnp.full((SIZE, 4), -0.3)
    can = {"episodes": jnp.array(4.0), "steps": jnp.array(1.0)}
    masked = _trained(NOISY, "normalised", 3)(params, strategy, can, batch)[0]
    alone = _trained(NOISY, "normalised", 1)(params, strategy, can, batch)[0]
    np.testing.assert_array_equal(masked["x"], alone["x"])
    more = _trained(NOISY, "normalised", 3)(params, strategy, {**can, "steps": jnp.array(2.0)}, batch)[0]
    assert np.abs(more["x"] - alone["x"]).max() > 1e-3


def test_a_map_whose_first_column_alone_is_used_is_one_strategy_for_all():
    """Clients of one episode, one step and one parameter have x = (1, 0, 0, 0)."""
    small = lambda key: {"x": jax.random.normal(key, (1,))}
    scalar = NOISY._replace(init=small, sample=lambda p, t, k: (jax.random.normal(k, (MOST, 1)), Stats(p["x"][0], 0)))
    states = []
    for sharing in ("map", "strategy"):
        simulation = federation(make(scalar, sharing=sharing, client_episodes=(1,)), num_clients=3)
        states.append(run_rounds(simulation, simulation.init(jax.random.key(0)), 5)[0])
    np.testing.assert_array_equal(states[0].server.shared[:, :1], states[1].server.shared)
    np.testing.assert_array_equal(states[0].server.shared[:, 1:], 0.0)
    assert states[0].server.shared[OUTPUT, 0] != np.float32(np.log(0.05))


def test_what_each_way_of_sharing_moves():
    """A fixed strategy and those of each client's own leave the server alone, and send nothing."""
    for sharing in ("map", "none", "fixed"):
        simulation = federation(make(sharing=sharing, client_episodes=(2, 8)), num_clients=2)
        before = simulation.init(jax.random.key(0))
        first = np.array(before.server.shared)
        state, metrics = run_rounds(simulation, before, 2)
        moves = bool((np.asarray(state.server.shared) != first).any())
        assert moves == (sharing == "map")
        assert metrics["comm/up_bytes"][0] == (2 * 28 * 4 if sharing == "map" else 0)
        if sharing == "none":
            assert (state.clients["map"][0] != state.clients["map"][1]).any()
            assert (np.asarray(state.clients["map"]) != first).any()


def test_clients_can_what_their_numbers_say():
    algorithm = make(local_steps=3, client_episodes=(1, 4, 16), client_steps=(1, 3))
    can = federation(algorithm, num_clients=8).init(jax.random.key(0)).clients["can"]
    assert can["episodes"].tolist() == [1, 4, 16, 1, 4, 16, 1, 4]
    assert can["steps"].tolist() == [1, 1, 1, 3, 3, 3, 1, 1]
    with pytest.raises(ValueError, match="at most 64 and 1"):
        make(client_episodes=(65,))
    with pytest.raises(ValueError, match="at most 64 and 1"):
        make(client_steps=(2,))


def test_roles_follow_from_names():
    env = make_env("navigation")
    params = mlp(env.spec, hidden=(3, 2)).init(jax.random.key(0))
    found = roles(params)
    assert found["log_std"] == LOG_STD
    assert {found["mean"]["kernel"], found["mean"]["bias"]} == {OUTPUT}
    assert found["hidden_0"]["kernel"] == 0
    assert found["hidden_1"]["bias"] == 1
    x = capability(params, {"episodes": jnp.array(16.0), "steps": jnp.array(2.0)})
    size = sum(leaf.size for leaf in jax.tree.leaves(params))
    np.testing.assert_allclose(x, [1, 4 / 6, 1 / 6, np.log2(size) / 20], rtol=1e-6)


def test_a_limited_batch_is_that_of_its_first_episodes():
    """The others change nothing: neither the baseline, nor the loss, nor its gradient."""
    env = make_env("navigation")
    env = env._replace(spec=env.spec._replace(horizon=8))
    problem, params, (batch, other) = batches(env, mlp(env.spec, hidden=(3,)))
    tuning = Tuning(0.02, 0.9, 0.2)
    changed = jax.tree.map(lambda x, y: x.at[2:].set(y[2:]), batch, other._replace(target=(), values=()))
    one, two = (
        jax.value_and_grad(problem.tuned.loss)(params, problem.tuned.limit(data, 2.0), tuning)
        for data in (batch, changed)
    )
    jax.tree.map(np.testing.assert_array_equal, one, two)
    # and of all its episodes, with the problem's own numbers, it has the problem's own loss
    whole = make_problem(env, mlp(env.spec, hidden=(3,)), episodes=3, gae_lambda=0.9, entropy_coef=0.02)
    task = jax.tree.map(lambda x: x[0], env.sample_tasks(jax.random.key(0), 1))
    same = whole.sample(params, task, jax.random.key(2))[0]
    want = float(whole.loss(params, same))
    assert float(problem.tuned.loss(params, problem.tuned.limit(batch, 3.0), tuning)) == pytest.approx(want, rel=1e-5)


def test_a_critic_cannot_be_tuned():
    env = make_env("navigation")
    with pytest.raises(ValueError, match="tunable: a critic's values"):
        make_problem(env, mlp(env.spec, hidden=(3,)), episodes=2, tunable=True, critic=mlp_critic(env.spec))
    with pytest.raises(ValueError, match="reduction must be 'mean'"):
        make_problem(env, mlp(env.spec, hidden=(3,)), episodes=2, tunable=True, reduction="sum")


def test_unlike_networks_learn_as_each_by_itself():
    env = make_env("navigation")
    env = env._replace(spec=env.spec._replace(horizon=6))
    policies = [mlp(env.spec, hidden=(3,)), mlp(env.spec, hidden=(2, 2))]
    block = (0, 1)
    alone = [make_problem(env, policy, episodes=2, tunable=True) for policy in policies]
    mixed = mixed_problem(
        make_problem(env, mixed_policy(policies, block), episodes=2, tunable=True), alone, block, None
    )
    make_of = lambda problem: _meta_gradient(problem, "normalised", 2, Tuning(0.0, 1.0, 0.2))
    keys = jax.random.split(jax.random.key(3), 2)
    everyone = mixed.init(jax.random.key(1))
    params = jax.tree.map(lambda *x: jnp.stack(x), *[mixed.own(everyone, i) for i in range(2)])
    tasks = env.sample_tasks(jax.random.key(0), 2)
    data = jax.vmap(mixed.sample)(params, tasks, keys)[0]
    fresh = jax.vmap(mixed.sample)(params, tasks, keys[::-1])[0]
    can = {"episodes": jnp.array([1.0, 2.0]), "steps": jnp.array([2.0, 1.0])}
    strategy = jnp.full((SIZE, 4), -1.0)
    lifted = jax.vmap(mixed.lift(make_of), in_axes=(0, None, 0, 0, 0))
    got = lifted(params, strategy, can, data, fresh)[1]
    for i, problem in enumerate(alone):
        own = problem.init(jax.random.key(1))
        one = lambda tree, i=i: jax.tree.map(lambda x: x[i], tree)
        want = make_of(problem)(own, strategy, one(can), one(data), one(fresh))[1]
        np.testing.assert_allclose(got[i], want, rtol=1e-4, atol=1e-6)
    assert np.abs(got).max() > 1e-3


@pytest.mark.parametrize(
    ("values", "line"),
    [
        ({"critic": "federated"}, "critic = 'federated': not for fedstrategy"),
        ({"reduction": "sum"}, "reduction = 'sum': not for fedstrategy"),
        ({"client_episodes": (40,)}, r"client_episodes = \[40\]: at most episodes = 20; raise episodes"),
        ({"client_steps": (2,)}, r"client_steps = \[2\]: at most local_steps = 1; raise local_steps"),
        ({"kinds": "4x8:tanh:0.1", "num_clients": 4, "clients_per_round": 4}, "the strategy decides on rates"),
        ({"stragglers": 0.5}, "stragglers = 0.5"),
        ({"gae_lambda": 1.0}, "gae_lambda = 1.0: must be a number, 1e-06 to 0.999999"),
        ({"client_episodes": (0,)}, "client_episodes = .*: must be a list of one or more integers"),
    ],
)
def test_what_a_strategy_cannot_be_is_refused(values, line):
    with pytest.raises(ConfigError, match=line):
        build("fedstrategy", preset("laptop", "fedstrategy", "navigation"), values)

"""QAvg against Q-iteration in NumPy, on random processes that are what their model says."""

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from scipy import stats

from fedjax_rl import testing
from fedjax_rl.algorithms.q_avg import q_avg
from fedjax_rl.envs import make_env
from fedjax_rl.federation.aggregators import mean
from fedjax_rl.federation.simulate import make_simulation, run_rounds
from fedjax_rl.rl.policies import table
from fedjax_rl.rl.values import make_value_problem
from fedjax_rl.types import Stats


@pytest.mark.usefixtures("x64")
def test_averaged_tables_are_q_iteration_on_the_mean_process():
    """With one local step of rate 1. With more of them, or a smaller rate, each client's own in NumPy."""
    env = make_env("finite/random")
    silent = lambda params, task, key: ((), Stats(jnp.zeros(()), jnp.zeros((), jnp.int32)))
    problem = make_value_problem(env, table(env.spec), episodes=1, discount=0.9)._replace(sample=silent)
    tasks = jax.tree.map(np.float64, env.sample_tasks(jax.random.key(1), 5))
    bellman = lambda q, p, r: r + 0.9 * p @ q.max(axis=1)

    def averaged(rounds, local_steps, rate):
        algorithm = q_avg(
            problem, client_opt=optax.sgd(rate), server_opt=optax.sgd(1.0), local_steps=local_steps, inner_lr=0.1
        )
        sizes = {"num_clients": 5, "clients_per_round": 5}
        given = lambda key, n: jax.tree.map(jnp.asarray, tasks)
        simulation = make_simulation(algorithm, sample_tasks=given, aggregator=mean(), **sizes)
        return run_rounds(simulation, simulation.init(jax.random.key(0)), rounds)[0].server.shared["table"]

    q = np.zeros((8, 3))
    for _ in range(12):
        q = bellman(q, tasks["transition"].mean(axis=0), tasks["reward"].mean(axis=0))
    np.testing.assert_allclose(averaged(12, 1, 1.0), q, rtol=1e-10)
    common = np.zeros((8, 3))
    for _ in range(3):
        own = [common] * 5
        for _ in range(4):
            pairs = zip(own, tasks["transition"], tasks["reward"], strict=True)
            own = [q + 0.7 * (bellman(q, p, r) - q) for q, p, r in pairs]
        common = np.mean(own, axis=0)
    np.testing.assert_allclose(averaged(3, 4, 0.7), common, rtol=1e-10)


def test_greedy_episodes_earn_what_the_chain_of_the_best_policy_says():
    """In NumPy: its expected rewards of 50 steps from the uniform start."""
    env = make_env("finite/random")
    problem = make_value_problem(env, table(env.spec), episodes=400)
    task = jax.tree.map(lambda x: x[0], env.sample_tasks(jax.random.key(0), 1))
    p, r, q = np.float64(task["transition"]), np.float64(task["reward"]), np.zeros((8, 3))
    for _ in range(60):
        q = r + 0.9 * p @ q.max(axis=1)
    chosen, at, want = q.argmax(axis=1), np.full(8, 1 / 8), 0.0
    for _ in range(50):
        want += at @ r[np.arange(8), chosen]
        at = at @ p[np.arange(8), chosen]
    found = jax.jit(problem.sample)({"table": jnp.float32(q)}, task, jax.random.key(1))[1].returned
    np.testing.assert_allclose(found, want, rtol=0.01)  # some four deviations of the mean


def test_random_processes_are_what_their_model_says_and_near_one_another():
    env = make_env("finite/random")
    testing.check_environment(env)
    tasks = env.sample_tasks(jax.random.key(0), 300)
    p, r = (np.asarray(tasks[name], float) for name in ("transition", "reward"))
    np.testing.assert_allclose(p.sum(axis=3), 1, atol=1e-5)
    assert p.min() >= 0 and 0 <= r.min() < r.max() < 1
    # half of each is common: the range of the clients' own half is at most a half
    assert 0.45 < np.ptp(r, axis=0).max() < 0.5 and np.ptp(p, axis=0).max() < 0.5
    own = 2 * (p - p.mean(axis=0)) + 1 / 8  # a uniform point of the simplex: variance (1/8)(7/8)/9 in each entry
    np.testing.assert_allclose(own.var(axis=0).mean(), 7 / 64 / 9, rtol=0.05)
    task = jax.tree.map(lambda x: x[0], tasks)
    state = env.reset(jax.random.key(3), task)
    here, step = int(state.physics.number), jax.jit(jax.vmap(env.step, (0, None, None)))
    keys = jax.random.key_data(jax.random.split(jax.random.key(4), 4000))
    many = jax.tree.map(lambda x: jnp.broadcast_to(x, (4000, *x.shape)), state)
    many = many._replace(physics=many.physics._replace(key=keys))
    then = step(many, jnp.array([2], jnp.int32), task)
    counts = np.bincount(np.asarray(then.physics.number), minlength=8)
    assert stats.chisquare(counts, 4000 * p[0, here, 2] / p[0, here, 2].sum()).pvalue > 1e-3
    np.testing.assert_allclose(then.reward, r[0, here, 2], rtol=1e-6)
    begun = jax.jit(jax.vmap(env.reset, (0, None)))(jax.random.split(jax.random.key(5), 800), task)
    assert stats.chisquare(np.bincount(begun.physics.number, minlength=8)).pvalue > 1e-3

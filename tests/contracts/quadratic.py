"""A federation with closed forms: client i minimises a_i |x - u_i|^2 / 2, without noise, in float64."""

import inspect

import jax
import jax.numpy as jnp
import numpy as np
import optax

from fedjax_rl.config import CONFIGS
from fedjax_rl.federation import aggregators, simulate
from fedjax_rl.host import registry
from fedjax_rl.types import Problem, Stats, Transition, Tuned, ValueProblem, Walk

INNER_LR, LOCAL_LR, STEPS = 0.2, 0.05, 3


def loss(params, batch):
    return 0.5 * batch["a"] * jnp.sum((params["x"] - batch["u"]) ** 2)


def sample(params, task, key):
    del key
    return task, Stats(-loss(params, task), jnp.zeros((), int))


def say(params, obs):
    return obs @ params["x"]


# a server that is moved by the mean alone: o -> o / 2 + mean, where o [3] are the first places
WALK = Walk(
    start=lambda key: jnp.arange(1.0, 4.0),
    step=lambda at, mean, key: 0.5 * at + mean[0],
    see=lambda at: at,
)
PROBLEM = Problem(
    init=lambda key: {"x": jax.random.normal(key, (3,), jnp.float64)},
    sample=sample,
    loss=loss,
    say=say,
    divergence=lambda params, consensus, obs: 0.5 * jnp.mean((say(params, obs) - consensus) ** 2),
    distance=lambda params, consensus, obs: jnp.mean((say(params, obs) - consensus) ** 2),
    walk=WALK,
    kl=lambda params, at, batch: 0.5 * batch["a"] * jnp.sum((params["x"] - at["x"]) ** 2),
    ratio=lambda params, batch: jnp.ones(()),
    server_sample=lambda params, key, count: {"a": jnp.ones(()), "u": jnp.zeros(3)},
    tuned=Tuned(limit=lambda batch, count: batch, loss=lambda params, batch, tuning: loss(params, batch)),
)


def step_of(task):
    """What every environment step shows: a transition on which the loss is the client's quadratic."""
    return Transition(task["u"], jnp.zeros(1, jnp.int32), task["a"], jnp.zeros((), bool), task["u"])


VALUES = ValueProblem(
    init=PROBLEM.init,
    start=lambda task, key: jnp.zeros(()),
    act=lambda params, at, epsilon, task, key: (at + 1.0, step_of(task)),
    loss=lambda params, target, rows, valid: (
        0.5 * jnp.mean(rows.reward * jnp.sum((params["x"][None] - rows.obs) ** 2, axis=1))
    ),
    sample=lambda params, task, key: (
        (jax.tree.map(lambda x: x[None], step_of(task)), jnp.ones(1, bool)),
        sample(params, task, key)[1],
    ),
    seen=lambda at: (Stats(at, jnp.zeros((), int)), at),
    blank=(np.zeros(()), Transition(np.zeros(3), np.zeros(1, np.int32), np.zeros(()), np.zeros((), bool), np.zeros(3))),
    backup=lambda params, task: {"x": params["x"] - task["a"] * (params["x"] - task["u"])},
)
PUBLIC_STATES = np.random.default_rng(0).normal(size=(8, 3))


def sample_tasks(key, n):
    keys = jax.vmap(jax.random.fold_in, in_axes=(None, 0))(key, jnp.arange(n))
    return {
        "a": jax.vmap(lambda k: jax.random.uniform(k, (), jnp.float64, 0.5, 1.5))(keys),
        "u": jax.vmap(lambda k: jax.random.normal(k, (3,), jnp.float64))(keys),
    }


def problem_of(name):
    return VALUES if CONFIGS[name].learns_values else PROBLEM


def make(name, *, server_opt=None, problem=None, **settings):
    problem = problem_of(name) if problem is None else problem
    factory = registry.find("algorithm", name)
    taken = inspect.signature(factory).parameters
    usual = {
        "client_opt": optax.sgd(LOCAL_LR),
        "server_opt": optax.sgd(1.0) if server_opt is None else server_opt,
        "local_steps": STEPS,
        "inner_lr": INNER_LR,
        "public_states": PUBLIC_STATES,
        "step": "plain",  # of a learned strategy
        "client_episodes": (1, 2, 3, 4, 5, 6),  # so that no two clients have one capability
        "learn_after": 1,
        "batch": 2,
        "capacity": 4,
        "inner_steps": 1.0,  # the number of a server's steps is drawn; a mean of 1 is always 1
    }
    return factory(problem, **{key: value for key, value in usual.items() if key in taken} | settings)


def federation(algorithm, n=6, m=6, **options):
    return simulate.make_simulation(
        algorithm,
        num_clients=n,
        clients_per_round=m,
        sample_tasks=sample_tasks,
        **{"aggregator": aggregators.mean(), **options},
    )

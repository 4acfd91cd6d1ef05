"""A federation with closed forms: client i minimises a_i |x - u_i|^2 / 2, without noise, in float64."""

import inspect

import jax
import jax.numpy as jnp
import numpy as np
import optax

from fedjax_rl.federation import aggregators, simulate
from fedjax_rl.host import registry
from fedjax_rl.types import Problem, Stats, Walk

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
)
PUBLIC_STATES = np.random.default_rng(0).normal(size=(8, 3))


def sample_tasks(key, n):
    keys = jax.vmap(jax.random.fold_in, in_axes=(None, 0))(key, jnp.arange(n))
    return {
        "a": jax.vmap(lambda k: jax.random.uniform(k, (), jnp.float64, 0.5, 1.5))(keys),
        "u": jax.vmap(lambda k: jax.random.normal(k, (3,), jnp.float64))(keys),
    }


def make(name, *, server_opt=None, problem=PROBLEM, **settings):
    factory = registry.find("algorithm", name)
    taken = inspect.signature(factory).parameters
    usual = {
        "client_opt": optax.sgd(LOCAL_LR),
        "server_opt": optax.sgd(1.0) if server_opt is None else server_opt,
        "local_steps": STEPS,
        "inner_lr": INNER_LR,
        "public_states": PUBLIC_STATES,
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

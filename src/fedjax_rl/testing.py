"""What a guest's own tests can ask of an environment or an algorithm: the contracts that ours keep."""

import inspect
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax

from fedjax_rl.envs import Env, EnvState
from fedjax_rl.envs.base import random_actions
from fedjax_rl.envs.soundness import refuse_unsound
from fedjax_rl.federation.aggregators import mean
from fedjax_rl.federation.simulate import make_simulation
from fedjax_rl.host.numerics import pinned, root_key
from fedjax_rl.types import Array, Key, Problem, Stats, Task


@pinned()
def check_environment(env: Env) -> None:
    """See that an environment keeps its contract. For your own tests.

    It has the spec's shapes and dtypes, two steps in a row. Its numbers are finite at the start. Task i depends on the
    key and on i alone. The same arguments give the same numbers, alone as in a batch.

    Args:
      env: the environment.

    Raises:
      ConfigError: wrong are its shapes, its dtypes, its numbers at the start, or its tasks.
      AssertionError: wrong is the rest.

    >>> testing.check_environment(make_env("navigation"))
    """
    refuse_unsound(env, f"environment {env.spec.name!r}")
    keys, tasks = jax.random.split(root_key(1), 4), env.sample_tasks(root_key(0), 4)
    actions = random_actions(env.spec, root_key(2), (4, 2))

    def two_steps(key: Key, actions: Array, task: Task) -> EnvState:
        state = env.step(env.reset(key, task), actions[0], task)
        return env.step(state, actions[1], task)

    together = jax.jit(jax.vmap(two_steps))
    batch, again = together(keys, actions, tasks), together(keys, actions, tasks)
    jax.tree.map(lambda a, b: np.testing.assert_array_equal(_raw(a), _raw(b), "not the same twice"), batch, again)
    for i in range(4):
        alone = jax.jit(two_steps)(keys[i], actions[i], jax.tree.map(lambda x: x[i], tasks))
        shown = lambda state: (state.obs, state.reward, state.done)
        row = jax.tree.map(lambda x: x[i], shown(batch))
        jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, 1e-4, 1e-5, err_msg="in a batch"), shown(alone), row)


def _raw(x: Any) -> Any:
    return jax.random.key_data(x) if jnp.issubdtype(x.dtype, jax.dtypes.prng_key) else x


@pinned()
def check_algorithm(factory: Callable[..., Any], **options: Any) -> None:
    """See that an algorithm keeps its contract. For your own tests.

    It is tried on a federation of six clients with quadratic losses. A round keeps the state's form and is finite. The
    same state gives the same round. A client that is not selected keeps what it has. One step of adaptation keeps the
    parameters' form. A `vmap` over `inner_lr` works, as in a sweep.

    Args:
      factory: (problem, *, client_opt, server_opt, local_steps, inner_lr, client_batch, ...) -> Algorithm; it need not
        take all of them.
      options: values of its own options.

    Raises:
      AssertionError: one of these does not hold.
    """
    taken = inspect.signature(factory).parameters

    def make(inner_lr: Any = 0.1) -> Any:
        given = {"client_opt": optax.sgd(0.05), "server_opt": optax.sgd(1.0), "local_steps": 2, "inner_lr": inner_lr}
        given |= {"client_batch": 1, **options}
        return factory(_QUADRATIC, **{key: value for key, value in given.items() if key in taken})

    def federation(algorithm: Any, count: int = 3) -> Any:
        return make_simulation(
            algorithm, num_clients=6, clients_per_round=count, sample_tasks=_sample_tasks, aggregator=mean()
        )

    simulation = federation(make())
    state = jax.jit(simulation.init)(root_key(0))
    one_round = jax.jit(simulation.round)
    after, metrics = one_round(state)
    form = lambda tree: jax.tree.map(lambda x: (x.shape, x.dtype), tree)
    assert form(after) == form(state), "a round changes the shapes or dtypes of the state"
    finite = [np.isfinite(_raw(x)).all() for x in jax.tree.leaves((after.server, after.clients))]
    assert all(finite), "a round gives numbers that are not finite"
    again = one_round(state)[0]
    equal = jax.tree.map(lambda a, b: np.array_equal(_raw(a), _raw(b)), after, again)
    assert all(jax.tree.leaves(equal)), "the same state does not give the same round"
    idle = np.setdiff1d(np.arange(6), np.asarray(metrics["who/selected"]))
    kept = jax.tree.map(lambda a, b: np.array_equal(_raw(a)[idle], _raw(b)[idle]), after.clients, state.clients)
    assert all(jax.tree.leaves(kept)), "a client that was not selected does not keep what it has"
    algorithm = make()
    client = jax.tree.map(lambda x: x[0], state.clients)
    params = algorithm.personal_params(state.server.shared, client)
    adapted = algorithm.adapt(state.server.shared, client, params, jax.tree.map(lambda x: x[0], state.tasks))
    assert form(adapted) == form(params), "adapt changes the form of the parameters"
    swept = lambda rate: federation(make(rate)).round(state)[0].server.shared
    rates = jnp.array([0.1, 0.2])
    both = jax.jit(jax.vmap(swept))(rates)
    first = jax.jit(swept)(rates[0])
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a[0], b, 1e-4, 1e-6, err_msg="in a sweep"), both, first)


def _loss(params: Any, batch: Any) -> Any:
    return 0.5 * jnp.sum((params["x"] - batch) ** 2)


_QUADRATIC = Problem(
    init=lambda key: {"x": jax.random.normal(key, (3,))},
    sample=lambda params, task, key: (task, Stats(-_loss(params, task), jnp.zeros((), jnp.int32))),
    loss=_loss,
)


def _sample_tasks(key: Any, n: int) -> Any:
    keys = jax.vmap(jax.random.fold_in, in_axes=(None, 0))(key, jnp.arange(n))
    return jax.vmap(lambda k: jax.random.normal(k, (3,)))(keys)

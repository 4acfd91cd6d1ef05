"""What a person writes with the library, for the type checker alone: nothing runs it.

What is right passes. What is wrong carries an ignore, and the checker complains of an ignore that nothing needs.
"""

from pathlib import Path
from typing import Any, assert_type

import jax
import jax.numpy as jnp
import numpy as np

import fedjax_rl as fr

Metrics = dict[str, jax.Array]


@fr.register_environment
def still() -> fr.Env:
    start = fr.EnvState(jnp.ones(2), jnp.ones(2), jnp.zeros(()), jnp.zeros((), bool))

    def step(state: fr.EnvState, action: jax.Array, task: jax.Array) -> fr.EnvState:
        return state._replace(reward=-jnp.sum(action * task))

    spec = fr.EnvSpec("still", observation_size=2, action_size=2, horizon=3, init_inputs=2)
    return fr.Env(lambda key, task: start, step, fr.tasks.uniform(-1.0, 1.0, (2,)), spec)


@fr.register_algorithm(batches=2)
def mine(problem: fr.Problem, *, client_opt: Any, server_opt: Any, local_steps: int, inner_lr: float) -> fr.Algorithm:
    change = fr.parts.local_change(jax.grad(problem.loss), client_opt, local_steps, None)

    def client_update(
        shared: Any, client: Any, task: Any, key: jax.Array
    ) -> tuple[fr.Upload, Any, dict[str, jax.Array]]:
        batch, before = problem.sample(shared, task, key)
        return fr.Upload(change(shared, batch), jnp.ones(())), client, fr.parts.measured(before)

    return fr.parts.one_model(problem, client_update, server_opt, inner_lr, None)


class Printing:
    def start(self, config: Any, directory: Path) -> None: ...

    def log(self, record: Any, round: int, env_steps: int) -> None: ...

    def finish(self, summary: Any) -> None: ...


class Stopping:
    def after_round(self, directory: Path, record: Any) -> bool:
        return True

    def after_evaluation(self, directory: Path, returns: Any) -> None: ...


def right() -> None:
    run = fr.train("mine", "still", out=Path("run"), loggers=[Printing(), fr.WandB], callbacks=[Stopping()], rounds=2)
    assert_type(run, fr.Run)
    assert_type(run.history, dict[str, np.ndarray])
    assert_type(run.evaluate("new", adapt_steps=1), np.ndarray)
    assert_type(run.policy(3)([0.1, 0.2]), np.ndarray)
    assert_type(run.resume(rounds=3).config.rounds, int)
    assert_type(fr.sweep("fmrl", seeds=range(2), grid={"server_lr": [1e-3]}).report(), list[dict[str, Any]])
    assert_type(still(), fr.Env)
    assert_type(fr.load("run").path, Path)
    fr.testing.check_algorithm(mine, scale=0.1)
    simulation = fr.make_simulation(
        mine(fr.Problem(lambda key: key, lambda p, t, k: (k, fr.Stats(k, k)), lambda p, b: b), **given()),
        num_clients=2,
        clients_per_round=1,
        sample_tasks=still().sample_tasks,
        aggregator=fr.Aggregator(lambda m: (), lambda m, w, s, k: (m, s)),
    )
    state, metrics = fr.run_rounds(simulation, simulation.init(jax.random.key(0)), 3)
    assert_type(state, fr.State)
    assert_type(metrics, dict[str, jax.Array])


def given() -> dict[str, Any]:
    return {}


def wrong() -> None:
    fr.trian("fmrl")  # type: ignore[attr-defined]
    fr.train(algorithm=3)  # type: ignore[arg-type]
    fr.train(loggers=[Stopping()])  # type: ignore[list-item]
    fr.train().polcy(3)  # type: ignore[attr-defined]
    fr.make_env("navigation", backed="mjx")  # type: ignore[call-arg]
    fr.EnvSpec("still", observation_size=2.5, action_size=2, horizon=3, init_inputs=2)  # type: ignore[arg-type]
    fr.sweep(seeds=3)  # type: ignore[arg-type]
    fr.Run("run")  # type: ignore[arg-type]

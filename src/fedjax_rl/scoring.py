"""Evaluation of a run: all clients, new clients, and the score by which a checkpoint is the best."""

from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp

from fedjax_rl import checkpoint, metrics, rundir, simulate
from fedjax_rl.build import Run, adaptations
from fedjax_rl.evaluate import make_evaluate
from fedjax_rl.placement import map_clients


def periodic(run: Run, evaluation, state: simulate.State, directory: Path, number: int) -> float:
    """Evaluate some clients between rounds, record it, and return the score."""
    returns = old_clients(run, evaluation, state, run.config.eval_clients or run.config.num_clients)
    record = {"round": number, "final": False, **metrics.named("eval", metrics.summarise(returns))}
    rundir.append(directory / rundir.EVAL, {**record, "eval/returns": returns})
    return _score(returns)


def final(run: Run, evaluation, state: simulate.State, directory: Path) -> dict[str, dict[str, Any]]:
    """Evaluate all clients and new ones, record it, and score the last checkpoint."""
    number, config = int(state.round), run.config
    returns = {"eval": old_clients(run, evaluation, state, config.num_clients)}
    if config.new_clients:
        returns["eval_new"] = new_clients(run, evaluation, state, config.new_clients)
    summaries = {name: metrics.summarise(rows) for name, rows in returns.items()}
    record = {"round": number, "final": True}
    for name, rows in returns.items():
        record |= {**metrics.named(name, summaries[name]), f"{name}/returns": rows}
    rundir.append(directory / rundir.EVAL, record)
    # A client's score does not depend on how many are evaluated, so this one compares with the earlier ones.
    some = returns["eval"][: config.eval_clients or config.num_clients]
    checkpoint.set_score(directory / rundir.CHECKPOINTS, number, _score(some))
    return summaries


def old_clients(run: Run, evaluation, state: simulate.State, count: int) -> list[list[float]]:
    """Returns [count][k+1] of the federation's first clients."""
    key = simulate.stream(state.key, simulate.EVALUATE, state.round)
    clients, tasks = jax.tree.map(lambda x: x[:count], (state.clients, state.tasks))
    return jax.device_get(evaluation(state.server.shared, clients, tasks, key)).tolist()


def new_clients(run: Run, evaluation, state: simulate.State, count: int) -> list[list[float]]:
    """Returns [count][k+1] of clients that were never trained on; who they are follows from the seed alone."""
    ids = jnp.arange(count)
    tasks = run.env.sample_tasks(simulate.stream(state.key, simulate.NEW_TASKS), count)
    keys = simulate.per_client(simulate.stream(state.key, simulate.NEW_CLIENTS), ids)
    clients = map_clients(run.algorithm.init_client, num_broadcast=1)(state.server.shared, keys)
    key = simulate.stream(simulate.stream(state.key, simulate.EVALUATE, state.round), simulate.NEW_CLIENTS)
    return jax.device_get(evaluation(state.server.shared, clients, tasks, key)).tolist()


def make_evaluation(run: Run, rates: tuple[float, ...], steps: int):
    """An evaluation with an adaptation rate for each step."""
    return make_evaluate(run.problem, run.algorithm, adaptations(run, rates, steps))


def _score(returns: list[list[float]]) -> float:
    """The mean return after one step (before adaptation if none is taken): what "best" means."""
    column = [row[min(1, len(row) - 1)] for row in returns]
    return metrics.mean_ci95(column)[0]

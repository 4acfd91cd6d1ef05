"""Evaluation of a run: all clients, new clients, and the score by which a checkpoint is the best."""

import math
from collections.abc import Callable, Mapping
from itertools import compress
from pathlib import Path
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from fedjax_rl import statistics, trees
from fedjax_rl.config import Config
from fedjax_rl.federation import simulate
from fedjax_rl.federation.attacks import is_malicious
from fedjax_rl.federation.evaluate import AT_ONCE, column_keys, make_evaluate, make_steps
from fedjax_rl.federation.placement import make_mesh, map_clients
from fedjax_rl.runs import checkpoint, privacy, records, rundir
from fedjax_rl.runs.assemble import Assembled, Group, make_run
from fedjax_rl.runs.recorder import Recorder
from fedjax_rl.types import Array, Tree

Returns = list[list[float]]


class Evaluation(NamedTuple):
    """How a run is evaluated.

    run: what is evaluated. score: (clients, tasks, state, key) -> returns [n][k+1]. model: "personal", or "global" for
    what a client without a past acts with.
    """

    run: Assembled
    score: Callable[..., Returns]
    model: str


def make_evaluation(
    run: Assembled,
    rates: tuple[float, ...] = (),
    steps: int | None = None,
    model: str | None = None,
) -> Evaluation:
    """The evaluation of one run: a group's of one."""
    return make_evaluations(Group((run.config,), {}, run, None), rates, steps, model)[0]


def make_evaluations(
    group: Group,
    rates: tuple[float, ...] = (),
    steps: int | None = None,
    model: str | None = None,
    pause: Callable[[], None] = lambda: None,
) -> list[Evaluation]:
    """An evaluation of each member, all by one compiled program.

    Adaptation step j has rate rates[j]; the last rate serves the steps that follow. The default is the run's own rate,
    number of steps and model. `pause` is called before every step.
    """

    def objects(values):
        run = group.member(values)
        return run.problem, run.algorithm

    # clients of unlike kinds stand in blocks of a cohort's size; what is evaluated together begins with a block
    cohort = group.run.config.clients_per_round
    at_once = max(AT_ONCE // cohort * cohort, cohort) if group.run.config.kinds else AT_ONCE
    program = make_evaluate(objects, make_mesh(), pause, at_once)

    def one(i: int) -> Evaluation:
        config = group.configs[i]
        count = config.adapt_steps if steps is None else steps
        chosen = rates or (config.inner_lr,)
        each = [np.float32(chosen[min(j, len(chosen) - 1)]) for j in range(count + 1)]
        columns = [group.values_of(i) | {"inner_lr": rate} for rate in each]

        def score(clients: Tree, tasks: Tree, state: simulate.State, key: Array) -> Returns:
            return statistics.short(program(columns, state.server.shared, clients, tasks, key))

        return Evaluation(make_run(config, None, group.run.env), score, model or config.model)

    return [one(i) for i in range(len(group.configs))]


def periodic(evaluation: Evaluation, state: simulate.State, recorder: Recorder, number: int) -> tuple[float, bool]:
    """Evaluate some clients between rounds and record it: the score, and whether a callback asks for the end."""
    config = evaluation.run.config
    rows = old_clients(evaluation, state, config.eval_clients or config.num_clients)
    returns = _by_honesty(config, state, rows)
    record = {"round": number, "final": False, **_recorded(config, number, returns)}
    asked = recorder.evaluation(record, returns["eval"])
    return _compared_score(config, state, rows), asked


def final(evaluation: Evaluation, state: simulate.State, recorder: Recorder) -> dict[str, dict[str, Any]]:
    """Evaluate the federation's clients and new ones, score the last checkpoint, and record it."""
    number, config = int(state.round), evaluation.run.config
    rows = old_clients(evaluation, state, config.final_clients or config.num_clients)
    returns = _by_honesty(config, state, rows)
    if config.new_clients:
        returns["eval_new"] = new_clients(evaluation, state, config.new_clients)
    # the score first: the record says that the run is finished, and nothing of a finished run is made again
    checkpoint.set_score(recorder.directory / rundir.CHECKPOINTS, number, _compared_score(config, state, rows))
    recorder.evaluation({"round": number, "final": True, **_recorded(config, number, returns)})
    return {name: statistics.summarise(rows) for name, rows in returns.items()}


def _recorded(config: Config, number: int, returns: Mapping[str, Returns]) -> dict[str, Any]:
    """An evaluation's numbers by name, and what privacy the rounds so far have cost."""
    record: dict[str, Any] = {}
    for name, rows in returns.items():
        record |= {**statistics.named(name, statistics.summarise(rows)), f"{name}/returns": rows}
    return record | privacy.spent(config, number)


def _by_honesty(config: Config, state: simulate.State, rows: Returns) -> dict[str, Returns]:
    """Returns of the federation's first clients: "eval" of the honest (of all, if none is), "eval_malicious" of others.

    All of them are evaluated in the true world.
    """
    if config.attack == "none":
        return {"eval": rows}
    key = simulate.stream(state.key, simulate.MALICIOUS)
    harmful = np.asarray(is_malicious(key, config.num_clients, config.attack_share))[: len(rows)]
    parts = {"eval": [*compress(rows, ~harmful)], "eval_malicious": [*compress(rows, harmful)]}
    return {name: part for name, part in parts.items() if part} if parts["eval"] else {"eval": rows}


def _compared_score(config: Config, state: simulate.State, rows: Returns) -> float:
    """The score of a checkpoint: of the clients alone that all evaluations of the run have, the first by their ids.

    A client's return does not depend on how many are evaluated with it, so these means compare.
    """
    count = min(config.eval_clients or config.num_clients, config.final_clients or config.num_clients)
    return _score(_by_honesty(config, state, rows[:count])["eval"])


def finals(directory: Path) -> list[dict[str, Any]]:
    """The records of the evaluations that ended a run (several, when it was prolonged), oldest first."""
    return [record for record in records.read(directory / rundir.EVAL).rows if record["final"]]


def score_at(directory: Path, number: int) -> float:
    """The mean return after one step where a run ended in a round or, by its time or a callback, before it; or -inf."""
    found = [record for record in finals(directory) if record["round"] <= number]
    if not found:
        return -math.inf
    last = found[-1]["round"]
    if last < number:  # ended by its time or a callback, or diverged or lost since
        rows = records.read(directory / rundir.METRICS).rows
        is_ended = bool(rows) and rundir.open_run(directory).is_out_of_time(rows[-1])
        is_kept = rundir.diverged(directory) is None and last in checkpoint.steps(directory / rundir.CHECKPOINTS)
        if not (is_ended or is_kept):
            return -math.inf
    return _score(found[-1]["eval/returns"])


def old_clients(evaluation: Evaluation, state: simulate.State, count: int) -> Returns:
    """Returns [count][k+1] of the federation's first clients."""
    clients, tasks = jax.tree.map(lambda x: x[:count], (state.clients, state.tasks))
    if evaluation.model == "global":
        clients = _without_a_past(evaluation.run, state, count)
    return evaluation.score(clients, tasks, state, _old_key(state))


def adapted(run: Assembled, state: simulate.State, ids: Array, steps: int) -> tuple[Tree, Tree]:
    """The models [n] of the federation's clients `ids` [n] before adaptation and after `steps` of it.

    They are the models whose returns `old_clients` measures: the same episodes, rate and start.
    """
    if run.config.kinds and len(ids) > 1:  # any kinds in any order: one by one
        each = [adapted(run, state, ids[i : i + 1], steps) for i in range(len(ids))]
        return jax.tree.map(lambda *rows: jnp.concatenate(rows), *each)
    start, column = make_steps(lambda values: (run.problem, run.algorithm))
    clients = _without_a_past(run, state, run.config.num_clients) if run.config.model == "global" else state.clients
    clients, tasks, shared = trees.take(clients, ids), trees.take(state.tasks, ids), state.server.shared
    before = models = start(None, shared, clients, tasks)
    for j in range(steps):
        _, models = column(None, shared, clients, models, tasks, column_keys(_old_key(state), j, ids))
    return before, models


def _old_key(state: simulate.State) -> Array:
    return simulate.stream(state.key, simulate.EVALUATE, state.round)


def new_clients(evaluation: Evaluation, state: simulate.State, count: int) -> Returns:
    """Returns [count][k+1] of clients that were never trained on; who they are follows from the seed alone."""
    tasks = evaluation.run.env.sample_tasks(simulate.stream(state.key, simulate.NEW_TASKS), count)
    clients = _without_a_past(evaluation.run, state, count)
    return evaluation.score(clients, tasks, state, simulate.stream(state.key, simulate.EVALUATE_NEW, state.round))


def _without_a_past(run: Assembled, state: simulate.State, count: int) -> Tree:
    """What new clients hold [count]."""
    ids = jnp.arange(count)
    keys = simulate.per_client(simulate.stream(state.key, simulate.NEW_CLIENTS), ids)
    return map_clients(run.algorithm.init_client, num_broadcast=1)(state.server.shared, keys, ids)


def _score(returns: Returns) -> float:
    """The mean return after one step (before adaptation if none is taken): what "best" means. Without one, -inf."""
    mean = statistics.mean_ci95([row[min(1, len(row) - 1)] for row in returns])[0]
    return mean if math.isfinite(mean) else -math.inf

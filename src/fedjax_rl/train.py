"""The host's loop: rounds on the device, records and checkpoints on the disk, the last evaluation."""

import signal
import time
from contextlib import contextmanager
from pathlib import Path
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp

from fedjax_rl import checkpoint, metrics, rundir, simulate, trees
from fedjax_rl.build import Run, adaptations
from fedjax_rl.evaluate import make_evaluate
from fedjax_rl.placement import map_clients
from fedjax_rl.progress import Reporter


class Diverged(Exception):
    """The server's state is not finite (exit code 3)."""


class Interrupted(Exception):
    """A signal ended the run, which is saved (exit code 128 + the signal's number)."""

    def __init__(self, number: int) -> None:
        super().__init__(signal.Signals(number).name)
        self.code = 128 + number


class Result(NamedTuple):
    """The last state, and a summary of returns by name ("eval": all clients, "eval_new": new ones)."""

    state: simulate.State
    summaries: dict[str, dict[str, Any]]


def train(run: Run, state: simulate.State, directory: Path, reporter: Reporter) -> Result:
    """Run the rounds that are left, then evaluate. The directory gets a line a round and a checkpoint now and then."""
    config = run.config
    evaluate = make_evaluate(run.problem, run.algorithm, (run.algorithm.adapt,) * config.adapt_steps)
    with _signals() as caught:
        state = _rounds(run, state, directory, reporter, evaluate, caught)
        reporter.say(f"evaluating {config.num_clients} clients and {config.new_clients} new ones")
        summaries = final_evaluation(run, evaluate, state, directory)
        if caught:
            raise Interrupted(caught[0])
    return Result(state, summaries)


def _rounds(run, state, directory, reporter, evaluate, caught) -> simulate.State:
    config, ckpt = run.config, directory / rundir.CHECKPOINTS
    number = int(state.round)
    saved = number if number in checkpoint.steps(ckpt) else None
    compile_s = 0.0
    if number < config.rounds:
        began = time.perf_counter()
        step = simulate.run_rounds.lower(run.simulation, state, 1).compile()
        compile_s = time.perf_counter() - began
        reporter.say(f"compiled one round in {compile_s:.1f} s; {run.env_steps_per_round:,} environment steps a round")
    reporter.start(number, config.rounds)
    try:
        while number < config.rounds and not caught:
            began = time.perf_counter()
            state, measured = step(state)
            record = _record(measured, number + 1, time.perf_counter() - began, run, compile_s)
            number, compile_s = number + 1, 0.0
            rundir.append(directory / rundir.METRICS, record)
            reporter.round(record)
            _check_finite(state, number, ckpt)
            score = None
            is_last = number == config.rounds
            if config.eval_every and number % config.eval_every == 0 and not is_last:
                score = _evaluate_some(run, evaluate, state, directory, number)
            if number % config.save_every == 0 or is_last or score is not None:
                checkpoint.save(ckpt, number, state, score)
                saved = number
        if caught and saved != number:
            checkpoint.save(ckpt, number, state)
    finally:
        reporter.stop()
    if caught:
        raise Interrupted(caught[0])
    return state


def _record(measured: dict, number: int, seconds: float, run: Run, compile_s: float) -> dict[str, Any]:
    values = {key: float(value[0]) for key, value in jax.device_get(measured).items()}
    speed = run.env_steps_per_round / seconds
    times = {"sys/env_steps_per_s": speed, "sys/round_s": seconds, "sys/compile_s": compile_s}
    return {"round": number, **dict(sorted(values.items())), **times}


def _check_finite(state: simulate.State, number: int, ckpt: Path) -> None:
    if not bool(trees.all_finite(state.server)):
        good = next(iter(checkpoint.steps(ckpt)), None)
        where = f"last good checkpoint: {ckpt / str(good)}" if good is not None else "no checkpoint was saved before"
        raise Diverged(f"diverged in round {number}: the server's state is not finite; {where}; lower server_lr")


def _evaluate_some(run: Run, evaluate, state: simulate.State, directory: Path, number: int) -> float:
    returns = old_clients(run, evaluate, state, run.config.eval_clients or run.config.num_clients)
    record = {"round": number, "final": False, **metrics.named("eval", metrics.summarise(returns))}
    rundir.append(directory / rundir.EVAL, {**record, "eval/returns": returns})
    return _score(returns)


def final_evaluation(run: Run, evaluate, state: simulate.State, directory: Path) -> dict[str, dict[str, Any]]:
    """Evaluate all clients and new ones, record it, and score the last checkpoint."""
    number, config = int(state.round), run.config
    returns = {"eval": old_clients(run, evaluate, state, config.num_clients)}
    if config.new_clients:
        returns["eval_new"] = new_clients(run, evaluate, state, config.new_clients)
    summaries = {name: metrics.summarise(rows) for name, rows in returns.items()}
    record = {"round": number, "final": True}
    for name, rows in returns.items():
        record |= {**metrics.named(name, summaries[name]), f"{name}/returns": rows}
    rundir.append(directory / rundir.EVAL, record)
    # A client's score does not depend on how many are evaluated, so this one compares with the earlier ones.
    some = returns["eval"][: config.eval_clients or config.num_clients]
    checkpoint.set_score(directory / rundir.CHECKPOINTS, number, _score(some))
    return summaries


def old_clients(run: Run, evaluate, state: simulate.State, count: int) -> list[list[float]]:
    """Returns [count][k+1] of the federation's first clients."""
    key = simulate.stream(state.key, simulate.EVALUATE, state.round)
    clients, tasks = jax.tree.map(lambda x: x[:count], (state.clients, state.tasks))
    return jax.device_get(evaluate(state.server.shared, clients, tasks, key)).tolist()


def new_clients(run: Run, evaluate, state: simulate.State, count: int) -> list[list[float]]:
    """Returns [count][k+1] of clients that were never trained on; who they are follows from the seed alone."""
    ids = jnp.arange(count)
    tasks = run.env.sample_tasks(simulate.stream(state.key, simulate.NEW_TASKS), count)
    keys = simulate.per_client(simulate.stream(state.key, simulate.NEW_CLIENTS), ids)
    clients = map_clients(run.algorithm.init_client, num_broadcast=1)(state.server.shared, keys)
    key = simulate.stream(simulate.stream(state.key, simulate.EVALUATE, state.round), simulate.NEW_CLIENTS)
    return jax.device_get(evaluate(state.server.shared, clients, tasks, key)).tolist()


def make_evaluation(run: Run, rates: tuple[float, ...], steps: int):
    """An evaluation with an adaptation rate for each step."""
    return make_evaluate(run.problem, run.algorithm, adaptations(run, rates, steps))


def _score(returns: list[list[float]]) -> float:
    """The mean return after one step (before adaptation if none is taken): what "best" means."""
    column = [row[min(1, len(row) - 1)] for row in returns]
    return metrics.mean_ci95(column)[0]


@contextmanager
def _signals():
    """Collect SIGINT and SIGTERM: the first waits for the round to end, the second acts as usual."""
    caught: list[int] = []
    names = (signal.SIGINT, signal.SIGTERM)

    def handler(number, frame):
        caught.append(number)
        for name, old in before.items():
            signal.signal(name, old)

    before = {name: signal.signal(name, handler) for name in names}
    try:
        yield caught
    finally:
        for name, old in before.items():
            signal.signal(name, old)

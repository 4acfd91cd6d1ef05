"""The host's loop: rounds on the device, records and checkpoints on the disk, the last evaluation."""

import signal
import time
from contextlib import contextmanager
from pathlib import Path
from typing import Any, NamedTuple

import jax

from fedjax_rl import checkpoint, rundir, scoring, simulate, trees
from fedjax_rl.build import Run
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
    evaluation = scoring.make_evaluation(run, (config.inner_lr,), config.adapt_steps)
    with _signals() as caught:
        state = _rounds(run, state, directory, reporter, evaluation, caught)
        reporter.say(f"evaluating {config.num_clients} clients and {config.new_clients} new ones")
        summaries = scoring.final(run, evaluation, state, directory)
        if caught:
            raise Interrupted(caught[0])
    return Result(state, summaries)


def _rounds(run, state, directory, reporter, evaluation, caught) -> simulate.State:
    config, ckpt = run.config, directory / rundir.CHECKPOINTS
    number = int(state.round)
    saved = number if number in checkpoint.steps(ckpt) else None
    step, compile_s = _compile(run, state, reporter) if number < config.rounds else (None, 0.0)
    reporter.start(number, config.rounds)
    try:
        while number < config.rounds and not caught:
            began = time.perf_counter()
            state, measured = jax.block_until_ready(step(state))
            number += 1
            record = _record(measured, number, time.perf_counter() - began, run, compile_s)
            compile_s = 0.0
            rundir.append(directory / rundir.METRICS, record)
            reporter.round(record)
            _check_finite(state, number, ckpt)
            score, is_last = None, number == config.rounds
            if config.eval_every and number % config.eval_every == 0 and not is_last:
                score = scoring.periodic(run, evaluation, state, directory, number)
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


def _compile(run: Run, state: simulate.State, reporter: Reporter) -> tuple[Any, float]:
    """The program of one round, the only one of the loop, and the seconds that compiling it took."""
    began = time.perf_counter()
    step = simulate.run_rounds.lower(run.simulation, state, 1).compile()
    seconds = time.perf_counter() - began
    reporter.say(f"compiled one round in {seconds:.1f} s; {run.env_steps_per_round:,} environment steps a round")
    return step, seconds


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

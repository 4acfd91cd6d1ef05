"""The host's loop: rounds on the device, records and checkpoints on the disk, the last evaluation.

It runs a group, whose members differ in seed and floats; a single run is a group of one.
"""

import signal
import time
from collections.abc import Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any, NamedTuple

import jax
import numpy as np

from fedjax_rl import checkpoint, metrics, placement, replay, rundir, scoring, simulate
from fedjax_rl.build import Group, initial_states, round_of
from fedjax_rl.layers import to_toml
from fedjax_rl.progress import Reporter


class Diverged(Exception):
    """No member's state is finite any more (exit code 3)."""


class Interrupted(Exception):
    """A signal ended the run, which is saved (exit code 128 + the signal's number)."""

    def __init__(self, number: int) -> None:
        super().__init__(signal.Signals(number).name)
        self.code = 128 + number


class Result(NamedTuple):
    """A member's last state, its environment steps, and its returns ("eval": all clients, "eval_new": new ones)."""

    state: simulate.State
    env_steps: int
    summaries: dict[str, dict[str, Any]]


class Program(NamedTuple):
    """One round, compiled: (states, alive, values) -> (states, alive, metrics), states donated; and its seconds."""

    step: Any
    compile_s: float


def train(
    group: Group, program: Program, states: simulate.State, directories: Sequence[Path], reporter: Reporter
) -> list[Result | None]:
    """Run the rounds that are left, then evaluate. A directory gets a line a round and a checkpoint now and then.

    All members are in the same round; a member that diverges is reported and has no result.
    """
    evaluations = scoring.make_evaluations(group)
    config = group.run.config
    with _signals() as caught:
        states, alive = _rounds(group, program, states, directories, reporter, evaluations, caught)
        results: list[Result | None] = []
        reporter.say(f"evaluating {config.num_clients} clients and {config.new_clients} new ones")
        for i, directory in enumerate(directories):
            state = member(states, i)
            env_steps = int(state.round) * group.run.env_steps_per_round
            summaries = scoring.final(evaluations[i], state, directory) if alive[i] else None
            results.append(summaries and Result(state, env_steps, summaries))
            _stop_if(_agreed(caught))
    return results


def member(states: simulate.State, i: int) -> simulate.State:
    """Member i's state."""
    return jax.tree.map(lambda x: x[i], states)


def _rounds(group, program, states, directories, reporter, evaluations, caught) -> tuple[simulate.State, np.ndarray]:
    config = group.run.config
    number = int(states.round[0])
    alive = np.ones(len(directories), bool)
    unsaved = not all(number in checkpoint.steps(d / rundir.CHECKPOINTS) for d in directories)
    compile_s = program.compile_s
    reporter.start(number, config.rounds)
    try:
        while number < config.rounds and not _agreed(caught):
            began, before, earlier = time.perf_counter(), np.asarray(alive), states
            states, alive, measured = jax.block_until_ready(program.step(states, alive, group.values))
            number, unsaved = number + 1, True
            records = _records(measured, number, time.perf_counter() - began, group, compile_s)
            compile_s = 0.0
            _dump(group, earlier, records, before, directories, reporter)
            _report(records, before, np.asarray(alive), directories, reporter)
            is_last, scores = number == config.rounds, {}
            if config.eval_every and number % config.eval_every == 0 and not is_last:
                for i in np.flatnonzero(alive):
                    scores[i] = scoring.periodic(evaluations[i], member(states, i), directories[i], number)
            if number % config.save_every == 0 or is_last or scores:
                _save(group, states, alive, directories, number, scores)
                unsaved = False
        stop = _agreed(caught)
        if stop and unsaved:
            _save(group, states, alive, directories, number, {})
    finally:
        reporter.stop()
    _stop_if(stop)
    return states, np.asarray(alive)


def _agreed(caught: list[int]) -> int:
    """The signal that any of the processes has caught; 0 for none. All of them ask after the same round."""
    return placement.agree_to_end(caught[0] if caught else 0)


def _stop_if(signal_number: int) -> None:
    if signal_number:
        raise Interrupted(signal_number)


def compile_round(group: Group) -> Program:
    """The program of one round, the only one of the loop."""
    began = time.perf_counter()
    states = jax.eval_shape(lambda: initial_states(group))
    alive = jax.ShapeDtypeStruct((len(group.configs),), bool)

    def round_of_members(*args):
        return round_of(group, *args)

    donated = () if group.run.config.nan_dump else 0  # a dump is made of the state before the round
    step = (
        placement.jit(round_of_members, group.mesh, by_member=True, donate_argnums=donated)
        .lower(states, alive, group.values)
        .compile()
    )
    return Program(step, time.perf_counter() - began)


def _records(measured: dict, number: int, seconds: float, group: Group, compile_s: float) -> list[dict[str, Any]]:
    """A line of metrics for each member; the time is the whole group's."""
    speed = group.run.env_steps_per_round / seconds
    times = {"sys/env_steps_per_s": speed, "sys/round_s": seconds, "sys/compile_s": compile_s}
    columns = sorted((key, metrics.short(column)) for key, column in measured.items())
    rows = range(len(group.configs))
    return [{"round": number, **{key: column[i] for key, column in columns}, **times} for i in rows]


def _report(records, before, after, directories, reporter) -> None:
    """Record the members that were alive; say who is not any more; stop when nobody is left."""
    for i in np.flatnonzero(before):
        rundir.append(directories[i] / rundir.METRICS, records[i])
    reporter.round([records[i] for i in np.flatnonzero(before)])
    number, lost = records[0]["round"], np.flatnonzero(before & ~after)
    for i in lost:
        rundir.mark_diverged(directories[i], number)
    for i in lost:
        ckpt = directories[i] / rundir.CHECKPOINTS
        good = next(iter(checkpoint.steps(ckpt)), None)
        where = f"last good checkpoint: {ckpt / str(good)}" if good is not None else "no checkpoint was saved before"
        line = f"diverged in round {number}: the server's state is not finite; {where}; lower server_lr"
        if not after.any():
            raise Diverged(line)
        reporter.warn(f"{directories[i]} {line}; the other members go on")


def _save(group, states, alive, directories, number, scores) -> None:
    for i in np.flatnonzero(alive):
        config = group.configs[i]
        checkpoint.save(
            directories[i] / rundir.CHECKPOINTS,
            number,
            member(states, i),
            scores.get(i),
            config=to_toml(config),
            keep_every=config.keep_every,
        )


def _dump(group, states, records, alive, directories, reporter) -> None:
    """Write down, for `replay`, who ceased to be finite in the round that began with `states`."""
    for i in np.flatnonzero(alive) if group.run.config.nan_dump else ():
        client = int(records[i][simulate.SUSPECT])
        if client >= 0:
            path = replay.dump(group.run, group.configs[i], member(states, i), client, directories[i])
            if path:
                reporter.warn(f"client {client} was not finite in round {records[i]['round']}: fedjax-rl replay {path}")


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

"""The host's loop: rounds on the device, records and checkpoints on the disk, the last evaluation.

It runs a group, whose members differ in seed and floats; a single run is a group of one.
"""

import threading
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any, NamedTuple

import jax
import numpy as np

from fedjax_rl import statistics
from fedjax_rl.config import Config
from fedjax_rl.config.sources import to_toml
from fedjax_rl.federation import metrics, placement, simulate
from fedjax_rl.host import exits, signals
from fedjax_rl.host.signals import Interrupted
from fedjax_rl.runs import checkpoint, nan_dump, records, rundir, scoring, silence
from fedjax_rl.runs.assemble import Group, initial_states, round_of
from fedjax_rl.runs.progress import Reporter
from fedjax_rl.runs.recorder import Recorder


class Diverged(exits.Refusal):
    """The server's state is not finite any more, so the run cannot go on (exit code 3).

    Its text is one line: the round, the last good checkpoint, what to change. Where several runs train together, it is
    raised when none of them is finite.
    """

    code = exits.DIVERGED


class Result(NamedTuple):
    """A member's last state, its environment steps, and its returns ("eval": all clients, "eval_new": new ones)."""

    state: simulate.State
    env_steps: int
    summaries: dict[str, dict[str, Any]]


class Member(NamedTuple):
    """One run of a group: its values, where its numbers go, how it is evaluated."""

    config: Config
    recorder: Recorder
    evaluation: scoring.Evaluation

    @property
    def directory(self) -> Path:
        """The run's directory."""
        return self.recorder.directory


class Program(NamedTuple):
    """One round, compiled: (states, alive, values) -> (states, alive, metrics), states donated; and its seconds."""

    step: Any
    compile_s: float


def train(
    group: Group, program: Program, states: simulate.State, recorders: Sequence[Recorder], reporter: Reporter
) -> list[Result | None]:
    """Run the rounds that are left, then evaluate. A directory gets a line a round and a checkpoint now and then.

    All members that go on are in the same round; a member that diverges is reported and has no result.
    """
    config = group.run.config
    is_over = threading.Event()  # from then on all is saved; before, an evaluation left out would be missing for ever
    with signals.heeded() as caught:
        evaluations = scoring.make_evaluations(group, pause=lambda: stop_if(is_over.is_set() and _agreed(caught)))
        members = [Member(*of) for of in zip(group.configs, recorders, evaluations, strict=True)]
        states, alive = _rounds(group, program, states, members, reporter, caught)
        is_over.set()
        results: list[Result | None] = []
        count = config.final_clients or config.num_clients
        reporter.say(f"evaluating {count} clients and {config.new_clients} new ones")
        for i, one in enumerate(members):
            state = state_of(states, i)
            arrivals = int(state.clock.arrivals) if one.config.schedule == "async" else None
            env_steps = group.run.env_steps(int(state.round), arrivals)
            summaries = scoring.final(one.evaluation, state, one.recorder) if alive[i] else None
            results.append(None if summaries is None else Result(state, env_steps, summaries))
            one.recorder.finish(summaries or {})
    return results


def state_of(states: simulate.State, i: int | np.integer) -> simulate.State:
    """Member i's state."""
    return jax.tree.map(lambda x: x[i], states)


def _rounds(group, program, states, members, reporter, caught) -> tuple[simulate.State, np.ndarray]:
    config = group.run.config
    lasts = [records.read(one.directory / rundir.METRICS).rows[-1:] for one in members]
    over = np.array([bool(rows) and one.config.is_over(rows[0]) for rows, one in zip(lasts, members, strict=True)])
    rounds = np.asarray(states.round)  # who is over may be in another one than who goes on
    number = int(np.min(rounds, where=~over, initial=config.rounds))
    alive = np.ones(len(members), bool)
    kept = [checkpoint.steps(one.directory / rundir.CHECKPOINTS) for one in members]
    unsaved = not all(number in steps or gone for steps, gone in zip(kept, over, strict=True))
    compile_s, silent = program.compile_s, np.zeros(len(members), bool)
    reporter.start(number, config.rounds, config.max_time)
    try:
        while number < config.rounds and not over[alive].all() and not _agreed(caught):
            began, before, earlier = time.perf_counter(), alive & ~over, states  # who is over keeps its state
            states, finite, measured = jax.block_until_ready(program.step(states, before, group.values))
            number, unsaved, alive = number + 1, True, np.asarray(finite) | over
            rows, participants = _rows(measured, number, time.perf_counter() - began, group, compile_s)
            compile_s = 0.0
            _dump(group, earlier, rows, before, members, reporter)
            asked = _record(rows, participants, before, alive, members, reporter)
            silent |= silence.say(rows, before & ~silent, members, reporter)
            ends = before & alive & [one.config.is_over(row) for one, row in zip(members, rows, strict=True)]
            over |= ends
            scores: dict[Any, float] = {}
            if config.eval_every and number % config.eval_every == 0:
                for i in np.flatnonzero(alive & ~over):
                    one = members[i]
                    scores[i], ask = scoring.periodic(one.evaluation, state_of(states, i), one.recorder, number)
                    asked[i] |= ask
            if any(one.recorder.callbacks for one in members):  # with the ends that they ask for, of each member
                asked = np.array([placement.agree(ask) for ask in asked], bool) & before & alive
                ends, over = ends | asked, over | asked
            if number % config.save_every == 0 or scores:
                ends, unsaved = before & alive, False
            _save(states, ends, members, number, scores)
        stop = _agreed(caught)
        if stop and unsaved:
            _save(states, alive & ~over, members, number, {})
    finally:
        reporter.stop()
    stop_if(stop)
    return states, alive


def _agreed(caught: list[int]) -> int:
    """The signal that any of the processes has caught; 0 for none. All of them ask after the same round."""
    return placement.agree_to_end(caught[0] if caught else 0)


def stop_if(signal_number: int) -> None:
    """End a run that is saved, where a signal asked for it."""
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


def _rows(measured: dict, number: int, seconds: float, group: Group, compile_s: float) -> tuple[list[dict], list[dict]]:
    """A line of metrics for each member, whose time is the whole group's, and the clients that took part in it."""
    times = {"sys/round_s": seconds, "sys/compile_s": compile_s}
    who = {key.removeprefix(metrics.WHO): np.asarray(measured.pop(key)) for key in [*measured] if _is_who(key)}
    columns = sorted((key, statistics.short(column)) for key, column in measured.items())
    every = range(len(group.configs))
    ids = who.pop("selected")
    steps = group.run.env_steps_per_client * (ids >= 0).sum(axis=-1)  # the rows of nobody are no steps
    rows = [{"round": number, **{key: column[i] for key, column in columns}, **times} for i in every]
    rows = [row | {"sys/env_steps_per_s": float(n) / seconds} for row, n in zip(rows, steps, strict=True)]
    return rows, [
        {
            "selected": ids[i][ids[i] >= 0].tolist(),
            **{name: ids[i][flags[i]].tolist() for name, flags in who.items()},
        }
        for i in every
    ]


def _is_who(key: str) -> bool:
    return key.startswith(metrics.WHO)


def _record(rows, participants, before, after, members, reporter) -> np.ndarray:
    """Record the members that were alive; say who is not any more; stop when nobody is left.

    Returns: of which members [G] does a callback ask for the end?
    """
    asked = np.zeros(len(members), bool)
    for i in np.flatnonzero(before):
        asked[i] = members[i].recorder.round(rows[i], participants[i])
    reporter.round([rows[i] for i in np.flatnonzero(before)])
    number, lost = rows[0]["round"], [members[i].directory for i in np.flatnonzero(before & ~after)]
    for directory in lost:
        rundir.mark_diverged(directory, number)
    for directory in lost:
        ckpt = directory / rundir.CHECKPOINTS
        good = next(iter(checkpoint.steps(ckpt)), None)
        where = f"last good checkpoint: {ckpt / str(good)}" if good is not None else "no checkpoint was saved before"
        line = f"diverged in round {number}: the server's state is not finite; {where}; lower server_lr"
        if not after.any():
            raise Diverged(line)
        reporter.warn(f"{directory} {line}; the other members go on")
    return asked


def _save(states, alive, members, number, scores) -> None:
    for i in np.flatnonzero(alive):
        config, directory = members[i].config, members[i].directory
        rundir.sync_records(directory)
        checkpoint.save(
            directory / rundir.CHECKPOINTS,
            number,
            state_of(states, i),
            scores.get(i),
            config=to_toml(config),
            keep_every=config.keep_every,
        )


def _dump(group, states, rows, alive, members, reporter) -> None:
    """Write down, for `replay`, who ceased to be finite in the round that began with `states`."""
    for i in np.flatnonzero(alive) if group.run.config.nan_dump else ():
        client = int(rows[i][metrics.SUSPECT])
        if client >= 0:
            path = nan_dump.dump(group.run, members[i].config, state_of(states, i), client, members[i].directory)
            if path:
                reporter.warn(f"client {client} was not finite in round {rows[i]['round']}: fedjax-rl replay {path}")

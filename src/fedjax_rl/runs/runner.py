"""Bringing runs to their end: those that can share a program do, what is finished stays, what was begun goes on."""

from collections.abc import Mapping, Sequence
from contextlib import ExitStack
from dataclasses import replace
from pathlib import Path

from fedjax_rl.config import Config, ConfigError
from fedjax_rl.config.sources import loads
from fedjax_rl.envs import Env, engine
from fedjax_rl.federation import placement
from fedjax_rl.host import signals
from fedjax_rl.host.exits import NoCheckpoint
from fedjax_rl.host.numerics import pinned
from fedjax_rl.runs import (
    checkpoint,
    loop,
    memory,
    mending,
    models,
    privacy,
    provenance,
    records,
    rundir,
    scoring,
)
from fedjax_rl.runs.assemble import Group, abstract_state, initial_states, make_group, static_fields
from fedjax_rl.runs.locking import writer
from fedjax_rl.runs.progress import Reporter
from fedjax_rl.runs.recorder import Hooks, Recorder
from fedjax_rl.runs.restoring import restored_states
from fedjax_rl.runs.timing import with_lanes

NO_HOOKS = Hooks()


class _TooLarge(Exception):
    """A group's program needs more memory than there is, and the group can be halved."""


def run_members(members: Mapping[Path, Config], reporter: Reporter, hooks: Hooks = NO_HOOKS) -> list[Path]:
    """Bring every run to its last round and evaluation.

    Directories that do not exist are made; finished and diverged runs are left alone; the others go on from their
    newest common checkpoint. Runs that differ only in seed and floats are members of one program.

    Returns:
      The runs that cannot go on for want of a checkpoint; each was named.

    Raises:
      ConfigError: a directory holds a run of another configuration, finished or not.
      Interrupted: a signal came; what was begun is saved.
    """
    lost: list[Path] = []
    left = unsettled(members, reporter)
    with signals.heeded() as caught:
        for paths in together(left):
            loop.stop_if(placement.agree(caught[0] if caught else 0))
            lost += _bring(paths, left, reporter, hooks)
    placement.agree(0)  # what the first process has written is there for all to read
    return lost


def unsettled(members: Mapping[Path, Config], reporter: Reporter) -> dict[Path, Config]:
    """The runs that are not at their end, each with its engine.

    Raises:
      ConfigError: a directory holds a run of another configuration, finished or not.
    """
    members = {path: with_engine(path, config) for path, config in members.items()}
    for path, config in members.items():
        if (path / rundir.CONFIG).exists():
            rundir.refuse_another(config, rundir.open_run(path), path, "move it away, or choose another directory")
    return {p: _no_shorter(p, c, reporter) for p, c in members.items() if not is_settled(p, c)}


def with_engine(path: Path, config: Config) -> Config:
    """The configuration with its physics engine by name, its lanes and its privacy's noise; a run that was begun keeps
    its engine and its noise.

    Raises:
      ConfigError: this machine does not have the engine that the run was begun on.
    """
    if not (path / rundir.CONFIG).exists():
        return privacy.with_noise(with_lanes(replace(config, backend=engine(config.env, config.backend))), None)
    begun = rundir.open_run(path)
    text = checkpoint.saved_config(path / rundir.CHECKPOINTS)  # config.toml may have had its rounds changed since
    config = privacy.with_noise(config, replace(begun, rounds=loads(text).rounds) if text else begun)
    if config.backend == "auto":
        config = replace(config, backend=begun.backend)
    try:
        engine(config.env, config.backend, strict=True)
    except ConfigError as error:
        remedy = "go on where there is, or train anew with another --out"
        raise ConfigError(f"{path} was begun on {config.backend} physics; {error}; {remedy}") from None
    return with_lanes(config)


def begin_sweep(members: Mapping[Path, Config], out: Path, halvings: int) -> dict[Path, Config]:
    """The members with their engines, after the sweep's plan is written; what cannot be made is refused before.

    Raises:
      ConfigError: a member cannot be made, or the directory not be written.
    """
    if halvings and any(privacy.is_of_one_length(config) for config in members.values()):
        raise ConfigError(
            f"--halvings {halvings}: dp_epsilon and banded noise are for one number of rounds; give dp_noise instead"
        )
    named = {path: with_engine(path, config) for path, config in members.items()}
    check(named)
    with writer(out):
        rundir.refuse_existing(out)  # again: another process may have begun meanwhile
        rundir.create_sweep(out, named, halvings)
    return named


@pinned()
def check(members: Mapping[Path, Config]) -> None:
    """Make every program that the members need, so that what cannot be made is refused before anything is written.

    Raises:
      ConfigError: one cannot.
    """
    envs: dict[tuple, Env] = {}  # each is made once
    for paths in together(members):
        configs = [members[path] for path in paths]
        kind = (configs[0].env, configs[0].backend, configs[0].observation)
        envs[kind] = make_group(configs, envs.get(kind)).run.env


def _bring(paths: Sequence[Path], members: Mapping[Path, Config], reporter: Reporter, hooks: Hooks) -> list[Path]:
    """Bring a group to its end, without the members (returned) that have lost their checkpoints.

    A member that has no checkpoint in common with the others goes on alone.
    """
    lost: list[Path] = []
    groups = [[*paths]]
    while groups:
        some = groups.pop(0)
        try:
            run_group([members[path] for path in some], some, reporter, hooks)
        except _TooLarge:
            groups = [some[: len(some) // 2], some[len(some) // 2 :], *groups]
        except loop.Diverged as error:  # nobody of this group is left; the other groups go on
            reporter.warn(str(error))
        except NoCheckpoint as error:
            if some == [error.run]:
                reporter.warn(f"{error}; the other runs go on")
                lost.append(error.run)
            else:
                groups = [[path for path in some if path != error.run], [error.run], *groups]
    return lost


def _no_shorter(path: Path, config: Config, reporter: Reporter) -> Config:
    """The configuration, or the run's own where it was prolonged alone beyond the rounds that are asked for."""
    if max(checkpoint.steps(path / rundir.CHECKPOINTS), default=0) <= config.rounds:
        return config
    begun = rundir.open_run(path)
    reporter.warn(f"{path} was prolonged: it goes on to round {begun.rounds}, not {config.rounds}")
    return begun


def is_settled(path: Path, config: Config) -> bool:
    """Is there nothing left to do: diverged, or evaluated after the last round, kept and recorded soundly?

    A run without any checkpoint is one whose records alone were kept.
    """
    if (path / rundir.DIVERGED).exists():
        return True
    rows = records.read(path / rundir.METRICS)
    last = next((row["round"] for row in rows.rows if config.is_over(row)), config.rounds)
    if max(checkpoint.steps(path / rundir.CHECKPOINTS), default=last) < last:
        return False
    is_sound = not any(records.read(path / name).faults for name in records.CHECKS)
    return is_sound and any(row["round"] >= last for row in scoring.finals(path))


def together(members: Mapping[Path, Config]) -> list[list[Path]]:
    """Paths of the runs that can share a program and a round: those begun apart from those not begun."""
    groups: dict[tuple, list[Path]] = {}
    for path, config in members.items():
        groups.setdefault((static_fields(config), rundir.has_checkpoint(path)), []).append(path)
    return list(groups.values())


@pinned()
def run_group(
    configs: Sequence[Config], directories: Sequence[Path], reporter: Reporter, hooks: Hooks = NO_HOOKS
) -> list[loop.Result | None]:
    """Bring the members of one group to their end; results in their order."""
    new = {directory for directory in directories if not (directory / rundir.CONFIG).exists()}
    group = make_group(configs)  # first: what cannot be made leaves no directory behind
    with ExitStack() as locks:
        for directory in directories:
            locks.enter_context(writer(directory))
        for directory, config in zip(directories, configs, strict=True):
            rundir.refuse_changed(directory, config, directory in new)
        for directory, config in zip(directories, configs, strict=True):
            rundir.refuse_lost(directory, config)
            mending.refuse_unreadable(directory)
            if not ((directory / rundir.CONFIG).exists() and rundir.has_checkpoint(directory)):
                checkpoint.probe(directory)  # what has no checkpoint begins here, wherever it was begun before
                rundir.create(directory, config)
        begun = placement.agree(rundir.has_checkpoint(directories[0]))
        states = restored_states(group, directories, reporter.warn) if begun else None
        for i, (directory, config) in enumerate(zip(directories, configs, strict=True)):
            mending.go_back(directory, config, 0 if states is None else int(states.round[i]), reporter.warn)
        kept = models.remarks(configs[0], lambda: abstract_state(group.run).clients)
        moved = provenance.moved(directory / rundir.ENV for directory in directories) if begun else {}
        for changed, env in moved.items():
            reporter.warn(f"{env.parent} goes on with numbers rounded otherwise: it began with {changed}")
        for line in dict.fromkeys([*(line for config in configs for line in privacy.remarks(config)), *kept]):
            reporter.say(line)
        program = compile_members(group, reporter)
        steps = group.run.env_steps
        named = zip(directories, configs, strict=True)
        recorders = [Recorder(directory, config, steps, hooks, reporter.warn) for directory, config in named]
        return loop.train(group, program, initial_states(group) if states is None else states, recorders, reporter)


def compile_members(group: Group, reporter: Reporter) -> loop.Program:
    """The group's program of a round."""
    program = loop.compile_round(group)
    members, steps = len(group.configs), group.run.env_steps_per_round * len(group.configs)
    need, have = memory.needed(program.step), memory.available()
    short = have is not None and need > memory.SHARE * have
    if not placement.agree(short):
        reporter.say(f"compiled one round in {program.compile_s:.1f} s; {steps:,} environment steps a round")
        return program
    line = f"{members} members need {need / 2**30:.1f} GiB of {(have or 0) / 2**30:.1f} GiB available"
    if members > 1:
        reporter.say(f"{line}: split in two")
        raise _TooLarge
    reporter.say(f"{line}: lower --client-batch, --clients-per-round or --episodes if memory runs out")
    return program

"""What the commands do once their options are known. Importing this imports jax."""

import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path

from fedjax_rl import statistics
from fedjax_rl.cli.options import EvalOptions, RenderOptions, ResumeOptions
from fedjax_rl.cli.parse import PublicStatesOptions
from fedjax_rl.config import Config
from fedjax_rl.host import output, signals
from fedjax_rl.host.exits import DONE, NO_CHECKPOINT, UNHEARD, CannotWrite
from fedjax_rl.host.files import explain
from fedjax_rl.host.numerics import pinned
from fedjax_rl.reports.finished import FinishedRun, positions, spent
from fedjax_rl.reports.tables import report
from fedjax_rl.runs import (
    checkpoint,
    loop,
    privacy,
    records,
    resuming,
    rundir,
    runner,
    scoring,
    silence,
    trackers,
    visited,
)
from fedjax_rl.runs.assemble import Assembled, abstract_state, make_run
from fedjax_rl.runs.progress import Reporter
from fedjax_rl.runs.recorder import Hooks
from fedjax_rl.runs.sweep import halve


def train(config: Config, directory: Path, *, as_json: bool, quiet: bool, log: tuple[str, ...] = ()) -> int:
    """A new run."""
    rundir.refuse_existing(directory)  # again: jax was imported since
    return _go(config, directory, as_json, quiet, log)


def resume(options: ResumeOptions) -> int:
    """The rest of a run."""
    config = rundir.open_run(options.run)
    if options.rounds is not None:
        config = replace(config, rounds=options.rounds)
    done = resuming.rounds_done(options.run, config)
    if not done:
        return _go(config, options.run, options.json, options.quiet, options.log)
    reporter = Reporter(options.quiet or rundir.is_reader())
    reporter.say(f"{options.run} is finished ({done} rounds), so nothing was done; --rounds K prolongs it")
    if options.json and not rundir.is_reader():
        last, rows = scoring.finals(options.run)[-1], records.read(options.run / rundir.METRICS).rows
        returns = {name: last[f"{name}/returns"] for name in records.EVALUATED if f"{name}/returns" in last}
        summaries = {name: statistics.summarise(some) for name, some in returns.items()}
        steps = int(positions(FinishedRun(options.run, config, {}, rows), "env_steps")[-1]) if rows else None
        _print_json(options.run, done, steps, 0.0, summaries)
    return _how_heard({options.run: config})


def evaluate(options: EvalOptions) -> int:
    """A table of returns at one checkpoint."""
    with pinned(options.quiet):
        return _evaluate(options)


def _evaluate(options: EvalOptions) -> int:
    config = rundir.open_run(options.run)
    config = replace(config, backend=options.backend or config.backend)
    run = make_run(config)
    restored = _restored(run, options, (lambda line: None) if options.quiet else _warn)
    steps = config.adapt_steps if options.adapt_steps is None else options.adapt_steps
    evaluation = scoring.make_evaluation(run, options.rates(config.inner_lr), steps, options.model)
    if options.clients == "new":
        count = options.new_clients or config.new_clients or 100
        returns = scoring.new_clients(evaluation, restored.state, count)
    else:
        returns = scoring.old_clients(evaluation, restored.state, options.count(config))
    summary = statistics.summarise(returns)
    if rundir.is_reader():
        return 0
    if options.json:
        record = {"run": str(options.run), "step": restored.step, "clients": options.clients}
        output.result(output.as_json({**record, **summary, "returns": returns}))
    else:
        output.result(statistics.table({f"{options.clients} clients, round {restored.step}": summary}))
    return 0


@pinned()
def render(options: RenderOptions) -> int:
    """A GIF or a page of clients before and after adaptation."""
    from fedjax_rl.reports import film

    run = make_run(rundir.open_run(options.run))
    restored = _restored(run, options, _warn)
    lines = film.render(run, restored.state, options.out, options.ids(), options.adapt_steps)
    output.result("\n".join([*lines, output.printable(str(options.out))]), f"the film is in {options.out}")
    return 0


@pinned()
def public_states(options: PublicStatesOptions, agent: Config) -> int:
    """A file of states for clients to distil on."""
    seen = visited.visited(agent, options.snapshots, options.rollouts)
    chosen = visited.spread(seen, options.states, options.components, options.clusters, options.seed)
    path = visited.write(options.out, agent, chosen)
    output.inform(f"{options.states:,} of {len(seen):,} visited states")
    output.result(str(path))
    return DONE


def new_sweep(
    members: dict[Path, Config], out: Path, halvings: int, *, as_json: bool, quiet: bool, log: tuple[str, ...] = ()
) -> int:
    """A sweep from its beginning; what cannot be made is refused before anything is written."""
    trackers.chosen(log)
    return sweep(runner.begin_sweep(members, out, halvings), out, halvings, as_json=as_json, quiet=quiet, log=log)


def sweep(
    members: dict[Path, Config], out: Path, halvings: int, *, as_json: bool, quiet: bool, log: tuple[str, ...] = ()
) -> int:
    """Every member of a sweep, or what is left of it; then the report."""
    reporter, hooks = Reporter(quiet or rundir.is_reader()), Hooks(trackers.chosen(log))
    reporter.say(f"{len(members)} runs in {out}")
    lost: list[Path] = []
    with _continued(out):
        left = halve(
            members, halvings, lambda some: lost.extend(runner.run_members(some, reporter, hooks)), scoring.score_at
        )
    if all((path / rundir.DIVERGED).exists() for path in members):
        raise loop.Diverged(f"all {len(members)} runs of {out} diverged, so there is nothing to report")
    code = NO_CHECKPOINT if lost else _how_heard({path: config for path, config in left.items() if path not in lost})
    if lost and not any(scoring.finals(path) for path in members):
        return code  # each was named
    if not rundir.is_reader():
        report((out,), "json" if as_json else "md", kept=f"the runs are in {out}: fedjax-rl report {out}")
    return code


def _restored(run: Assembled, options: EvalOptions | RenderOptions, say: Callable[[str], None]) -> checkpoint.Restored:
    """The checkpoint that the options ask for."""
    directory = options.run / rundir.CHECKPOINTS
    step = checkpoint.asked_step(directory, options.step, options.best)
    like = abstract_state(run)  # what only training needs is not read
    like = like._replace(server=like.server._replace(private=()), uplink=(), aggregator=(), clock=(), snapshots=())
    return checkpoint.restore(directory, like, say, step, part=True)


def _go(config: Config, directory: Path, as_json: bool, quiet: bool, log: tuple[str, ...] = ()) -> int:
    """Train to the end and print the result."""
    reporter, hooks, began = Reporter(quiet or rundir.is_reader()), Hooks(trackers.chosen(log)), time.perf_counter()
    reporter.say(f"{config.algorithm} on {config.env}, seed {config.seed}, in {directory}")
    config = runner.with_engine(directory, config)
    with _continued(directory):
        [result] = runner.run_group([config], [directory], reporter, hooks)
    assert result is not None, "a run alone that diverges has raised"
    if not rundir.is_reader():
        _print_result(result, directory, (time.perf_counter() - began) / 60, as_json)
    return _how_heard({directory: config})


@contextmanager
def _continued(directory: Path) -> Iterator[None]:
    """What ends a training before its time says how to go on."""

    def how() -> str:
        is_begun = (directory / rundir.CONFIG).exists() or rundir.is_sweep(directory)
        return f"continue with: fedjax-rl resume {directory}" if is_begun else "nothing was begun: start again"

    try:
        with signals.heeded():
            yield
    except signals.Interrupted as error:
        error.args = (f"interrupted ({error}) and saved; {how()}",)
        raise
    except signals.Stopped as error:
        error.args = (f"stopped at once ({error}); what was saved before is intact; {how()}",)
        raise
    except (CannotWrite, OSError) as error:
        reason = explain(error) if isinstance(error, OSError) else error
        raise CannotWrite(f"{reason}; what was saved before is intact; {how()}") from error


def _how_heard(runs: Mapping[Path, Config]) -> int:
    """The exit code of trainings that came to their end; a line for each that was not trained, or not at its end."""
    untrained = [path for path in runs if not rundir.is_reader() and _has_no_records(path)]
    for path in untrained:
        _warn(f"fedjax-rl: {path} was not trained: it has no records; continue with: fedjax-rl resume {path.parent}")
    unheard = {path: rounds for path, config in runs.items() if (rounds := silence.at_the_end(path, config))}
    for path, rounds in unheard.items():
        _warn(
            f"fedjax-rl: {path} learned nothing in its last {rounds} rounds: nobody was heard; see "
            f"health/nonfinite_clients in {path / rundir.METRICS}, and lower the rates or the dropout"
        )
    return NO_CHECKPOINT if untrained else UNHEARD if unheard else DONE


def _has_no_records(path: Path) -> bool:
    return not (rundir.diverged(path) or records.read(path / rundir.METRICS).rows or scoring.finals(path))


def _print_result(result: loop.Result, directory: Path, minutes: float, as_json: bool) -> None:
    rounds = int(result.state.round)
    if as_json:
        _print_json(directory, rounds, result.env_steps, minutes, result.summaries)
        return
    labels = {"eval": "all clients", "eval_malicious": "malicious clients", "eval_new": "new clients"}
    if "eval_malicious" in result.summaries:
        labels["eval"] = "honest clients"
    table = statistics.table({labels[name]: summary for name, summary in result.summaries.items()})
    about = f"{directory}: {result.env_steps:,} environment steps in {rounds} rounds; {minutes:.1f} minutes"
    clock = spent(records.read(directory / rundir.METRICS).rows)
    times = "".join(f"\n{name.replace('_', ' '):<14}{value:>12,.1f}" for name, value in clock.items())
    claim = privacy.claim(rundir.open_run(directory), rounds)
    output.result("\n".join([table + times, output.printable(about), *filter(None, [claim])]), _kept(directory))


def _print_json(directory: Path, rounds: int, env_steps: int | None, minutes: float, summaries: Mapping) -> None:
    record = {"run": str(directory), "round": rounds, "env_steps": env_steps, "minutes": minutes}
    record |= spent(records.read(directory / rundir.METRICS).rows)
    record |= privacy.spent(rundir.open_run(directory), rounds)
    output.result(output.as_json({**record, **summaries}), _kept(directory))


def _kept(directory: Path) -> str:
    return f"it is in {directory / rundir.EVAL}: fedjax-rl report {directory}"


def _warn(line: str) -> None:
    if not rundir.is_reader():
        output.inform(line)

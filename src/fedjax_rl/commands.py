"""What the commands do once their options are known. Importing this imports jax."""

import json
import time
from dataclasses import replace
from pathlib import Path

from fedjax_rl import checkpoint, metrics, output, rundir, runner, scoring
from fedjax_rl import train as training
from fedjax_rl.build import Run, abstract_state, make_run
from fedjax_rl.command_options import EvalOptions, RenderOptions, ReportOptions, ResumeOptions
from fedjax_rl.config import Config
from fedjax_rl.numerics import pinned
from fedjax_rl.progress import Reporter
from fedjax_rl.report import report
from fedjax_rl.sweep import halve


def train(config: Config, directory: Path, *, as_json: bool, quiet: bool) -> int:
    """A new run."""
    return _go(config, directory, as_json, quiet)


def resume(options: ResumeOptions) -> int:
    """The rest of a run."""
    config = rundir.read_config(options.run)
    if options.rounds is not None:
        config = replace(config, rounds=options.rounds)
    return _go(config, options.run, options.json, options.quiet)


@pinned()
def evaluate(options: EvalOptions) -> int:
    """A table of returns at one checkpoint."""
    config = rundir.read_config(options.run)
    config = replace(config, backend=options.backend or config.backend)
    run = make_run(config)
    restored = _restored(run, options)
    if restored is None:
        return 4
    steps = config.adapt_steps if options.adapt_steps is None else options.adapt_steps
    evaluation = scoring.make_evaluation(run, options.rates(config.inner_lr), steps, options.model)
    if options.clients == "new":
        count = options.new_clients or config.new_clients or 100
        returns = scoring.new_clients(evaluation, restored.state, count)
    else:
        returns = scoring.old_clients(evaluation, restored.state, config.num_clients)
    summary = metrics.summarise(returns)
    if rundir.is_reader():
        return 0
    if options.json:
        record = {"run": str(options.run), "step": restored.step, "clients": options.clients}
        output.result(json.dumps({**record, **summary, "returns": returns}))
    else:
        output.result(metrics.table({f"{options.clients} clients, round {restored.step}": summary}))
    return 0


@pinned()
def render(options: RenderOptions) -> int:
    """A GIF or a page of clients before and after adaptation."""
    from fedjax_rl.render import render as write

    run = make_run(rundir.read_config(options.run))
    restored = _restored(run, options)
    if restored is None:
        return 4
    write(run, restored.state, options)
    return 0


def sweep(members: dict[Path, Config], out: Path, halvings: int, *, as_json: bool, quiet: bool) -> int:
    """Every member of a sweep, or what is left of it; then the report."""
    reporter = Reporter(quiet or rundir.is_reader())
    reporter.say(f"{len(members)} runs in {out}")
    try:
        halve(members, halvings, lambda some: runner.run_members(some, reporter), scoring.score_at)
    except training.Interrupted as signal:
        _warn(f"interrupted ({signal}) and saved; continue with: fedjax-rl resume {out}")
        return signal.code
    except checkpoint.NoCheckpoint as error:
        _warn(f"fedjax-rl: {error}")
        return 4
    except (checkpoint.CannotSave, OSError) as error:
        _warn(f"fedjax-rl: {error}; what was saved before is intact: make room, then: fedjax-rl resume {out}")
        return 1
    if all((path / rundir.DIVERGED).exists() for path in members):
        _warn(f"fedjax-rl: all {len(members)} runs of {out} diverged, so there is nothing to report")
        return 3
    return 0 if rundir.is_reader() else report(ReportOptions((out,), json=as_json))


def _restored(run: Run, options: EvalOptions | RenderOptions) -> checkpoint.Restored | None:
    """The checkpoint that the options ask for; None, and a line, where there is none."""
    directory = options.run / rundir.CHECKPOINTS
    try:
        step = checkpoint.best_step(directory) if options.best else options.step
        if options.best and step is None:
            raise checkpoint.NoCheckpoint(f"no checkpoint in {directory} was evaluated, so none is the best")
        like = abstract_state(run)  # what only training needs is not read
        like = like._replace(server=like.server._replace(private=()), uplink=(), aggregator=())
        return checkpoint.restore(directory, like, _warn, step, part=True)
    except checkpoint.NoCheckpoint as error:
        _warn(f"fedjax-rl: {error}")
        return None


def _go(config: Config, directory: Path, as_json: bool, quiet: bool) -> int:
    """Train to the end, print the result, and turn the known failures into exit codes."""
    reporter, began = Reporter(quiet or rundir.is_reader()), time.perf_counter()
    reporter.say(f"{config.algorithm} on {config.env}, seed {config.seed}, in {directory}")
    try:
        [result] = runner.run_group([config], [directory], reporter)
    except training.Interrupted as signal:
        _warn(f"interrupted ({signal}) and saved; continue with: fedjax-rl resume {directory}")
        return signal.code
    except training.Diverged as error:
        _warn(f"fedjax-rl: {error}")
        return 3
    except checkpoint.NoCheckpoint as error:
        _warn(f"fedjax-rl: {error}")
        return 4
    except (checkpoint.CannotSave, OSError) as error:
        _warn(f"fedjax-rl: {error}; what was saved before is intact: make room, then: fedjax-rl resume {directory}")
        return 1
    if not rundir.is_reader():
        _print_result(result, directory, (time.perf_counter() - began) / 60, as_json)
    return 0


def _print_result(result: training.Result, directory: Path, minutes: float, as_json: bool) -> None:
    rounds = int(result.state.round)
    kept = f"it is in {directory / rundir.EVAL}: fedjax-rl report {directory}"
    if as_json:
        record = {"run": str(directory), "round": rounds, "env_steps": result.env_steps, "minutes": minutes}
        output.result(json.dumps({**record, **result.summaries}), kept)
        return
    labels = {"eval": "all clients", "eval_new": "new clients"}
    table = metrics.table({labels[name]: summary for name, summary in result.summaries.items()})
    about = f"{directory}: {result.env_steps:,} environment steps in {rounds} rounds; {minutes:.1f} minutes"
    output.result(f"{table}\n{output.printable(about)}", kept)


def _warn(line: str) -> None:
    if not rundir.is_reader():
        output.inform(line)

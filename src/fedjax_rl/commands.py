"""What the commands do once their options are known. Importing this imports jax."""

import json
import sys
import time
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

from fedjax_rl import checkpoint, metrics, rundir, scoring
from fedjax_rl import train as training
from fedjax_rl.build import Run, abstract_state, initial_state, make_run
from fedjax_rl.command_options import EvalOptions, ResumeOptions
from fedjax_rl.config import Config, ConfigError
from fedjax_rl.progress import Reporter
from fedjax_rl.simulate import State


def train(config: Config, directory: Path, *, as_json: bool, quiet: bool) -> int:
    """A new run."""
    run = make_run(config)
    rundir.create(directory, config)
    return _go(run, lambda: initial_state(run), directory, as_json, quiet)


def resume(options: ResumeOptions) -> int:
    """The rest of a run."""
    directory = options.run
    config = rundir.read_config(directory)
    if options.rounds is not None:
        config = replace(config, rounds=options.rounds)
    run = make_run(config)

    def state() -> State:
        restored = checkpoint.restore(directory / rundir.CHECKPOINTS, abstract_state(run), _warn)
        if restored.step > config.rounds:
            raise ConfigError(f"--rounds {config.rounds}: {restored.step} rounds are done already; ask for more")
        checkpoint.set_aside_after(directory / rundir.CHECKPOINTS, restored.step)
        for name in (rundir.METRICS, rundir.EVAL):
            rundir.forget_after(directory / name, restored.step)
        rundir.write_config(directory, config)
        return restored.state

    return _go(run, state, directory, options.json, options.quiet)


def evaluate(options: EvalOptions) -> int:
    """A table of returns at one checkpoint."""
    config = rundir.read_config(options.run)
    config = replace(config, backend=options.backend or config.backend)
    run, directory = make_run(config), options.run / rundir.CHECKPOINTS
    try:
        step = checkpoint.best_step(directory) if options.best else options.step
        if options.best and step is None:
            raise checkpoint.NoCheckpoint(f"no checkpoint in {directory} was evaluated, so none is the best")
        restored = checkpoint.restore(directory, abstract_state(run), _warn, step)
    except checkpoint.NoCheckpoint as error:
        _warn(f"fedjax-rl: {error}")
        return 4
    steps = config.adapt_steps if options.adapt_steps is None else options.adapt_steps
    evaluation = scoring.make_evaluation(run, options.rates(config.inner_lr), steps)
    if options.clients == "new":
        count = options.new_clients or config.new_clients or 100
        returns = scoring.new_clients(run, evaluation, restored.state, count)
    else:
        returns = scoring.old_clients(run, evaluation, restored.state, config.num_clients)
    summary = metrics.summarise(returns)
    if options.json:
        record = {"run": str(options.run), "step": restored.step, "clients": options.clients}
        print(json.dumps({**record, **summary, "returns": returns}))
    else:
        print(metrics.table({f"{options.clients} clients, round {restored.step}": summary}))
    return 0


def _go(run: Run, make_state: Callable[[], State], directory: Path, as_json: bool, quiet: bool) -> int:
    """Train to the end under the directory's lock, print the result, and turn the known failures into exit codes."""
    reporter, began = Reporter(quiet), time.perf_counter()
    reporter.say(f"{run.config.algorithm} on {run.config.env}, seed {run.config.seed}, in {directory}")
    try:
        with rundir.writer(directory):
            state = make_state()
            result = training.train(run, state, directory, reporter)
    except training.Interrupted as signal:
        _warn(f"interrupted ({signal}) and saved; continue with: fedjax-rl resume {directory}")
        return signal.code
    except training.Diverged as error:
        _warn(f"fedjax-rl: {error}")
        return 3
    except checkpoint.NoCheckpoint as error:
        _warn(f"fedjax-rl: {error}")
        return 4
    _print_result(run, result, directory, (time.perf_counter() - began) / 60, as_json)
    return 0


def _print_result(run: Run, result: training.Result, directory: Path, minutes: float, as_json: bool) -> None:
    env_steps = int(result.state.round) * run.env_steps_per_round
    if as_json:
        record = {"run": str(directory), "round": int(result.state.round), "env_steps": env_steps, "minutes": minutes}
        print(json.dumps({**record, **result.summaries}))
        return
    labels = {"eval": "all clients", "eval_new": "new clients"}
    print(metrics.table({labels[name]: summary for name, summary in result.summaries.items()}))
    print(f"{directory}: {env_steps:,} environment steps in {int(result.state.round)} rounds; {minutes:.1f} minutes")


def _warn(line: str) -> None:
    print(line, file=sys.stderr, flush=True)

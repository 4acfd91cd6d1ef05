"""The commands: each reads its options, refuses what it can, and only then imports what does the work (and jax)."""

import os
from collections.abc import Callable, Sequence
from pathlib import Path

from fedjax_rl.cli import processes
from fedjax_rl.config import ConfigError
from fedjax_rl.host import exits, output, signals


def _train(argv: Sequence[str]) -> int:
    from fedjax_rl.cli.parse import parse_train

    config, options = parse_train(argv)
    if options.print_config:
        from fedjax_rl.config.sources import to_toml

        output.result(to_toml(config).rstrip())
        return exits.DONE
    from fedjax_rl.runs import locking, rundir

    processes.meet("train", options, options.out)
    with signals.heeded(begun=False):
        processes.start("train", options, config, options.out)
        if options.out:
            rundir.refuse_existing(options.out)
        from fedjax_rl.cli.commands import train

        with locking.directory(options.out, config) as directory:
            return train(config, directory, as_json=options.json, quiet=options.quiet, log=options.log)


def _sweep(argv: Sequence[str]) -> int:
    from fedjax_rl.cli.parse import SweepOptions, parse_train
    from fedjax_rl.runs import locking, rundir, sweep

    typed = {argument.split("=")[0] for argument in argv}
    for name in {"--seed", "FEDJAX_RL_SEED"} & (typed | os.environ.keys()):
        raise ConfigError(f"{name}: a sweep takes --seeds, a range like 0:5 or a list like 0,3,7; leave it out")
    config, options = parse_train(argv, "sweep", SweepOptions)
    times = sum(argument.split("=")[0] == "--grid" for argument in argv)
    if times > 1 or (times and not options.grid):
        raise ConfigError("--grid: give it once, with one or more keys: --grid server_lr=1e-3,2e-3 order=first,second")
    grid, seeds = sweep.parse_grid(options.grid, config), sweep.parse_seeds(options.seeds)
    members = sweep.members(config, grid, seeds, options.out or Path(), options.halvings)
    processes.meet("sweep", options, options.out)
    with signals.heeded(begun=False):
        processes.start("sweep", options, config, options.out)
        if options.out:
            rundir.refuse_existing(options.out)
        from fedjax_rl.cli import commands

        given = {"as_json": options.json, "quiet": options.quiet, "log": options.log}
        with locking.directory(options.out, config, "sweep") as out:
            named = {out / path.name: member for path, member in members.items()}
            return commands.new_sweep(named, out, options.halvings, **given)


def _resume(argv: Sequence[str]) -> int:
    from fedjax_rl.cli import options as known
    from fedjax_rl.runs import rundir

    options = known.parse_command(known.ResumeOptions, argv, "resume")
    processes.meet("resume", options, options.run)
    if rundir.is_sweep(options.run):
        if options.rounds is not None:
            raise ConfigError(f"{options.run} is a sweep, whose rounds are fixed; resume one of its runs with --rounds")
        members, halvings = rundir.read_sweep(options.run)
        with signals.heeded(begun=False):
            processes.start("resume", options, next(iter(members.values())), options.run)
            from fedjax_rl.cli import commands

            given = {"as_json": options.json, "quiet": options.quiet, "log": options.log}
            return commands.sweep(members, options.run, halvings, **given)
    config = rundir.open_run(options.run)  # a wrong directory is answered before jax is imported
    rundir.refuse_lost(options.run, config)
    with signals.heeded(begun=False):
        processes.start("resume", options, config, options.run)
        from fedjax_rl.cli.commands import resume

        return resume(options)


def _eval(argv: Sequence[str]) -> int:
    from fedjax_rl.cli import options as known
    from fedjax_rl.runs import rundir

    options = known.parse_command(known.EvalOptions, argv, "eval")
    processes.meet("eval", options, options.run)
    config = rundir.open_run(options.run)  # a wrong directory is answered before jax is imported
    options.check(config)
    if options.adapt_lr and config.learns_rates:
        raise ConfigError(f"--adapt-lr: {config.algorithm} adapts with the rates that it learned; leave the option out")
    rundir.refuse_unsaved(options.run)
    processes.start("eval", options, config, options.run)
    from fedjax_rl.cli.commands import evaluate

    return evaluate(options)


def _render(argv: Sequence[str]) -> int:
    from fedjax_rl.cli import options as known
    from fedjax_rl.runs import rundir

    options = known.parse_command(known.RenderOptions, argv, "render")
    config = rundir.open_run(options.run)
    options.check(config)
    rundir.refuse_unsaved(options.run)
    if options.out.suffix == ".gif":
        from fedjax_rl.reports import film_gif

        film_gif.prepare(config.env)
    from fedjax_rl.cli.commands import render

    return render(options)


def _replay(argv: Sequence[str]) -> int:
    from fedjax_rl.cli import options as known

    options = known.parse_command(known.ReplayOptions, argv, "replay")
    from fedjax_rl.runs.nan_dump import replay

    output.result(replay(options.dump))
    return 0


def _report(argv: Sequence[str]) -> int:
    from fedjax_rl.cli import options as known

    options = known.parse_command(known.ReportOptions, argv, "report")
    from fedjax_rl.reports.tables import report

    report(options.runs, "json" if options.json else options.format, options.figure, options.x)
    return exits.DONE


def _ls(argv: Sequence[str]) -> int:
    from fedjax_rl.cli import options as known

    options = known.parse_command(known.LsOptions, argv, "ls")
    from fedjax_rl.reports import overview

    overview.ls(options.directory, options.json)
    return exits.DONE


def _show(argv: Sequence[str]) -> int:
    from fedjax_rl.cli import options as known

    options = known.parse_command(known.ShowOptions, argv, "show")
    from fedjax_rl.reports import overview

    overview.show(options.run, options.json)
    return exits.DONE


def _public_states(argv: Sequence[str]) -> int:
    from fedjax_rl.cli import options as known
    from fedjax_rl.cli.parse import PublicStatesOptions

    options = known.parse_command(PublicStatesOptions, argv, "public-states")
    agent = options.agent()
    from fedjax_rl.cli.commands import public_states

    return public_states(options, agent)


def _bench(argv: Sequence[str]) -> int:
    from fedjax_rl.cli import options as known

    options = known.parse_command(known.BenchOptions, argv, "bench")
    from fedjax_rl.bench import bench, show
    from fedjax_rl.envs import resolve_backend

    resolve_backend(options.backend)
    rows = bench(options.what, options.env, options.backend, options.numbers(), options.repeats)
    show(rows, as_json=options.json, out=options.out)
    return 0


def _doctor(argv: Sequence[str]) -> int:
    from fedjax_rl.cli import options as known

    options = known.parse_command(known.DoctorOptions, argv, "doctor")
    from fedjax_rl.cli.doctor import doctor

    return doctor(as_json=options.json)


def _list(argv: Sequence[str]) -> int:
    from fedjax_rl.cli import listing
    from fedjax_rl.cli import options as known

    return listing.show_list(known.parse_command(known.ListOptions, argv, "list").json)


COMMANDS: dict[str, Callable[[Sequence[str]], int]] = {
    "train": _train,
    "sweep": _sweep,
    "resume": _resume,
    "eval": _eval,
    "replay": _replay,
    "render": _render,
    "report": _report,
    "ls": _ls,
    "show": _show,
    "public-states": _public_states,
    "bench": _bench,
    "doctor": _doctor,
    "list": _list,
}

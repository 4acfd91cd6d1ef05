"""The command `fedjax-rl`. Imports no jax until a command needs it, so that help and mistakes are answered at once."""

import os
import platform
import sys
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from fedjax_rl import agreement, exits, lifeline, output, signals
from fedjax_rl.config import ConfigError, nearest
from fedjax_rl.files import explain

HELP = """usage: fedjax-rl COMMAND [options]

Federated and meta reinforcement learning in JAX.

commands:
  train [ALGORITHM]   train a federation; alone: FMRL on half_cheetah/direction, preset laptop
  sweep [ALGORITHM]   seeds and a grid of values side by side: --seeds 0:5 --grid server_lr=5e-4,1e-3
  resume RUN          continue an interrupted run or sweep, or prolong a run with --rounds K
  eval RUN            returns before adaptation and after each step, all clients or new ones
  replay DUMP         one client that --nan-dump wrote down, alone and step by step
  render RUN          clients before and after adaptation, as --out a.gif or a.html
  report RUN...       tables and a figure of finished runs, seeds taken together
  bench WHAT          speed and memory of this machine, beside its limits and other tools
  doctor              versions, devices and a check of the physics
  list                algorithms, environments, presets and server optimizers

fedjax-rl COMMAND --help shows every option with its default.
exit codes: 0 done, 1 cannot read or write, 2 usage or configuration, 3 diverged, 4 no usable checkpoint,
            5 nobody was heard, 6 another process is lost, 128 + a signal's number: ended by it (saved)
"""


def _train(argv: Sequence[str]) -> int:
    from fedjax_rl.arguments import parse_train

    config, options = parse_train(argv)
    if options.print_config:
        from fedjax_rl.layers import to_toml

        output.result(to_toml(config).rstrip())
        return exits.DONE
    from fedjax_rl import rundir

    _meet("train", options, options.out)
    with signals.heeded(begun=False):
        _start("train", options, config, options.out)
        directory = options.out or rundir.default_path(config)
        rundir.refuse_existing(directory)
        from fedjax_rl.commands import train

        return train(config, directory, as_json=options.json, quiet=options.quiet)


def _sweep(argv: Sequence[str]) -> int:
    from fedjax_rl import rundir, sweep
    from fedjax_rl.arguments import SweepOptions, parse_train

    if any(argument.split("=")[0] == "--seed" for argument in argv):
        raise ConfigError("--seed: a sweep takes --seeds, a range like 0:5 or a list like 0,3,7")
    config, options = parse_train(argv, "sweep", SweepOptions)
    times = sum(argument.split("=")[0] == "--grid" for argument in argv)
    if times > 1 or (times and not options.grid):
        raise ConfigError("--grid: give it once, with one or more keys: --grid server_lr=1e-3,2e-3 order=first,second")
    out = options.out or rundir.default_path(config, "sweep")
    grid = sweep.parse_grid(options.grid, config)
    members = sweep.members(config, grid, sweep.parse_seeds(options.seeds), out)
    _meet("sweep", options, options.out)
    with signals.heeded(begun=False):
        _start("sweep", options, config, options.out)
        rundir.refuse_existing(out)
        from fedjax_rl import commands

        return commands.new_sweep(members, out, options.halvings, as_json=options.json, quiet=options.quiet)


def _resume(argv: Sequence[str]) -> int:
    from fedjax_rl import command_options as known
    from fedjax_rl import rundir

    options = known.parse_command(known.ResumeOptions, argv, "resume")
    _meet("resume", options, options.run)
    if rundir.is_sweep(options.run):
        if options.rounds is not None:
            raise ConfigError(f"{options.run} is a sweep, whose rounds are fixed; resume one of its runs with --rounds")
        members, halvings = rundir.read_sweep(options.run)
        with signals.heeded(begun=False):
            _start("resume", options, next(iter(members.values())), options.run)
            from fedjax_rl import commands

            return commands.sweep(members, options.run, halvings, as_json=options.json, quiet=options.quiet)
    config = rundir.open_run(options.run)  # a wrong directory is answered before jax is imported
    rundir.refuse_lost(options.run, config)
    with signals.heeded(begun=False):
        _start("resume", options, config, options.run)
        from fedjax_rl.commands import resume

        return resume(options)


def _eval(argv: Sequence[str]) -> int:
    from fedjax_rl import command_options as known
    from fedjax_rl import rundir

    options = known.parse_command(known.EvalOptions, argv, "eval")
    _meet("eval", options, options.run)
    config = rundir.open_run(options.run)  # a wrong directory is answered before jax is imported
    options.check(config)
    if options.adapt_lr and config.algorithm == "meta_sgd":
        raise ConfigError("--adapt-lr: meta_sgd adapts with the rates that it learned; leave the option out")
    rundir.refuse_unsaved(options.run)
    _start("eval", options, config, options.run)
    from fedjax_rl.commands import evaluate

    return evaluate(options)


def _meet(command: str, options: Any, directory: Path | None) -> None:
    """Where compiled programs are kept, and the other processes of the run; before jax is imported."""
    if options.no_cache:
        os.environ.pop("JAX_COMPILATION_CACHE_DIR", None)
    else:
        home = os.environ.get("XDG_CACHE_HOME") or os.path.expanduser("~/.cache")
        if os.path.isabs(home):  # without a home "~" stays as it is, and would be a directory of that name here
            os.environ.setdefault("JAX_COMPILATION_CACHE_DIR", os.path.join(home, "fedjax_rl"))
    if options.coordinator is None:
        return
    if directory is None:
        raise ConfigError("--coordinator needs --out: all processes must name the same directory, which all can see")
    place = (options.coordinator, options.num_processes, options.process_id, None)
    if options.coordinator == "auto":
        from fedjax_rl.placement import ask_cluster

        place = ask_cluster(options.join_timeout)

    def remedy() -> str:
        from fedjax_rl import rundir

        is_begun = (directory / rundir.CONFIG).exists() or rundir.is_sweep(directory)
        return f"resume all of them: fedjax-rl resume {directory}" if is_begun and command != "eval" else lifeline.AGAIN

    lifeline.join(*place, options.join_timeout, remedy, (lambda _: None) if options.quiet else output.inform)


NOT_SHARED = {"no_cache", "coordinator", "num_processes", "process_id", "join_timeout", "print_config", "json", "quiet"}
ELSEWHERE = {"preset", "config", "out", "run"}  # in the configuration that they make, and in the directory


def _start(command: str, options: Any, config: Any, directory: Path | None) -> None:
    """Compare what all processes of the run must share, and start JAX in them; nothing is written or compiled yet."""
    if options.coordinator is None:
        return
    from fedjax_rl import placement, rundir
    from fedjax_rl.envs import engine

    given = {key: value for key, value in vars(options).items() if key not in NOT_SHARED | ELSEWHERE}
    facts = {
        "command": command,
        "directory": str(directory.parent.resolve() / directory.name),  # a look at itself might be remembered
        "algorithm": config.algorithm,
        **vars(config),
        **{f"--{key.replace('_', '-')}": value for key, value in given.items()},
        "Python": platform.python_version(),
        **rundir.versions(),
        **placement.settings(),
        "checkpoints": sorted(step.name for step in (directory / rundir.CHECKPOINTS).glob("*.digest.json")),
    }
    agreement.same(facts)
    if command != "eval":
        agreement.same_directory(directory)
    placement.start_processes()
    physics = engine(config.env, getattr(options, "backend", None) or config.backend)  # before a device is touched
    agreement.same({"physics": physics})
    placement.same_devices()
    if not placement.is_first():
        rundir.only_read()


def _render(argv: Sequence[str]) -> int:
    from fedjax_rl import command_options as known
    from fedjax_rl import rundir

    options = known.parse_command(known.RenderOptions, argv, "render")
    options.check(rundir.open_run(options.run))
    rundir.refuse_unsaved(options.run)
    if options.out.suffix == ".gif":
        from fedjax_rl import render_gif

        render_gif.prepare()
    from fedjax_rl.commands import render

    return render(options)


def _replay(argv: Sequence[str]) -> int:
    from fedjax_rl import command_options as known

    options = known.parse_command(known.ReplayOptions, argv, "replay")
    from fedjax_rl.replay import replay

    output.result(replay(options.dump))
    return 0


def _report(argv: Sequence[str]) -> int:
    from fedjax_rl import command_options as known

    options = known.parse_command(known.ReportOptions, argv, "report")
    from fedjax_rl.report import report

    return report(options)


def _bench(argv: Sequence[str]) -> int:
    from fedjax_rl import command_options as known

    options = known.parse_command(known.BenchOptions, argv, "bench")
    from fedjax_rl.bench import bench, show
    from fedjax_rl.envs import resolve_backend

    resolve_backend(options.backend)
    rows = bench(options.what, options.env, options.backend, options.numbers(), options.repeats)
    show(rows, as_json=options.json, out=options.out)
    return 0


def _doctor(argv: Sequence[str]) -> int:
    from fedjax_rl import command_options as known

    options = known.parse_command(known.PlainOptions, argv, "doctor")
    from fedjax_rl.doctor import doctor

    return doctor(as_json=options.json)


def _list(argv: Sequence[str]) -> int:
    from fedjax_rl import command_options as known

    return known.show_list(known.parse_command(known.PlainOptions, argv, "list").json)


COMMANDS: dict[str, Callable[[Sequence[str]], int]] = {
    "train": _train,
    "sweep": _sweep,
    "resume": _resume,
    "eval": _eval,
    "replay": _replay,
    "render": _render,
    "report": _report,
    "bench": _bench,
    "doctor": _doctor,
    "list": _list,
}


def main(argv: Sequence[str] | None = None) -> int:
    """Run one command and return its exit code (exits.py); what is known to go wrong is one line on stderr."""
    argv = list(sys.argv[1:] if argv is None else argv)
    try:
        return _run(argv)
    except exits.Refusal as error:
        output.inform(f"fedjax-rl: {error}")
        lifeline.because(str(error))
        return error.code
    except SystemExit as stop:  # tyro's help
        return int(stop.code or 0)
    except signals.Stopped as stop:
        output.inform(f"fedjax-rl: {stop}")
        lifeline.because(str(stop))
        return stop.code
    except KeyboardInterrupt:
        output.inform("fedjax-rl: interrupted")
        lifeline.because("interrupted")
        return exits.SIGNAL + signals.INTERRUPT
    except BrokenPipeError:  # whoever read what a command prints has read enough
        return exits.DONE
    except OSError as error:
        output.inform(f"fedjax-rl: {explain(error)}")
        lifeline.because(explain(error))
        return exits.CANNOT_WRITE


def _run(argv: list[str]) -> int:
    if not argv or argv[0] in ("-h", "--help", "help"):
        output.result(HELP.rstrip())
        return exits.DONE
    if argv[0] == "--version":
        from fedjax_rl import __version__

        output.result(__version__)
        return exits.DONE
    if argv[0] not in COMMANDS:
        known = ", ".join(COMMANDS)
        raise ConfigError(f"unknown command {argv[0]!r}{nearest(argv[0], COMMANDS)}; known: {known}")
    return COMMANDS[argv[0]](argv[1:])


def program() -> int:
    """The command of a process of its own: `main` between streams made fit and streams given up."""
    output.prepare()
    signals.owns_process = True
    with lifeline.held():
        code = lifeline.leave(main())
    output.settle()
    return code


if __name__ == "__main__":
    sys.exit(program())

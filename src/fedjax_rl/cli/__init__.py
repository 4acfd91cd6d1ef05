"""The command `fedjax-rl`. Imports no jax until a command needs it, so that help and mistakes are answered at once."""

import sys
from collections.abc import Sequence

from fedjax_rl.cli import processes
from fedjax_rl.cli.entries import COMMANDS
from fedjax_rl.config import ConfigError, nearest
from fedjax_rl.host import exits, lifeline, output, signals
from fedjax_rl.host.files import explain

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
  ls [DIR], show RUN  what runs there are (in runs/), and what is known of one
  public-states       states on which the clients of `train fedhpd` distil
  bench WHAT          speed and memory of this machine, beside its limits and other tools
  doctor              versions, devices and a check of the physics
  list                every name: algorithms, environments, policies, aggregators, attacks, presets, ...

fedjax-rl COMMAND --help shows every option with its default.
exit codes: 0 done, 1 cannot read or write, 2 usage or configuration, 3 diverged, 4 no usable checkpoint,
            5 nobody was heard, 6 another process is lost, 128 + a signal's number: ended by it (saved)
"""


def main(argv: Sequence[str] | None = None) -> int:
    """Run one command and return its exit code (exits.py); what is known to go wrong is one line on stderr."""
    argv = list(sys.argv[1:] if argv is None else argv)
    try:
        return _run(argv)
    except exits.Refusal as error:
        output.inform(f"fedjax-rl: {error}")
        lifeline.because(str(error))
        return error.code
    except SystemExit as stop:  # tyro's help, or a guest's code that exits
        if stop.code is None or isinstance(stop.code, int):
            return stop.code or exits.DONE
        output.inform(f"fedjax-rl: {stop.code}")
        return exits.CANNOT_WRITE
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
    with processes.held():
        code = lifeline.leave(main())
    output.settle()
    return code

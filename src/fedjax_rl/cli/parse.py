"""Reading a command line: tyro does the work, mistakes become one line."""

import argparse
import contextlib
import io
import re
from collections.abc import Sequence
from dataclasses import dataclass, fields
from pathlib import Path
from typing import Any

import tyro

from fedjax_rl.config import CONFIGS, Config, ConfigError, build, nearest, presets
from fedjax_rl.config.sources import environment_layer, read_toml
from fedjax_rl.host.exits import CannotWrite


@dataclass(frozen=True, kw_only=True)
class MachineOptions:
    """Where the work is done."""

    no_cache: bool = False  # keep none of JAX's compiled programs between runs
    coordinator: str | None = None  # several processes: HOST:PORT of the first, or auto (Slurm, TPU pods, GKE)
    num_processes: int | None = None  # how many there are (auto: the cluster tells)
    process_id: int | None = None  # which one this is, from 0 (auto: the cluster tells)
    join_timeout: int = 60  # how long to wait for the others at the start [s]

    def __post_init__(self) -> None:
        if not 1 <= self.join_timeout <= 86400:
            raise ConfigError(f"--join-timeout {self.join_timeout}: must be an integer, 1 to 86400 seconds")
        count, number = self.num_processes, self.process_id
        if self.coordinator in (None, "auto"):
            if (count, number) != (None, None):
                raise ConfigError("--num-processes and --process-id: need --coordinator HOST:PORT")
            return
        if not re.fullmatch(r".+:\d+", self.coordinator):
            raise ConfigError(f"--coordinator {self.coordinator}: must be HOST:PORT of the first process, or auto")
        if count is None or number is None or not 0 <= number < count:
            raise ConfigError(
                f"--num-processes {count} --process-id {number}: "
                "both are needed with --coordinator HOST:PORT, the second from 0 to the first less 1"
            )


@dataclass(frozen=True, kw_only=True)
class TrainOptions(MachineOptions):
    """What to do with the configuration."""

    log: tuple[str, ...] = ()  # also track the run: tensorboard, wandb or both
    preset: str = presets.DEFAULT  # lowest layer of values, see `fedjax-rl list`
    config: Path | None = None  # TOML file of values, above the preset and below FEDJAX_RL_* and the command line
    out: Path | None = None  # run directory; without it runs/<env>-<algorithm>-seed<k>-<time>
    print_config: bool = False  # print the configuration as TOML and stop
    json: bool = False  # print the result as JSON instead of a table
    quiet: bool = False  # no progress


@dataclass(frozen=True, kw_only=True)
class SweepOptions(MachineOptions):
    """Seeds and a grid of values; what differs in seeds and floats alone runs side by side in one program."""

    seeds: str = "0:3"  # a range like 0:5 or a list like 0,3,7
    # KEY=VALUE,VALUE ... any options of one value that decide the result, but seed and env; every combination is run
    grid: tuple[str, ...] = ()
    log: tuple[str, ...] = ()  # also track the runs with tensorboard, wandb or both
    halvings: int = 0  # successive halving: so many times, only the better half of the grid's points goes on
    preset: str = presets.DEFAULT  # lowest layer of values, see `fedjax-rl list`
    config: Path | None = None  # TOML file of values, above the preset and below FEDJAX_RL_* and the command line
    out: Path | None = None  # directory of the runs; without it runs/<env>-<algorithm>-sweep-<time>
    json: bool = False  # print the report as JSON instead of a table
    quiet: bool = False  # no progress


@dataclass(frozen=True, kw_only=True)
class PublicStatesOptions:
    """States for the clients of `train fedhpd` to distil on: those that another agent visits, spread by clusters."""

    env: str = "gymnax/CartPole-v1"  # the environment of the agent, and of the clients
    hidden: tuple[int, ...] = (128,)  # widths of the agent's hidden layers [units]
    activation: str = "relu"  # activation of these: tanh or relu
    local_lr: float = 0.001  # rate of its steps
    episodes: int = 2000  # episodes it learns from, one a step
    snapshots: int = 11  # how often it is looked at, from the middle of its training to the end
    rollouts: int = 10  # episodes each time, in which it takes its likeliest action
    states: int = 5000  # states to keep, equally many from each cluster
    components: int = 2  # principal components in which the clusters are made
    clusters: int = 5  # clusters (k-means)
    seed: int = 0  # every random draw follows from it
    out: Path = Path(".")  # directory of the file, whose name is that of the environment with a digest

    def __post_init__(self) -> None:
        limits = {"episodes": (2, 10**7), "snapshots": (2, 1000), "rollouts": (1, 10**5), "states": (1, 10**7)}
        for key, (low, high) in {**limits, "clusters": (1, 1000), "components": (1, 1000)}.items():
            if not low <= getattr(self, key) <= high:
                raise ConfigError(f"--{key} {getattr(self, key)}: must be an integer, {low} to {high}")
        if self.states % self.clusters:
            raise ConfigError(f"--states {self.states}: must be a multiple of --clusters {self.clusters}")
        if self.episodes % (2 * (self.snapshots - 1)):
            raise ConfigError(
                f"--episodes {self.episodes}: must be a multiple of {2 * (self.snapshots - 1)}, twice the gaps between "
                f"--snapshots {self.snapshots}"
            )

    def agent(self) -> Config:
        """The configuration of the agent: a federation of one that learns alone."""
        values = presets.preset("fedhpd-cartpole", "fedhpd")
        own = {key: getattr(self, key) for key in ("env", "hidden", "activation", "local_lr", "seed")}
        alone = {"kinds": "", "num_clients": 1, "clients_per_round": 1, "local_steps": 1, "distill": "none"}
        return build("fedhpd", values, alone, own, {"rounds": self.episodes})


def parse(cls: Any, argv: Sequence[str], prog: str, known: Sequence[str], **kwargs: Any) -> Any:
    """tyro.cli with one-line errors; `known` are the option names without dashes in front."""
    _refuse_unknown(argv, known)
    errors = io.StringIO()
    try:
        with contextlib.redirect_stderr(errors):
            return tyro.cli(cls, args=list(argv), prog=prog, config=(tyro.conf.FlagCreatePairsOff,), **kwargs)
    except BrokenPipeError:
        raise
    except OSError as error:
        raise CannotWrite(f"the help cannot be printed: {error.strerror}") from None
    except SystemExit as stop:
        if stop.code in (0, None):
            raise
        raise ConfigError(_one_line(errors.getvalue())) from None


def options(cls: type) -> list[str]:
    """The option names of a dataclass, as they are typed: what is on by default is turned off by no-NAME."""
    named = [item for item in fields(cls) if "Positional" not in str(item.type)]
    return [("no-" * (item.default is True) + item.name).replace("_", "-") for item in named]


def parse_train(argv: Sequence[str], command: str = "train", what: Any = TrainOptions) -> tuple[Config, Any]:
    """[ALGORITHM] options -> the configuration of all layers, and what to do with it."""
    argv = list(argv)
    stated = argv.pop(0) if argv and not argv[0].startswith("-") else None
    early = _early(argv)
    from_file, file_layer = read_toml(early.config) if early.config else (None, {})
    algorithm = stated or from_file or "fmrl"
    environment = environment_layer(algorithm)
    env = early.env or environment.get("env") or file_layer.get("env")
    layers = (presets.preset(early.preset, algorithm, env), file_layer, environment)
    defaults = build(algorithm, *layers)
    cls: Any = type(defaults)

    @dataclass(frozen=True)
    class Train:
        configuration: tyro.conf.OmitArgPrefixes[cls]
        output: tyro.conf.OmitArgPrefixes[what]

    Train.__doc__ = f"{cls.__doc__}\n\nAlgorithms: {', '.join(CONFIGS)}."
    known = options(cls) + options(what)
    parsed = parse(Train, argv, f"fedjax-rl {command} {algorithm}", known, default=Train(defaults, what()))
    return parsed.configuration, parsed.output


def _early(argv: Sequence[str]) -> argparse.Namespace:
    """The options that decide the other options' defaults."""
    parser = argparse.ArgumentParser(add_help=False, allow_abbrev=False, exit_on_error=False)
    for option, default in (("preset", presets.DEFAULT), ("config", None), ("env", None)):
        parser.add_argument(f"--{option}", default=default)
    try:
        return parser.parse_known_args(list(argv))[0]
    except argparse.ArgumentError as error:
        raise ConfigError(f"{error.argument_name}: {error.message}") from None


def _refuse_unknown(argv: Sequence[str], known: Sequence[str]) -> None:
    for argument in argv:
        option = argument.split("=")[0].removeprefix("--").replace("_", "-")
        if not argument.startswith("--") or option in known or option == "help":
            continue
        owners = [name for name, cls in CONFIGS.items() if option in options(cls)]
        hint = f" (it is an option of {', '.join(owners)})" if owners and "env" in known else nearest(option, known)
        raise ConfigError(f"unknown option --{option}{hint.replace('mean ', 'mean --')}")


def _one_line(box: str) -> str:
    """The first paragraph below the title of tyro's error box, which is drawn in Unicode or with dashes."""
    lines = [line.strip("│╭╮╰╯ ") for line in box.splitlines()[1:]]
    paragraphs = re.split(r"\s*[─-]{5,}\s*", " ".join(lines).strip())
    body = next((paragraph for paragraph in paragraphs if paragraph), "")
    unread = re.match(r"Error parsing (--\S+): .*?(?:instantiated from|for arguments:) \['(.*?)'\]", body)
    if unread:
        typed = " ".join(unread[2].split("', '"))
        return f"{unread[1]} {typed}: not of its kind; see --help (a list's numbers are separated by spaces)"
    body = re.sub(r"invalid literal for int\(\) with base 10: (.*)", r"\1 is not an integer", body)
    body = re.sub(r"could not convert string to float: (.*)", r"\1 is not a number", body)
    return re.sub(r"^Error parsing (\w+: )?", "", body) or "the command line is not understood"

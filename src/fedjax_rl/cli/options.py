"""Options of the commands that act on a run. Imports no jax."""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import tyro

from fedjax_rl.cli.parse import MachineOptions, options, parse
from fedjax_rl.config import Config, ConfigError, nearest
from fedjax_rl.host import registry
from fedjax_rl.reports import film_asked


@dataclass(frozen=True)
class ResumeOptions(MachineOptions):
    """Continue a run from its newest good checkpoint, bit for bit as if it had never stopped."""

    run: tyro.conf.Positional[Path]  # run directory
    rounds: int | None = None  # new total number of rounds, those already done included
    log: tuple[str, ...] = ()  # also track the run: tensorboard, wandb or both
    json: bool = False  # print the result as JSON instead of a table
    quiet: bool = False  # no progress

    def __post_init__(self) -> None:
        super().__post_init__()
        _at_least("rounds", self.rounds, 1)


@dataclass(frozen=True)
class EvalOptions(MachineOptions):
    """Evaluate a run's checkpoint: returns before adaptation and after each step."""

    run: tyro.conf.Positional[Path]  # run directory
    step: int | None = None  # round of the checkpoint; without it the newest good one
    best: bool = False  # the checkpoint with the highest evaluated return after one step
    clients: str = "all"  # all: the federation's clients, new: clients never trained on
    eval_clients: int | None = None  # of the federation's clients, the first so many; without it all
    new_clients: int | None = None  # number of new clients; without it the run's
    model: str | None = None  # start from each client's personal model or the global one; without it the algorithm's
    adapt_steps: int | None = None  # adaptation steps; without it the run's
    adapt_lr: str | None = None  # rate of each step, e.g. 0.1,0.05; the last serves the rest; without it the run's
    backend: str | None = None  # physics: auto, native, fused or mjx; without it the run's
    json: bool = False  # print JSON, with every client's returns
    quiet: bool = False  # no remarks on stderr

    def __post_init__(self) -> None:
        super().__post_init__()
        _exclusive("best", self.best, "step", self.step)
        _one_of("clients", self.clients, ("all", "new"))
        _one_of("model", self.model, ("personal", "global"))
        _one_of("backend", self.backend, ("auto", "native", "fused", "mjx"))
        _at_least("step", self.step, 0)
        _at_least("new-clients", self.new_clients, 1)
        _at_least("eval-clients", self.eval_clients, 1)
        _at_least("adapt-steps", self.adapt_steps, 0)
        self.rates(0.0)
        if self.new_clients is not None and self.clients != "new":
            raise ConfigError(f"--new-clients {self.new_clients}: no new clients are evaluated; add --clients new")
        if self.eval_clients is not None and self.clients == "new":
            raise ConfigError(
                f"--eval-clients {self.eval_clients}: is for the federation's clients; with --clients new give "
                "--new-clients"
            )

    def check(self, config: Config) -> None:
        """Refuse what this run does not have."""
        if self.eval_clients is not None and self.eval_clients > config.num_clients:
            raise ConfigError(f"--eval-clients {self.eval_clients}: this run has {config.num_clients} clients")

    def count(self, config: Config) -> int:
        """How many of the federation's clients are evaluated."""
        return self.eval_clients or config.num_clients

    def rates(self, default: float) -> tuple[float, ...]:
        """The adaptation rates as numbers."""
        if self.adapt_lr is None:
            return (default,)
        try:
            rates = tuple(float(part) for part in self.adapt_lr.split(","))
        except ValueError:
            rates = (math.nan,)
        if not all(0 <= rate <= 100 for rate in rates):
            raise ConfigError(f"--adapt-lr {self.adapt_lr}: must be numbers from 0 to 100 separated by commas")
        return rates


@dataclass(frozen=True)
class ReplayOptions:
    """Run one client's part of a round without compilation, and name the first operation that gives a NaN."""

    dump: tyro.conf.Positional[Path]  # a file that train, sweep or resume wrote under --nan-dump


@dataclass(frozen=True)
class RenderOptions:
    """Film clients before and after adaptation, side by side: one checkpoint, one initial state, the same noise."""

    run: tyro.conf.Positional[Path]  # run directory
    out: Path  # file to write: .gif (needs OpenGL for robots) or .html (a viewer for a browser)
    client: int | None = None  # the client to show; without it 0
    clients: str | None = None  # several clients, one below the other, e.g. 0,1,2,3
    adapt_steps: int = 1  # adaptation steps between before and after
    step: int | None = None  # round of the checkpoint; without it the newest good one
    best: bool = False  # the checkpoint with the highest evaluated return after one step

    def __post_init__(self) -> None:
        _exclusive("best", self.best, "step", self.step)
        _exclusive("client", self.client, "clients", self.clients)
        _at_least("step", self.step, 0)
        film_asked.refuse(self.out, self.adapt_steps)
        self.ids()

    def ids(self) -> tuple[int, ...]:
        """The clients' numbers."""
        if self.clients is None:
            return (self.client or 0,)
        try:
            return tuple(int(part) for part in self.clients.split(","))
        except ValueError:
            raise ConfigError(f"--clients {self.clients}: must be client numbers separated by commas") from None

    def check(self, config: Config) -> None:
        """Refuse what this run cannot show."""
        film_asked.refuse_clients(self.ids(), config)


@dataclass(frozen=True)
class ReportOptions:
    """Tables and a figure of finished runs. Runs that differ only in their seed form one row.

    The first row's runs are those that the probability of improvement compares with the others: name them first.
    """

    runs: tyro.conf.Positional[tuple[Path, ...]]  # run directories, or directories with runs anywhere below
    format: str = "md"  # md, csv or latex (booktabs)
    figure: Path | None = None  # also draw learning curves and final returns into this .png, .pdf or .svg
    x: str = "env_steps"  # the curves' axis: env_steps, rounds, virtual_time, uploads or bytes
    json: bool = False  # print JSON instead of a table

    def __post_init__(self) -> None:
        if not self.runs:
            raise ConfigError("report needs at least one run directory, or a directory that holds some")
        _one_of("format", self.format, ("md", "csv", "latex"))
        _one_of("x", self.x, ("env_steps", "rounds", "virtual_time", "uploads", "bytes"))
        if self.figure and self.figure.suffix not in (".png", ".pdf", ".svg"):
            raise ConfigError(f"--figure {self.figure}: the name must end in .png, .pdf or .svg")
        if self.x != "env_steps" and not self.figure:
            raise ConfigError(f"--x {self.x}: is the axis of a figure; add --figure NAME.png")


@dataclass(frozen=True)
class LsOptions:
    """What runs there are, at and below a directory: rounds, the return after one step, and whether they can go on."""

    directory: tyro.conf.Positional[Path] = Path("runs")  # where to look
    json: bool = False  # print JSON


@dataclass(frozen=True)
class ShowOptions:
    """What is known of one run: its state, every value, its checkpoints and evaluations."""

    run: tyro.conf.Positional[Path]  # run directory
    json: bool = False  # print JSON


BENCHES = (
    "physics",
    "update",
    "round",
    "run",
    "memory",
    "scaling",
    "compile",
    "peers",
    "envs",
    "kinds",
    "async",
    "trust",
)


@dataclass(frozen=True)
class BenchOptions:
    """Measure this machine. Rows say versions and device. Nothing else should run meanwhile."""

    # physics, update, round, run, memory, scaling, compile, peers, envs, kinds, async or trust
    what: tyro.conf.Positional[str]
    env: str = "half_cheetah/direction"  # task family on MuJoCo
    backend: str = "auto"  # physics: auto, native, fused or mjx
    # environments (physics, envs), episodes (kinds), clients (async), selected clients (update, round, peers, trust),
    # seeds (run), devices (scaling), N,M,... (memory)
    sizes: str | None = None
    repeats: int = 5  # timed calls of each, taken in turn; medians are shown
    out: Path | None = None  # also write the rows to this JSON file
    json: bool = False  # print JSON

    def __post_init__(self) -> None:
        _one_of("what", self.what, BENCHES)
        _one_of("env", self.env, registry.names("environment"))
        _one_of("backend", self.backend, ("auto", "native", "fused", "mjx"))
        _at_least("repeats", self.repeats, 1)
        if self.out and self.out.exists():
            raise ConfigError(f"--out {self.out} exists; choose another name")
        if self.out and not self.out.resolve().parent.is_dir():
            raise ConfigError(f"--out {self.out}: there is no directory {self.out.resolve().parent}")
        self.numbers()

    def numbers(self) -> tuple[int, ...]:
        """The sizes as numbers; empty for the benchmark's own."""
        try:
            numbers = tuple(int(part) for part in self.sizes.split(",")) if self.sizes else ()
        except ValueError:
            numbers = (0,)
        if any(number < 1 for number in numbers) or (self.what == "memory" and len(numbers) % 2):
            raise ConfigError(f"--sizes {self.sizes}: must be integers from 1, separated by commas (memory: N,M pairs)")
        return numbers


@dataclass(frozen=True)
class DoctorOptions:
    """Check an installation: versions, devices, physics and its speed."""

    json: bool = False  # print JSON


@dataclass(frozen=True)
class ListOptions:
    """Name all algorithms, environments, policies, aggregators, attacks, compressors, presets and server optimizers."""

    json: bool = False  # print JSON


def parse_command(cls: Any, argv: Sequence[str], name: str) -> Any:
    """The options of a command other than train."""
    return parse(cls, argv, f"fedjax-rl {name}", options(cls))


def _at_least(name: str, value: int | None, low: int) -> None:
    if value is not None and value < low:
        raise ConfigError(f"--{name} {value}: must be at least {low}")


def _exclusive(name: str, value: object, other: str, other_value: object) -> None:
    if value not in (None, False) and other_value is not None:
        raise ConfigError(f"--{name} and --{other} exclude each other; give one")


def _one_of(name: str, value: str | None, legal: tuple[str, ...]) -> None:
    if value is not None and value not in legal:
        raise ConfigError(f"--{name} {value}: must be one of {', '.join(legal)}{nearest(value, legal)}")

"""New runs, and runs by their directories."""

from collections.abc import Callable, Collection, Iterable, Mapping, Sequence
from itertools import islice
from os import PathLike
from pathlib import Path
from typing import Any

from fedjax_rl import config as configuration
from fedjax_rl.api.opened import Run, bring
from fedjax_rl.config import Config, ConfigError, presets
from fedjax_rl.host import output
from fedjax_rl.reports import tables
from fedjax_rl.runs import locking, rundir, runner, scoring
from fedjax_rl.runs import sweep as sweeps
from fedjax_rl.runs.progress import Reporter
from fedjax_rl.runs.recorder import Callback, Hooks, Logger


class Runs(tuple[Run, ...]):
    """The runs of a sweep: a tuple of `Run`."""

    def report(self) -> list[dict[str, Any]]:
        """Summarise the runs, as `fedjax-rl report --json` does.

        Returns:
          A row for each group of runs that differ in their seeds alone, and for each kind of clients. Keys: "group",
          "clients", "seeds", "diverged" (so many more seeds, which are in no mean), "env_steps", "adapt_0", "adapt_1",
          ... (mean returns), "adapt_1_ci95" (half of the 95 % interval over seeds), ...
        """
        return tables.rows([run.path for run in self], output.inform)

    def _repr_html_(self) -> str:
        rows = self.report()
        columns = list(dict.fromkeys(key for row in rows for key in row))
        text = lambda x: f"{x:.1f}" if isinstance(x, float) else str(x)
        cells = [[text(row.get(key, "")) for key in columns] for row in rows]
        return tables.as_html(f"{len(self)} runs", columns, cells)


def train(
    algorithm: str = "fmrl",
    env: str | None = None,
    *,
    preset: str = presets.DEFAULT,
    out: str | PathLike[str] | None = None,
    seed: int = 0,
    loggers: Iterable[Logger | Callable[[], Logger]] = (),
    callbacks: Iterable[Callback] = (),
    quiet: bool = False,
    **values: Any,
) -> Run:
    """Train a federation to its last round and evaluate it, as `fedjax-rl train` does.

    It works in a thread too, where no signal is caught.

    Args:
      algorithm: a name of `fedjax-rl list`, a registered one, or module:name.
      env: likewise; by default the preset's or the algorithm's, which is half_cheetah/direction for most.
      preset: where options that are not given have their values: "laptop", "tiny", or another of `fedjax-rl list`.
      out: the run's directory; by default a new one in runs/.
      seed: of every random draw.
      loggers: `TensorBoard`, `WandB` or your own; see `Logger`. A class is called for each run.
      callbacks: see `Callback`.
      quiet: no progress on stderr.
      values: options of the algorithm, as they are called in config.toml: rounds=100, server_lr=1e-3, ...

    Returns:
      The run. It is finished, or a callback ended it.

    Raises:
      ConfigError: a value, or the directory, is not what it has to be.
      Diverged: the server's state is not finite any more.

    >>> run = train("fedavg", "navigation", preset="tiny", out=directory / "run", quiet=True)
    >>> run.evaluate(adapt_steps=1).shape
    (8, 2)
    """
    config = _configured(algorithm, env, preset, {"seed": seed, **values})
    with locking.directory(Path(out) if out is not None else None, config) as directory:
        rundir.refuse_existing(directory)
        return bring(directory, config, quiet, loggers, callbacks)


def sweep(
    algorithm: str = "fmrl",
    env: str | None = None,
    *,
    seeds: Iterable[int] = range(3),
    grid: Mapping[str, Sequence[Any]] | None = None,
    halvings: int = 0,
    preset: str = presets.DEFAULT,
    out: str | PathLike[str] | None = None,
    loggers: Iterable[Logger | Callable[[], Logger]] = (),
    callbacks: Iterable[Callback] = (),
    quiet: bool = False,
    **values: Any,
) -> Runs:
    """Train every point of a grid with every seed, as `fedjax-rl sweep` does. Runs that can share a program do.

    Source of the halvings: Jamieson, Talwalkar, "Non-stochastic Best Arm Identification and Hyperparameter
    Optimization", AISTATS 2016.

    Args:
      seeds: of the runs at each point of the grid.
      grid: {"server_lr": [5e-4, 1e-3], ...}: every combination is run.
      halvings: h. After 1/2^h, ..., 1/2 of the rounds only the better half of the grid's points goes on. 0: all do.
      algorithm, env, preset, out, quiet, values: as for `train`.
      callbacks: as for `train`; a run that one ends is ranked by its last evaluation. If it is of the better half, it
        goes on like the others.
      loggers: as for `train`; give a class, so that each run has its own.

    Returns:
      The runs that went to the last round, and those that diverged on the way (`Run.diverged`).

    Raises:
      ConfigError: a value, a key of the grid, or the directory, is not what it has to be.

    >>> grid = {"server_lr": [0.01, 0.1]}
    >>> runs = sweep("fedavg", "navigation", preset="tiny", seeds=[0], grid=grid, out=directory / "sweep", quiet=True)
    >>> [row["group"] for row in runs.report() if row["clients"] == "all"]
    ['fedavg server_lr=0.01', 'fedavg server_lr=0.1']
    """
    if "seed" in values:
        raise ConfigError(f"seed = {values['seed']!r}: a sweep takes seeds, such as range(5) or [0, 3, 7]")
    config = _configured(algorithm, env, preset, values)
    _refuse_grid(grid or {}, sweeps.sweepable(config))
    if not isinstance(seeds, Iterable):
        raise ConfigError(f"seeds = {seeds}: must be several, such as range({seeds}) or [{seeds}]")
    if not (numbers := list(islice(seeds, sweeps.MOST_MEMBERS + 1))):  # more are refused, and may be without end
        raise ConfigError("seeds: give one or more, such as range(3)")
    reporter, hooks = Reporter(quiet), Hooks(tuple(loggers), tuple(callbacks))
    with locking.directory(Path(out) if out is not None else None, config, "sweep") as directory:
        rundir.refuse_existing(directory)
        named = sweeps.members(config, grid or {}, numbers, directory, halvings)
        members = runner.begin_sweep(named, directory, halvings)
        left = sweeps.halve(members, halvings, lambda some: runner.run_members(some, reporter, hooks), scoring.score_at)
    return Runs(Run(path) for path in left)


def _refuse_grid(grid: Mapping[str, Any], legal: Collection[str]) -> None:
    for key, swept in grid.items():
        if key not in legal:
            raise ConfigError(f"grid: {key!r} cannot be swept{configuration.nearest(key, legal)}")
        if isinstance(swept, str) or not isinstance(swept, Collection):
            raise ConfigError(f"grid: {key} = {swept!r}: must be a list of values, such as [{swept!r}]")
        if len(swept) == 0:
            raise ConfigError(f"grid: {key} has no values; give one or more")


def load(directory: str | PathLike[str]) -> Run:
    """Open the run of a directory.

    Opening a run imports the code that its files name. Open the runs of others only where you would run their code.

    Args:
      directory: as `train` or `fedjax-rl train` made it.

    Returns:
      The run, finished or not.

    Raises:
      ConfigError: it holds no run, or its configuration is damaged.

    >>> load(directory / "run").config.algorithm
    'fedavg'
    """
    rundir.open_run(Path(directory))
    return Run(Path(directory))


def _configured(algorithm: str, env: str | None, preset: str, values: Mapping[str, Any]) -> Config:
    given = {"env": env} if env is not None else {}
    lists = {key: tuple(value) if isinstance(value, list) else value for key, value in values.items()}
    return configuration.build(algorithm, presets.preset(preset, algorithm, env), given, lists)

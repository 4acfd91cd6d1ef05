"""Runs on the disk as objects."""

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from os import PathLike
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from fedjax_rl import statistics
from fedjax_rl.config import Config, ConfigError
from fedjax_rl.host.numerics import pinned
from fedjax_rl.reports import film, film_asked, film_gif, tables
from fedjax_rl.runs import assemble, checkpoint, models, records, resuming, rundir, runner, scoring
from fedjax_rl.runs.acting import acting
from fedjax_rl.runs.progress import Reporter
from fedjax_rl.runs.recorder import Callback, Hooks, Logger


@dataclass(frozen=True)
class Run:
    """A run on the disk, finished or not. `load` opens it, `train` makes it.

    Nothing is remembered but the path: what is read is what the directory holds at that moment.

    Attributes:
      path: the run's directory.

    >>> run = load(directory / "run")
    >>> run.config.rounds, run.history["round"].tolist()
    (2, [1, 2])
    >>> run.returns["eval"].shape
    (8, 4)
    """

    path: Path

    @property
    def config(self) -> Config:
        """Every value of the run. A ConfigError where its file is damaged."""
        return rundir.open_run(self.path)

    @property
    def diverged(self) -> int | None:
        """The round in which the server's state ceased to be finite; None: it did not."""
        return rundir.diverged(self.path)

    @property
    def history(self) -> dict[str, np.ndarray]:
        """Numbers by round: {"round": [R], "env_steps": [R], "train/return/adapt_1": [R], ...}.

        R: rounds done so far. "time" is in seconds of training, without the pauses before a `resume`. NaN: there is no
        such number in a round.
        """
        rows = records.sound(self.path / rundir.METRICS)
        names = dict.fromkeys(name for row in rows for name in row)
        value = lambda x: np.nan if x is None else x
        return {name: np.array([value(row.get(name)) for row in rows]) for name in names}

    @property
    def returns(self) -> dict[str, np.ndarray]:
        """Returns of the last evaluation: {"eval": [N, k+1], "eval_new": [n, k+1]}; {} where there was none.

        They are undiscounted returns of an episode, before adaptation and after each of k steps. "eval": the
        federation's clients. "eval_new": n clients that were never trained on. Under attack, "eval" is of the honest
        clients, and "eval_malicious" of the others.
        """
        rows = [record for record in records.sound(self.path / rundir.EVAL) if record["final"]]
        found = rows[-1] if rows else {}
        names = [name for name in records.EVALUATED if f"{name}/returns" in found]
        return {name: np.array(found[f"{name}/returns"], float) for name in names}

    @pinned()
    def state(self, step: int | None = None, best: bool = False) -> Any:
        """The federation's state at a checkpoint.

        Args:
          step: the checkpoint's round; by default the newest good one.
          best: the checkpoint of the best evaluation instead.

        Returns:
          A `State`; the model is its `server.shared`.

        Raises:
          NoCheckpoint: there is none, or none was evaluated and the best one is asked for.
        """
        directory = self.path / rundir.CHECKPOINTS
        step = checkpoint.asked_step(directory, step, best)
        return checkpoint.restore(directory, assemble.abstract_state(self._made), _say, step).state

    @pinned()
    def evaluate(
        self,
        clients: str | int = "all",
        adapt_steps: int | None = None,
        adapt_lr: float | Sequence[float] = (),
        *,
        step: int | None = None,
        best: bool = False,
    ) -> np.ndarray:
        """Measure what adaptation makes of the policy for each client.

        Args:
          clients: "all", "new" (never trained on), or how many of the federation's first clients.
          adapt_steps: k, 0 to 100; the run's own by default.
          adapt_lr: a rate, or one for each step, the last one for those that follow; the run's own by default.
          step, best: of the checkpoint, as for `state`.

        Returns:
          Undiscounted returns [N, k+1] of an episode, before adaptation and after each step. NaN: the model of that
          client is not finite.

        Raises:
          ConfigError: a value is not legal.
          NoCheckpoint: there is no checkpoint.
        """
        rates = tuple(np.atleast_1d(np.asarray(adapt_lr, float)).tolist())
        if rates and self._made.config.learns_rates:
            raise ConfigError(
                f"adapt_lr: {self._made.config.algorithm} adapts with the rates that it learned; leave it"
            )
        if not all(0 <= rate <= 100 for rate in rates):
            raise ConfigError(f"adapt_lr = {adapt_lr!r}: must be numbers from 0 to 100")
        _refuse("adapt_steps =", 0 if adapt_steps is None else adapt_steps, 100)
        evaluation = scoring.make_evaluation(self._made, rates, adapt_steps)
        state, config = self.state(step, best), self._made.config
        if clients == "new":
            return np.array(scoring.new_clients(evaluation, state, config.new_clients or 100))
        count: Any = config.num_clients if clients == "all" else clients
        _refuse("clients =", count, config.num_clients, "'all', 'new' or an integer", 1)
        return np.array(scoring.old_clients(evaluation, state, count))

    @pinned()
    def policy(
        self, client: int, adapt_steps: int = 1, *, step: int | None = None, best: bool = False
    ) -> Callable[..., np.ndarray]:
        """Make the function with which a client acts after adaptation.

        Args:
          client: its number, 0 to N - 1.
          adapt_steps: steps of adaptation, 0 to 100; 0: none.
          step, best: of the checkpoint, as for `state`.

        Returns:
          A function obs [O] or [B, O] -> action [A] or [B, A], in NumPy. The action is the one of the greatest density.
          With the argument rng, such as numpy.random.default_rng(0), it is a sample.

        Raises:
          ConfigError: a value is not legal.
          NoCheckpoint: there is no checkpoint.

        >>> load(directory / "run").policy(client=3, adapt_steps=0)([0.1, -0.2]).shape
        (2,)
        """
        made, state = self._made, self.state(step, best)
        _refuse("client", client, made.config.num_clients - 1)
        _refuse("adapt_steps =", adapt_steps, 100)
        before, after = scoring.adapted(made, state, jnp.array([client]), adapt_steps)
        params = jax.tree.map(lambda x: x[0], after if adapt_steps else before)
        return acting(models.make_policy(made.config, made.env.spec), made.env.spec, params)

    @pinned()
    def render(
        self,
        out: str | PathLike[str],
        clients: Sequence[int] = (0,),
        adapt_steps: int = 1,
        *,
        step: int | None = None,
        best: bool = False,
    ) -> Path:
        """Film clients before and after adaptation, side by side, as `fedjax-rl render` does.

        Args:
          out: the file, a new one: .html (a viewer for a browser) or .gif (needs Pillow, and for robots OpenGL: without
            a display, set MUJOCO_GL=egl before Python starts). Environments of gym/ have GIFs alone.
          clients: their numbers, each 0 to N - 1; one below the other.
          adapt_steps: steps of adaptation between before and after, at least 1.
          step, best: of the checkpoint, as for `state`.

        Returns:
          The file.

        Raises:
          ConfigError: a value is not legal, the environment has no picture, or Pillow or OpenGL is missing.
          NoCheckpoint: there is no checkpoint.
        """
        path = Path(out)
        film_asked.refuse(path, adapt_steps)
        film_asked.refuse_clients(clients, self.config)
        if path.suffix == ".gif":
            film_gif.prepare(self.config.env)
        film.render(self._made, self.state(step, best), path, tuple(clients), adapt_steps)
        return path

    def resume(
        self,
        rounds: int | None = None,
        *,
        loggers: Iterable[Logger | Callable[[], Logger]] = (),
        callbacks: Iterable[Callback] = (),
        quiet: bool = False,
    ) -> "Run":
        """Go on from the newest good checkpoint to the last round, and evaluate. A finished run stays as it is.

        Args:
          rounds: a new last round, not below those done already; by default the run's own.
          loggers, callbacks, quiet: as for `train`.

        Returns:
          The run.

        Raises:
          ConfigError: a value, or the directory, is not what it has to be.
          Diverged: the server's state is not finite any more.
          NoCheckpoint: the run had checkpoints, and none can be used.
        """
        config = self.config if rounds is None else replace(self.config, rounds=rounds)
        return bring(self.path, config, quiet, loggers, callbacks)

    @cached_property
    def _made(self) -> assemble.Assembled:
        return assemble.make_run(self.config)

    def _repr_html_(self) -> str:
        rows = [
            (name, *[statistics.cell(*statistics.mean_ci95(column)) for column in returns.T.tolist()])
            for name, returns in self.returns.items()
        ]
        config = self.config
        title = f"{config.algorithm} on {config.env}, seed {config.seed}: {self.path}"
        columns = ("", *[f"{j} steps" for j in range(max((len(row) - 1 for row in rows), default=0))])
        return tables.as_html(title, columns, rows or [("not finished",)])


def bring(path: Path, config: Config, quiet: bool, loggers: Iterable, callbacks: Iterable) -> Run:
    """Bring a run to its last round and evaluation; what is finished stays as it is, and whatever ends it is raised."""
    config = runner.with_engine(path, config)
    if not resuming.rounds_done(path, config):
        reporter = Reporter(quiet or rundir.is_reader())
        runner.run_group([config], [path], reporter, Hooks(tuple(loggers), tuple(callbacks)))
    return Run(path)


def _refuse(what: str, value: Any, most: int, kind: str = "an integer", least: int = 0) -> None:
    if isinstance(value, bool) or not (isinstance(value, int | np.integer) and least <= value <= most):
        raise ConfigError(f"{what} {value!r}: must be {kind}, {least} to {most}")


def _say(line: str) -> None:
    Reporter(quiet=False).warn(line)

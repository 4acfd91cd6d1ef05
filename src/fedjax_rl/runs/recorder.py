"""What happens to a run's numbers: lines in its directory, and whoever else wants to see them.

All of it is on the host, between rounds. A logger only looks; a callback may end a run.
"""

import time
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple, Protocol

from fedjax_rl.config import Config
from fedjax_rl.federation.metrics import ARRIVALS
from fedjax_rl.runs import records, rundir


class Logger(Protocol):
    """Sees a run's numbers. Any object with these three methods is one.

    What it raises is said once, and then the run goes on without it.
    """

    def start(self, config: Mapping[str, Any], directory: Path) -> None:
        """Called before the first round of this process.

        Args:
          config: every value of the run, and the algorithm's name under "algorithm".
          directory: the run's.
        """

    def log(self, record: Mapping[str, float | None], round: int, env_steps: int) -> None:
        """Called after a round, and after an evaluation.

        Args:
          record: numbers by name, such as "train/return/adapt_1" or "eval/return/adapt_1".
          round: rounds done.
          env_steps: environment steps done.
        """

    def finish(self, summary: Mapping[str, Any]) -> None:
        """Called after the last evaluation.

        Args:
          summary: means and intervals by kind of clients ("eval", "eval_new"); {} where there was no evaluation.
        """


class Callback(Protocol):
    """May end a run. Any object with these two methods is one.

    It is asked after the records are written, for each run of a sweep by itself. A run that it ends is saved and
    evaluated; it is not finished, and `resume` goes on with it. What it raises ends all that trains, as an error.
    """

    def after_round(self, directory: Path, record: Mapping[str, float | None]) -> bool | None:
        """Called after a round.

        Args:
          directory: the run's.
          record: the round's line of metrics.jsonl, numbers by name.

        Returns:
          True to end the run.
        """

    def after_evaluation(self, directory: Path, returns: Sequence[Sequence[float]]) -> bool | None:
        """Called after an evaluation between rounds.

        Args:
          directory: the run's.
          returns: [n][k+1] of n clients, before adaptation and after each of k steps.

        Returns:
          True to end the run.
        """


class Hooks(NamedTuple):
    """Who looks on. A logger that is callable (a class, say) is made anew for each run."""

    loggers: tuple[Logger | Callable[[], Logger], ...] = ()
    callbacks: tuple[Callback, ...] = ()


class Recorder:
    """One run's numbers, from the round that it goes on from.

    Args:
      directory: the run's.
      config: its values.
      env_steps: (rounds, arrivals or None) -> environment steps so far.
      hooks: who looks on.
      warn: says a line that nobody may miss.
    """

    def __init__(
        self,
        directory: Path,
        config: Config,
        env_steps: Callable[[int, int | None], int],
        hooks: Hooks,
        warn: Callable[[str], None],
    ) -> None:
        self.directory, self.warn, self.callbacks = directory, warn, hooks.callbacks
        self._env_steps = env_steps
        rows = records.read(directory / rundir.METRICS).rows
        self._arrivals = rows[-1].get(ARRIVALS) if rows else None
        self._began = time.perf_counter() - (rows[-1].get("time") or 0.0 if rows else 0.0)
        self._loggers: list[Any] = []
        for new in () if rundir.is_reader() else hooks.loggers:
            try:
                self._loggers.append(new() if callable(new) else new)
            except Exception as error:  # tracking must not end a run
                self._say_dropped(getattr(new, "__name__", type(new).__name__), error)
        self._tell("start", {"algorithm": config.algorithm, **vars(config)}, directory)

    def round(self, row: Mapping[str, Any], participants: Mapping[str, Any]) -> bool:
        """Record a round; does a callback ask for the end?"""
        number = row["round"]
        self._arrivals = row.get(ARRIVALS)
        steps = self._env_steps(number, self._arrivals)
        row = {**row, "env_steps": steps, "time": time.perf_counter() - self._began}
        rundir.append(self.directory / rundir.METRICS, row)
        rundir.append(self.directory / rundir.PARTICIPANTS, {"round": number, **participants})
        self._tell("log", {key: value for key, value in row.items() if key != "round"}, number, steps)
        return any([callback.after_round(self.directory, row) for callback in self.callbacks])

    def evaluation(self, record: Mapping[str, Any], returns: Sequence[Sequence[float]] = ()) -> bool:
        """Record an evaluation; does a callback ask for the end? `returns` of one between rounds."""
        rundir.append(self.directory / rundir.EVAL, record, sync=True)
        means = {key: value["mean"] for key, value in record.items() if isinstance(value, Mapping)}
        self._tell("log", means, record["round"], self._env_steps(record["round"], self._arrivals))
        asked = [callback.after_evaluation(self.directory, returns) for callback in self.callbacks if returns]
        return any(asked)

    def finish(self, summaries: Mapping[str, Any]) -> None:
        """The run is over."""
        self._tell("finish", summaries)

    def _tell(self, what: str, *args: Any) -> None:
        for logger in tuple(self._loggers):
            try:
                getattr(logger, what)(*args)
            except Exception as error:  # tracking must not end a run
                self._say_dropped(f"{type(logger).__name__}.{what}", error)
                self._loggers.remove(logger)

    def _say_dropped(self, what: str, error: Exception) -> None:
        reason = (str(error).strip().splitlines() or ["?"])[0]
        self.warn(f"{self.directory}: {what} failed, so it is dropped: {type(error).__name__}: {reason}")

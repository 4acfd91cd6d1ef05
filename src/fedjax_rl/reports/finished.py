"""Finished runs on the disk, gathered into groups that differ in more than their seed. Imports no jax."""

from collections.abc import Callable, Iterable, Sequence
from dataclasses import fields, replace
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from fedjax_rl.config import EXECUTION, Config, ConfigError
from fedjax_rl.host.files import explain
from fedjax_rl.runs import records, rundir


class LeftOut(Exception):
    """Why a run has nothing to report."""


class FinishedRun(NamedTuple):
    """A run whose last evaluation was made; `config.rounds` is the round of that evaluation.

    One that diverged has no returns.
    """

    path: Path
    config: Config
    returns: dict[str, np.ndarray]  # {"eval": [N, k+1], "eval_new": [n, k+1]}: before adaptation and after each step
    rounds: list[dict[str, Any]]  # metrics.jsonl up to that round


class Setting(NamedTuple):
    """Runs of one configuration, one a seed, in the order of their seeds; and the seeds that diverged on the way."""

    label: str
    runs: tuple[FinishedRun, ...]
    diverged: tuple[int, ...] = ()

    @property
    def seeds(self) -> list[int]:
        """One a run."""
        return [run.config.seed for run in self.runs]

    def scores(self, name: str) -> np.ndarray:
        """Returns [S, N, k+1]; of new clients, whose number may differ, the first that all seeds have."""
        returns = [run.returns[name] for run in self.runs]
        count = min(map(len, returns))
        return np.stack([rows[:count] for rows in returns])

    def env_steps(self) -> int | None:
        """Environment steps of one run up to its last evaluation, the mean over the runs; None where none kept them."""
        lasts = [positions(run, "env_steps")[-1] for run in self.runs if run.rounds]
        return round(float(np.mean(lasts))) if lasts else None

    def clock(self) -> dict[str, float]:
        """What the runs' clocks show at the end, means over the runs; {} where a run kept no time."""
        found = [spent(run.rounds) for run in self.runs]
        return {name: float(np.mean([one[name] for one in found])) for name in SPENT} if all(found) else {}

    def curve(self, name: str, axis: str = "env_steps") -> tuple[np.ndarray, np.ndarray] | None:
        """(positions [R], values [S, R]) of a metric along an axis of AXES, or None if a run does not have it.

        Where the seeds have different positions, values are interpolated linearly between those that all have reached.
        """
        numbers = set.intersection(*[{row["round"] for row in run.rounds} for run in self.runs])
        rows = [[row for row in run.rounds if row["round"] in numbers] for run in self.runs]
        if not numbers or not all(row.get(name) is not None for run in rows for row in run):
            return None
        x = np.array([positions(run._replace(rounds=some), axis) for run, some in zip(self.runs, rows, strict=True)])
        values = np.array([[row[name] for row in run] for run in rows], float)
        if (x == x[0]).all():
            return x[0], values
        common = np.linspace(x[:, 0].max(), x[:, -1].min(), x.shape[1])
        return common, np.array([np.interp(common, *pair) for pair in zip(x, values, strict=True)])


SPENT = ("virtual_time", "updates", "staleness", "uploads")


def spent(rounds: Sequence[dict[str, Any]]) -> dict[str, float]:
    """What a run's clock shows after its rounds: time, updates, mean staleness of the arrivals, and messages sent."""
    if not rounds or "clock/time" not in rounds[-1]:
        return {}
    last = rounds[-1]
    arrivals = np.diff([0, *[row.get("clock/arrivals", row["round"]) for row in rounds]])
    ages = [row.get("clock/staleness_mean", 0.0) for row in rounds]
    values = (
        last["clock/time"],
        last.get("clock/updates", last["round"]),
        float(np.average(ages, weights=arrivals)),
        sum(row["comm/uploads"] for row in rounds),
    )
    return dict(zip(SPENT, values, strict=True))


def positions(run: FinishedRun, axis: str) -> np.ndarray:
    """Where a run is after each of its rounds [R], along an axis of AXES."""
    rows = run.rounds
    if axis == "env_steps":
        # of earlier versions speed times time, because the horizon is the environment's
        rate = lambda row: row["round"] * round(row["sys/env_steps_per_s"] * row["sys/round_s"])
        return np.array([row["env_steps"] if "env_steps" in row else rate(row) for row in rows])
    if axis == "virtual_time":  # where no time is kept a round takes one unit
        return np.array([row.get("clock/time", row["round"]) for row in rows], float)
    if axis == "uploads":
        some = run.config.clients_per_round
        return np.cumsum([row.get("comm/uploads", some - (row.get("health/dropped_clients") or 0)) for row in rows])
    if axis == "bytes":
        return np.cumsum([row["comm/up_bytes"] + row["comm/down_bytes"] for row in rows])
    return np.array([row["round"] for row in rows])


AXES = {
    "env_steps": "environment steps",
    "rounds": "rounds",
    "virtual_time": "virtual time [units of a job]",
    "uploads": "messages sent to the server",
    "bytes": "bytes sent up and down",
}


def gather(paths: Iterable[Path], warn: Callable[[str], None]) -> list[Setting]:
    """The groups of all runs at and below `paths`, in the order in which their first runs come."""
    runs: list[FinishedRun] = []
    left_out: list[str] = []
    for path in {found.resolve(): found for root in paths for found in find(root)}.values():  # named twice: once
        try:
            runs.append(read(path))
        except LeftOut as reason:
            left_out.append(f"{path} is left out: {reason}")
    if not runs:
        why = "; ".join(left_out[:3])
        raise ConfigError(f"no run has a final evaluation to report ({why}); finish one with: fedjax-rl resume RUN")
    for line in left_out:
        warn(line)
    lost = [run for run in runs if not run.returns]
    runs = [run for run in runs if run.returns]
    for run in lost:
        warn(f"{run.path} diverged in round {rundir.diverged(run.path)}: it has no returns")
    if not runs:
        raise ConfigError("all runs diverged, so there is nothing to report; try a smaller --server-lr or --inner-lr")
    for run in runs:
        missing = run.config.rounds - len(run.rounds)
        if missing:
            warn(f"{run.path}: {rundir.METRICS} lacks {missing} of {run.config.rounds} rounds, and so do its curves")
    envs = sorted({run.config.env for run in runs})
    if len(envs) > 1:
        raise ConfigError(f"the runs are of different environments ({', '.join(envs)}); report one at a time")
    together: dict[tuple, list[FinishedRun]] = {}
    for run in runs:
        together.setdefault(tuple(_identity(run).items()), []).append(run)
    gone: dict[tuple, set[int]] = {}
    for run in lost:
        gone.setdefault(tuple(_identity(run).items()), set()).add(run.config.seed)
    labels = _labels([dict(key) for key in together])
    return [
        Setting(label, _by_seed(members), tuple(sorted(gone.get(key, ()))))
        for label, (key, members) in zip(labels, together.items(), strict=True)
    ]


def find(root: Path) -> list[Path]:
    """The run directories at or below `root`."""
    if not root.is_dir():
        raise ConfigError(f"{root} is not a directory; give a run directory, or one that holds some")
    if (root / rundir.CONFIG).exists():
        return [root]
    planned = rundir.read_sweep(root)[0] if rundir.is_sweep(root) else ()  # one without its files is left out by name
    found = sorted({*(path.parent for path in root.rglob(rundir.CONFIG)), *planned})
    if not found:
        raise ConfigError(f"{root} holds no run: there is no {rundir.CONFIG} in it or below")
    return found


def read(path: Path) -> FinishedRun:
    """A run from its text files alone; one that diverged without its returns.

    Raises:
      LeftOut: it has no final evaluation, or a file is not what was written.
    """
    try:
        config = rundir.open_run(path)
        final = [row for row in records.sound(path / rundir.EVAL) if row["final"]]
        rounds = records.sound(path / rundir.METRICS)
        records.sound(path / rundir.PARTICIPANTS)
    except OSError as error:
        raise LeftOut(explain(error)) from None
    except ConfigError as error:
        raise LeftOut(str(error)) from None
    if rundir.diverged(path):
        return FinishedRun(path, config, {}, rounds)
    if not final:
        raise LeftOut("it has no final evaluation")
    last = final[-1]
    names = [name for name in records.EVALUATED if f"{name}/returns" in last]
    returns = {name: np.array(last[f"{name}/returns"], float) for name in names}
    if not all(np.isfinite(rows).all() for rows in returns.values()):
        raise LeftOut("its final evaluation holds models that were not finite, and have no return; lower --inner-lr")
    rounds = [row for row in rounds if row["round"] <= last["round"]]
    return FinishedRun(path, replace(config, rounds=last["round"]), returns, rounds)


def _identity(run: FinishedRun) -> dict[str, Any]:
    """What separates groups: the algorithm and every value that decides the result, but the seed.

    Runs that ended by their time, or would have, may have unlike rounds.
    """
    config = run.config
    names = [item.name for item in fields(config) if item.name not in EXECUTION | {"seed"}]
    found: dict[str, Any] = {"algorithm": config.algorithm, **{name: getattr(config, name) for name in names}}
    if run.rounds and (config.is_out_of_time(run.rounds[-1]) or (config.max_time and not run.returns)):
        found["rounds"] = "by time"
    return found


def _labels(identities: Sequence[dict[str, Any]]) -> list[str]:
    """The algorithm and the values in which the groups that have the field at all differ."""
    names = dict.fromkeys(name for identity in identities for name in identity if name != "algorithm")
    values = {name: {identity[name] for identity in identities if name in identity} for name in names}
    return [
        " ".join([i["algorithm"], *[f"{n}={_text(v)}" for n, v in i.items() if len(values.get(n, ())) > 1]])
        for i in identities
    ]


def _text(value: Any) -> str:
    return "x".join(map(str, value)) if isinstance(value, tuple) else str(value)


def _by_seed(runs: Sequence[FinishedRun]) -> tuple[FinishedRun, ...]:
    """The runs by seed; the same seed twice would count one piece of evidence as two."""
    seeds: dict[int, FinishedRun] = {}
    for run in runs:
        other = seeds.setdefault(run.config.seed, run)
        if other is not run:
            raise ConfigError(
                f"{other.path} and {run.path} have the same configuration and seed {run.config.seed}; leave one out"
            )
    return tuple(seeds[seed] for seed in sorted(seeds))

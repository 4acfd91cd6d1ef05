"""`fedjax-rl ls` and `fedjax-rl show`: what runs there are, and what is known of one. Imports no jax."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from fedjax_rl import statistics
from fedjax_rl.config import ConfigError
from fedjax_rl.host import output
from fedjax_rl.host.files import explain
from fedjax_rl.reports.finished import find
from fedjax_rl.runs import digest, records, rundir

COLUMNS = ("run", "algorithm", "env", "seed", "rounds", "of", "after_1", "state")


def ls(root: Path, as_json: bool) -> None:
    """Print a line for each run at and below a directory."""
    rows = [row(path) for path in find(root)]
    if as_json:
        output.result(output.as_json(rows))
        return
    cells = [COLUMNS, *[[_text(one.get(name)) for name in COLUMNS] for one in rows]]
    output.result("\n".join(_aligned(cells)))


def show(path: Path, as_json: bool) -> None:
    """Print what is known of one run: its state, values, checkpoints and evaluations."""
    config = rundir.open_run(path)
    values = {"algorithm": config.algorithm, **vars(config)}
    evaluations = [
        {"round": record["round"], "final": record["final"], **_means(record)}
        for record in records.sound(path / rundir.EVAL)
    ]
    saved = sorted(digest.steps(path / rundir.CHECKPOINTS))
    if as_json:
        output.result(output.as_json({**row(path), "config": values, "checkpoints": saved, "evaluations": evaluations}))
        return
    about = {name: value for name, value in row(path).items() if name == "rounds" or name not in values}
    lines = [f"{name}: {_text(value)}" for name, value in about.items() if value is not None]
    lines += [f"checkpoints: {', '.join(map(str, saved)) or 'none'}", "", "values:"]
    lines += [f"  {name} = {value!r}" for name, value in values.items()]
    if evaluations:
        names = list(dict.fromkeys(name for record in evaluations for name in record))
        lines += ["", "evaluations (means over clients):"]
        cells = [names, *[[_text(record.get(name)) for name in names] for record in evaluations]]
        lines += [f"  {line}" for line in _aligned(cells)]
    output.result("\n".join(lines))


def row(path: Path) -> dict[str, Any]:
    """A run in short: rounds done and asked for, the mean return after one step, and its state.

    States: finished, diverged, "can go on" (there is a checkpoint), "not begun" (there is none), or what is wrong.
    """
    try:
        config = rundir.open_run(path)
        rounds = records.sound(path / rundir.METRICS)
        records.sound(path / rundir.PARTICIPANTS)
        finals = [record for record in records.sound(path / rundir.EVAL) if record["final"]]
    except (ConfigError, OSError) as error:
        return {"run": str(path), "state": explain(error) if isinstance(error, OSError) else str(error)}
    done = rounds[-1]["round"] if rounds else 0
    if (path / rundir.DIVERGED).exists():
        state = "diverged"
    elif finals and (finals[-1]["round"] >= config.rounds or (rounds and config.is_over(rounds[-1]))):
        state = "finished"
    else:
        state = "can go on" if rundir.has_checkpoint(path) else "not begun"
    after = _means(finals[-1]).get("eval_1") if finals else None
    about = {"run": str(path), "algorithm": config.algorithm, "env": config.env, "seed": config.seed}
    return {**about, "rounds": done, "of": config.rounds, "after_1": after, "state": state}


def _means(record: dict[str, Any]) -> dict[str, float]:
    """{"eval_0": mean over all clients before adaptation, "eval_1": after a step, "eval_new_0": of new ones, ...}."""
    return {
        f"{kind}_{j}": statistics.mean_ci95([line[j] for line in record[f"{kind}/returns"]])[0]
        for kind in records.EVALUATED
        if f"{kind}/returns" in record
        for j in range(len(record[f"{kind}/returns"][0]))
    }


def _aligned(cells: Sequence[Sequence[str]]) -> list[str]:
    widths = [max(map(len, column)) for column in zip(*cells, strict=True)]
    return ["  ".join(cell.ljust(w) for cell, w in zip(line, widths, strict=True)).rstrip() for line in cells]


def _text(value: Any) -> str:
    return "-" if value is None else f"{value:.1f}" if isinstance(value, float) else str(value)

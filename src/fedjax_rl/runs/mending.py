"""A run directory made fit to go on: records past a round forgotten, damaged files set aside, what is lost said."""

import itertools
from collections.abc import Callable, Iterable
from pathlib import Path

from fedjax_rl.config import Config
from fedjax_rl.config.sources import loads
from fedjax_rl.host.files import write_text
from fedjax_rl.runs import digest, records
from fedjax_rl.runs.records import EVAL, METRICS, PARTICIPANTS, Row
from fedjax_rl.runs.rundir import CHECKPOINTS, DIVERGED, KEEP, REJECTED, by_the_writer, write_config


@by_the_writer
def go_back(path: Path, config: Config, round: int, say: Callable[[str], None]) -> None:
    """Make the directory what it was after a round, with the configuration that it goes on with.

    A file of records with a fault is set aside, and what is missing in the new one is said.
    """

    def keep(row: Row) -> bool:  # an evaluation after the last round will be made again
        return row["round"] <= round and not (row.get("final") and row["round"] == config.rounds)

    for name in (METRICS, EVAL, PARTICIPANTS):
        forget(path / name, keep, say)
    for name, wanted in _wanted(path, config, round).items():
        missing = sorted(wanted - {row["round"] for row in records.read(path / name).rows})
        if missing:
            say(f"{path / name} lacks {_rounds(missing)}: their records are lost, the run is not")
    (path / DIVERGED).unlink(missing_ok=True)
    write_config(path, config)


def _wanted(path: Path, config: Config, round: int) -> dict[str, set[int]]:
    """The rounds of which each file of records had a line, of those up to `round`.

    Participants are of the versions that also counted steps. Evaluations are of what the newest checkpoint was saved
    under, since eval_every and the rounds may be others now; the round that ends a run has none between rounds.
    """
    rows, text = records.read(path / METRICS).rows, digest.saved_config(path / CHECKPOINTS)
    then = loads(text) if text else config
    every = range(then.eval_every, min(round + 1, then.rounds), then.eval_every) if then.eval_every else ()
    return {
        METRICS: {*range(1, round + 1)},
        EVAL: {*every} - {row["round"] for row in rows if then.is_out_of_time(row)},
        PARTICIPANTS: {row["round"] for row in rows if "env_steps" in row},
    }


@by_the_writer
def refuse_unreadable(path: Path) -> None:
    """An OSError where a file of records cannot be read, before anything of the run is written."""
    for name in (METRICS, EVAL, PARTICIPANTS):
        records.read(path / name)


@by_the_writer
def forget(path: Path, keep: Callable[[Row], bool], say: Callable[[str], None]) -> None:
    """Drop the records that a resumed run writes again, so that each is there exactly once."""
    if not path.exists():
        return
    rows, faults = records.read(path)
    kept = records.text([row for row in rows if keep(row)])
    if faults:
        aside = set_aside(path.parent, path)
        say(f"{path.parent}: {faults[0]}" + (f" (and {len(faults) - 1} more)" if faults[1:] else "") + f"; see {aside}")
    if faults or path.read_bytes() != kept.encode():
        write_text(path, kept)


def newest_covered(path: Path, say: Callable[[str], None]) -> int | None:
    """The step from which a resume makes lost records again; None where the newest step is as good as any.

    Only the newest few steps are looked at: a handful of rounds is made again for the sake of a record, not the run.
    """
    newest = digest.steps(path / CHECKPOINTS)[:KEEP]
    covered = records.read(path / METRICS).covered()
    step = next((step for step in newest if step <= covered), None)
    if not newest or step in (None, newest[0]):
        return None
    say(f"{path / METRICS} has no sound record of round {covered + 1}: going back to step {step}, to make it again")
    return step


def set_aside(run: Path, *paths: Path) -> Path:
    """Move what was rejected into the run's REJECTED, under one number; where the first one is now."""
    home = run / REJECTED
    home.mkdir(exist_ok=True)
    taken = {item.name.partition("-")[0] for item in home.iterdir()}
    number = next(n for n in itertools.count() if str(n) not in taken)
    for path in paths:
        if path.exists():
            path.rename(home / f"{number}-{path.name}")
    return home / f"{number}-{paths[0].name}"


def _rounds(numbers: Iterable[int]) -> str:
    """'rounds 1 to 3, 7' of the numbers 1, 2, 3, 7."""
    parts: list[list[int]] = []
    for number in numbers:
        if parts and number == parts[-1][1] + 1:
            parts[-1][1] = number
        else:
            parts.append([number, number])
    return "rounds " + ", ".join(f"{low} to {high}" if high > low else str(low) for low, high in parts)

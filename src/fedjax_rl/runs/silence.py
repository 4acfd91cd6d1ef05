"""Rounds in which nobody was heard: said once, and no success at the end of a run."""

import itertools
from pathlib import Path
from typing import Any

import numpy as np

from fedjax_rl.config import Config, trust
from fedjax_rl.runs import records, rundir

LONG = 10  # rounds without a client that was heard, at the end of a run, after which it is no success


def say(rows, who, members, reporter) -> np.ndarray:
    """Say of each member among `who` that nobody was heard in this round; the members [G] of which it is so."""
    silent = np.array([_nobody_heard(row, one.config) for row, one in zip(rows, members, strict=True)]) & who
    for i in np.flatnonzero(silent):
        row = rows[i]
        reporter.warn(
            f"{members[i].directory}: nobody was heard in round {row['round']} "
            f"({row['health/nonfinite_clients']} of {_worked(row, members[i].config)} clients were not finite): "
            "the server stays as it is; this is said once"
        )
    return silent


def _nobody_heard(row: dict[str, Any], config: Config) -> bool:
    """Did nobody's work count, of all who worked?"""
    return row.get("health/dropped_clients") == _worked(row, config)


def _worked(row: dict[str, Any], config: Config) -> int:
    """How many clients worked in a round."""
    if "health/padding" in row:
        return trust.at_most_together(config) - row["health/padding"]
    return round(row.get("clock/lanes", 1.0) * config.clients_per_round)


def at_the_end(directory: Path, config: Config) -> int:
    """The number of rounds at the end of a run in which nobody was heard, if it is long or the whole run; else 0."""
    rows = records.read(directory / rundir.METRICS).rows
    count = sum(1 for _ in itertools.takewhile(lambda row: _nobody_heard(row, config), reversed(rows)))
    return count if count >= min(LONG, len(rows)) else 0

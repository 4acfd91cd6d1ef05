"""From the checkpoints of a group's members to the states with which it goes on."""

from collections.abc import Sequence
from pathlib import Path

import jax
import jax.numpy as jnp

from fedjax_rl.config import Config, ConfigError
from fedjax_rl.federation import placement
from fedjax_rl.federation.simulate import State
from fedjax_rl.runs import checkpoint, mending, records, rundir
from fedjax_rl.runs.assemble import Group, abstract_state


def restored_states(group: Group, directories: Sequence[Path], say) -> State:
    """The members' states [G] at the newest step that is good for all; records past it are forgotten.

    A member that is out of time has the state in which it ended: it only waits for the others.
    """
    limits = [mending.newest_covered(directory, say) for directory in directories]
    like, limit = abstract_state(group.run), min((limit for limit in limits if limit is not None), default=None)
    ends = [_end(directory, config) for directory, config in zip(directories, group.configs, strict=True)]
    while True:
        found = [
            checkpoint.restore(directory / rundir.CHECKPOINTS, like, say, at_most=end or limit)
            for directory, end in zip(directories, ends, strict=True)
        ]
        ends = [end if one.step == end else None for one, end in zip(found, ends, strict=True)]
        going = {one.step for one, end in zip(found, ends, strict=True) if end is None}
        if len(going) < 2:
            break
        limit = min(going)
    if (last := max(one.step for one in found)) > group.run.config.rounds:
        raise ConfigError(f"--rounds {group.run.config.rounds}: {last} rounds are done already; ask for more")
    for directory, one in zip(directories, found, strict=True):
        checkpoint.set_aside_after(directory / rundir.CHECKPOINTS, one.step)
    states = jax.tree.map(lambda *leaves: jnp.stack(leaves), *[restored.state for restored in found])
    return placement.whole(states, group.mesh)


def _end(directory: Path, config: Config) -> int | None:
    """The round in which a run came to its max_time, where its records and its state are there; else None."""
    known = records.read(directory / rundir.METRICS)
    last = known.covered()
    is_out = any(row["round"] == last and config.is_out_of_time(row) for row in known.rows[-1:])
    return last if is_out and last in checkpoint.steps(directory / rundir.CHECKPOINTS) else None

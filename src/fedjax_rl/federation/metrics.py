"""What a round shows of itself in numbers."""

from typing import NamedTuple

import jax.numpy as jnp

from fedjax_rl import trees
from fedjax_rl.types import HEALTH, NONFINITE_ENVS, STRAGGLERS, Array, Metrics, Tree

WHO = "who/"  # of metrics [M] that are not numbers of a round but its clients: their ids, and true or false of each
SUSPECT = "health/suspect"  # the first client that is not finite, or one of whose environments was not; -1 for none

ARRIVALS = "clock/arrivals"  # of all clients since the beginning, where each has its own time


class Work(NamedTuple):
    """What became of the work of M clients.

    Attributes:
      ids: [M] who worked.
      heard: [M] bool, did a message of theirs reach the server?
      finite: [M] bool, was it finite, and what they keep?
      present: [M] bool, did they take part, or drop out?
      valid: [M] bool, is the row of a client at all? None: all are.
    """

    ids: Array
    heard: Array
    finite: Array
    present: Array
    valid: Array | None = None


def of_round(work: Work, client_metrics: Metrics, message: Tree, shared: Tree, exchanges: int) -> Metrics:
    """A round's numbers: means over the clients that worked, counts over the selected, and bytes sent up and down."""
    valid = jnp.ones_like(work.heard) if work.valid is None else work.valid
    counts = {name: jnp.where(valid, v, 0) for name, v in client_metrics.items() if name.startswith(HEALTH)}
    means = {name: value for name, value in client_metrics.items() if name not in counts}
    worked = work.finite & work.present & valid
    up = trees.num_bytes(message) * exchanges
    down = trees.num_bytes(shared) * exchanges if up else 0  # those who send nothing, `independent`, are sent nothing
    who = {"selected": jnp.where(valid, work.ids, -1), "unheard": ~work.heard & valid} | {
        name.removeprefix(HEALTH): value > 0 for name, value in counts.items() if name == STRAGGLERS
    }
    suspect = (~work.finite & valid) | (counts.get(NONFINITE_ENVS, jnp.zeros_like(work.ids)) > 0)
    return {
        **{f"train/{name}": mean_where(worked, value) for name, value in means.items()},
        **{name: value.sum() for name, value in counts.items()},
        "health/dropped_clients": (~worked & valid).sum(),
        "health/nonfinite_clients": (~work.finite & valid).sum(),
        **{f"{WHO}{name}": value for name, value in who.items()},
        SUSPECT: jnp.where(suspect.any(), work.ids[jnp.argmax(suspect)], -1),
        "comm/uploads": work.heard.sum(),
        "comm/up_bytes": work.heard.sum() * float(up),
        "comm/down_bytes": valid.sum() * float(down),
    }


def mean_where(chosen: Array, values: Array) -> Array:
    """Mean of values [M] over the chosen ones; NaN when nobody is chosen."""
    return jnp.where(chosen, values, 0.0).sum() / jnp.where(chosen.any(), chosen.sum(), jnp.nan)

"""What a round shows of itself in numbers."""

from typing import NamedTuple

import jax.numpy as jnp

from fedjax_rl.types import HEALTH, NONFINITE_ENVS, STRAGGLERS, Array, Metrics

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
      valid: [M] bool, is the row of a client at all?
      malicious: [M] bool, who does harm; None where nobody does.
    """

    ids: Array
    heard: Array
    finite: Array
    present: Array
    valid: Array
    malicious: Array | None = None


def of_round(work: Work, client_metrics: Metrics, up: float, down: float) -> Metrics:
    """A round's numbers: means over the honest clients that worked, counts over the selected, and bytes sent.

    `up` and `down` are the bytes of one client's messages in the round.
    """
    valid = work.valid
    counts = {name: jnp.where(valid, v, 0) for name, v in client_metrics.items() if name.startswith(HEALTH)}
    means = {name: value for name, value in client_metrics.items() if name not in counts}
    worked = work.finite & work.present & valid
    honest = worked if work.malicious is None else worked & ~work.malicious
    attacked = {} if work.malicious is None else {"health/attacked": (work.malicious & valid).sum()}
    who = {"selected": jnp.where(valid, work.ids, -1), "unheard": ~work.heard & valid} | {
        name.removeprefix(HEALTH): value > 0 for name, value in counts.items() if name == STRAGGLERS
    }
    suspect = (~work.finite & valid) | (counts.get(NONFINITE_ENVS, jnp.zeros_like(work.ids)) > 0)
    return {
        **{f"train/{name}": mean_where(honest, value) for name, value in means.items()},
        **{name: value.sum() for name, value in counts.items()},
        **attacked,
        "health/dropped_clients": (~worked & valid).sum(),
        "health/nonfinite_clients": (~work.finite & valid).sum(),
        **{f"{WHO}{name}": value for name, value in who.items()},
        SUSPECT: jnp.where(suspect.any(), work.ids[jnp.argmax(suspect)], -1),
        "comm/uploads": work.heard.sum(),
        "comm/up_bytes": work.heard.sum() * up,
        "comm/down_bytes": valid.sum() * (down if up else 0.0),  # `independent` sends nothing, and is sent nothing
    }


def sent_once(work: Work, num_clients: int, in_flight: int, up: float, down: float) -> Metrics:
    """What is sent where an update ends all work: a client's arrivals are one message, and all are sent a new model."""
    uploads = jnp.zeros(num_clients, bool).at[work.ids].max(work.heard & work.valid).sum()
    return {
        "comm/uploads": uploads,
        "comm/up_bytes": uploads * up,
        "comm/down_bytes": jnp.asarray(in_flight) * (down if up else 0.0),
    }


def mean_where(chosen: Array, values: Array) -> Array:
    """Mean of values [M] over the chosen ones; NaN when nobody is chosen."""
    return jnp.where(chosen, values, 0.0).sum() / jnp.where(chosen.any(), chosen.sum(), jnp.nan)

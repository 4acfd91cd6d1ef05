"""What a round shows of itself in numbers."""

import jax.numpy as jnp

from fedjax_rl import trees
from fedjax_rl.types import HEALTH, NONFINITE_ENVS, STRAGGLERS, Array, Metrics, Tree

WHO = "who/"  # of metrics [M] that are not numbers of a round but its clients: their ids, and true or false of each
SUSPECT = "health/suspect"  # the first client that is not finite, or one of whose environments was not; -1 for none


def of_round(
    ids: Array, heard: Array, finite: Array, client_metrics: Metrics, message: Tree, shared: Tree, exchanges: int
) -> Metrics:
    """A round's numbers: means over the clients heard, counts over the selected, and bytes sent up and down."""
    counts = {name: value for name, value in client_metrics.items() if name.startswith(HEALTH)}
    means = {name: value for name, value in client_metrics.items() if name not in counts}
    up = trees.num_bytes(message) * exchanges
    down = trees.num_bytes(shared) * exchanges if up else 0  # those who send nothing, `independent`, are sent nothing
    who = {"selected": ids, "unheard": ~heard} | {
        name.removeprefix(HEALTH): value > 0 for name, value in counts.items() if name == STRAGGLERS
    }
    suspect = ~finite | (counts.get(NONFINITE_ENVS, jnp.zeros_like(ids)) > 0)
    return {
        **{f"train/{name}": _mean_where(heard, value) for name, value in means.items()},
        **{name: value.sum() for name, value in counts.items()},
        "health/dropped_clients": (~heard).sum(),
        "health/nonfinite_clients": (~finite).sum(),
        **{f"{WHO}{name}": value for name, value in who.items()},
        SUSPECT: jnp.where(suspect.any(), ids[jnp.argmax(suspect)], -1),
        "comm/up_bytes": heard.sum() * float(up),
        "comm/down_bytes": jnp.asarray(heard.size * float(down)),
    }


def _mean_where(chosen: Array, values: Array) -> Array:
    """Mean of values [M] over the chosen ones; NaN when nobody is chosen."""
    return jnp.where(chosen, values, 0.0).sum() / jnp.where(chosen.any(), chosen.sum(), jnp.nan)

"""What of differential privacy does not fit together, told before any work.

Imports neither jax nor mujoco.
"""

from collections.abc import Iterator
from typing import Any

from fedjax_rl.config import trust
from fedjax_rl.host.exits import ConfigError


def refuse(config: Any) -> None:
    """A ConfigError for what does not fit together."""
    unused = {"dp_noise": 0.0, "dp_epsilon": 0.0, "dp_noise_kind": "white", "dp_quantile": 0.0, "dp_population": 0}
    if not config.dp_clip:
        for name, nothing in {**unused, "dp_where": "central"}.items():
            if getattr(config, name) != nothing:
                raise ConfigError(f"{name} = {getattr(config, name)!r}: only with dp_clip; set that, or leave it")
        return
    if not config.dp_epsilon and not config.dp_noise:
        raise ConfigError("dp_clip: dp_epsilon = 0 and dp_noise = 0; give one of them")
    n = config.dp_population or config.num_clients
    if config.dp_population and config.dp_population < config.num_clients:
        raise ConfigError(
            f"dp_population = {config.dp_population}: must be at least num_clients = {config.num_clients}, or 0"
        )
    if config.dp_delta * n >= 1:
        name = "dp_population" if config.dp_population else "num_clients"
        raise ConfigError(f"dp_delta = {config.dp_delta}: must be below 1/{name} = {1 / n:g}, such as {0.1 / n:g}")
    if config.schedule == "async":
        raise ConfigError("dp_clip: not with schedule = 'async': no accountant covers who arrives when; use 'sync'")
    for why in _misfits_local(config) if config.dp_where == "local" else _misfits_central(config):
        raise ConfigError(why)


def _misfits_local(config: Any) -> Iterator[str]:
    for name, nothing in {"dp_noise_kind": "white", "dp_quantile": 0.0, "dp_population": 0}.items():
        if getattr(config, name) != nothing:
            yield f"{name} = {getattr(config, name)!r}: not with dp_where = 'local', whose clients add white noise"


def _misfits_central(config: Any) -> Iterator[str]:
    if config.attack in trust.READING:
        yield (
            f"dp_clip: not with attack = {config.attack!r}: its liars send on what they read of the honest, so that "
            "one client moves the sum by more than dp_clip; take sign_flip, or dp_where = 'local'"
        )
    if config.aggregator != "mean":
        yield (
            f"dp_clip: not with aggregator = {config.aggregator!r}: its sensitivity is not bounded by "
            "dp_clip/clients_per_round; set aggregator = 'mean', or dp_where = 'local'"
        )
    if config.dp_noise_kind == "banded":
        if config.selection != "cyclic":
            yield f"dp_noise_kind = 'banded': needs selection = 'cyclic', not {config.selection!r}"
        if config.dp_quantile:
            yield f"dp_quantile = {config.dp_quantile}: not with banded noise, which needs one clip for the whole run"
        if config.num_clients == config.clients_per_round:
            yield "dp_noise_kind = 'banded': with all clients in every round a band is one round; use 'white'"
    if config.dp_population and (config.selection != "poisson" or config.dp_noise_kind != "white"):
        yield f"dp_population = {config.dp_population}: needs selection = 'poisson' and white noise"
    if config.dp_population and config.dp_quantile:
        yield f"dp_quantile = {config.dp_quantile}: not with dp_population, whose clients have no norms; set it to 0"
    if config.selection == "poisson" and config.kinds:
        yield "selection = 'poisson': not with kinds, which stand in fixed blocks"
    share = (config.wait_for / config.clients_per_round if config.wait_for else 1.0) * (1.0 - config.dropout)
    low, high = 0.5 - share / 2, 0.5 + share / 2
    if config.dp_quantile and not low < config.dp_quantile < high:
        yield (
            f"dp_quantile = {config.dp_quantile}: only {share:.0%} of the clients come, and the others count as half "
            f"above and half below the clip, which would run away; choose one between {low:g} and {high:g}"
        )
    sigma = config.clients_per_round / 20  # of the noisy count below the clip, as in `private`
    if config.dp_quantile and config.dp_noise >= 2 * sigma:
        yield (
            f"dp_quantile = {config.dp_quantile}: the noisy quantile takes all of dp_noise = {config.dp_noise} from "
            f"{2 * sigma:g} (clients_per_round / 10) on; lower dp_noise, raise clients_per_round, or set it to 0"
        )

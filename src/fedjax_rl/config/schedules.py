"""What of a schedule and its clock does not fit together, told before anything is computed.

Imports neither jax nor mujoco, so that a mistake is answered at once.
"""

from dataclasses import fields
from typing import Any

from fedjax_rl.host.exits import ConfigError

# What only an asynchronous federation has, and as what it changes nothing.
ASYNC = {"in_flight": 0, "buffer": 0, "restart": "now", "harmonic": 0, "staleness": "constant", "fair": False}
SPEED_NAMES = ("equal", "linear", "uniform", "lognormal", "sqrt", "one_slow", "alternate")
NOISE_NAMES = ("none", "lognormal", "shifted", "exponential", "pareto")


def has_clock(config: Any) -> bool:
    """Is time kept? Where all clients wait for each other and take one unit, a round is one, and nobody counts."""
    links = config.up_bandwidth or config.down_bandwidth or config.link_time
    return bool(config.schedule == "async" or config.speed != "equal" or config.delay_noise != "none" or links)


def refuse(config: Any) -> None:
    """A ConfigError for what does not fit together."""
    if config.schedule == "sync":
        _refuse_sync(config)
    else:
        _refuse_async(config)
    if config.max_time and not has_clock(config):
        raise ConfigError(f"max_time = {config.max_time}: no time is kept; give a speed, a delay_noise or links")


def _refuse_sync(config: Any) -> None:
    if config.clients_per_round < 1:
        raise ConfigError(f"clients_per_round = {config.clients_per_round}: must be an integer, 1 to 1e+09; or 0 with "
                          "schedule = 'async'")  # fmt: skip
    defaults = {item.name: item.default for item in fields(config)}
    for name, nothing in ASYNC.items():
        if getattr(config, name) not in (nothing, defaults[name]):
            raise ConfigError(
                f"{name} = {getattr(config, name)!r}: only with schedule = 'async'; set that, or leave it"
            )
    if config.wait_for > config.clients_per_round:
        raise ConfigError(
            f"wait_for = {config.wait_for}: must be at most clients_per_round = {config.clients_per_round}"
        )
    if config.wait_for and config.speed == "equal" and config.delay_noise == "none":
        raise ConfigError(f"wait_for = {config.wait_for}: all are equally fast; give a speed or a delay_noise")


def _refuse_async(config: Any) -> None:
    n, c, k, lanes = config.num_clients, config.in_flight or config.num_clients, config.buffer, config.clients_per_round
    if c > n:
        raise ConfigError(f"in_flight = {c}: must be at most num_clients = {n}")
    if config.wait_for:
        raise ConfigError(f"wait_for = {config.wait_for}: only with schedule = 'sync'; here the buffer is waited for")
    if config.kinds:
        raise ConfigError("kinds: not with schedule = 'async': clients of unlike networks are computed in fixed blocks")
    if config.refuses_async:
        raise ConfigError(f"schedule = 'async': not for {config.algorithm}: {config.refuses_async}")
    if k and lanes % k:
        raise ConfigError(
            f"buffer = {k}: must divide clients_per_round = {lanes}, the arrivals computed together; "
            f"{max(lanes // k, 1) * k} does, or 0 chooses"
        )
    size = k or lanes or 1
    if config.restart == "update" and size > c:
        raise ConfigError(f"buffer = {size}: with restart = 'update' at most in_flight = {c}, who each arrive once")
    if config.restart == "abort" and lanes > size:
        raise ConfigError(
            f"clients_per_round = {lanes}: with restart = 'abort' an update begins all anew, so no more than "
            f"buffer = {size} arrivals are ever computed together; take {size} or 0"
        )
    if config.fair and config.algorithm == "fedasync":
        raise ConfigError("fair: not for fedasync: a factor above 1 on its models would overshoot them; leave it out")
    for factor, nothing in (("staleness", "constant"), ("fair", False)):
        if config.refuses_loss and getattr(config, factor) != nothing:
            why = f"{config.refuses_loss}, so every message counts as it was sent"
            raise ConfigError(
                f"{factor} = {getattr(config, factor)!r}: not for {config.algorithm}: {why}; leave it out"
            )
    if config.fair and config.restart == "abort":
        raise ConfigError(
            "fair: not with restart = 'abort', whose clients also begin what never arrives; take harmonic"
        )
    if config.harmonic and config.restart != "abort":
        raise ConfigError(f"harmonic = {config.harmonic}: only with restart = 'abort'; set that, or 0")
    if config.harmonic and (c < n or size < n):
        raise ConfigError(
            f"harmonic = {config.harmonic}: every client must arrive, so in_flight = {c} and buffer = {size} must be "
            f"at least num_clients = {n}"
        )

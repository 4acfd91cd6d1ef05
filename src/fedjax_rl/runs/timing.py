"""From a configuration to its schedule and the speeds of its clients."""

from collections.abc import Mapping
from dataclasses import replace
from typing import Any

import jax
import numpy as np

from fedjax_rl.config import Config, ConfigError
from fedjax_rl.federation import plan
from fedjax_rl.federation.clock import Schedule
from fedjax_rl.federation.times import LONGEST, Pace
from fedjax_rl.host.numerics import pinned, root_key


def pace_of(of: Mapping[str, Any]) -> Pace:
    """How fast the clients of a configuration's values are."""
    names = ("speed", "speed_ratio", "delay_noise", "up_bandwidth", "down_bandwidth", "link_time")
    return Pace(*[of[name] for name in names])


def schedule_of(config: Config) -> Schedule:
    """Who starts when, of an asynchronous configuration with lanes."""
    in_flight = config.in_flight or config.num_clients
    buffer = config.buffer or config.clients_per_round
    return Schedule(
        num_clients=config.num_clients,
        in_flight=in_flight,
        buffer=buffer,
        updates=config.clients_per_round // buffer,
        restart=config.restart,
        next="idle" if in_flight < config.num_clients else "same",  # where all work, whoever leaves is alone idle
        due="harmonic" if config.harmonic else "count",
        target=config.harmonic,
    )


@pinned()
def with_lanes(config: Config) -> Config:
    """The configuration with the number of arrivals computed together, where it leaves the choice.

    It decides no number but the speed, so that it may follow from other draws of the speeds than the run's.

    Raises:
      ConfigError: a job would take more time than the clock can count.
    """
    if config.schedule == "sync" and not config.has_clock:
        return config
    with jax.ensure_compile_time_eval():  # where it is asked for within a program too
        speeds = np.asarray(pace_of(vars(config)).speeds(root_key(0), config.num_clients), float)
    lanes = max(config.buffer, config.clients_per_round, 1) if config.schedule == "async" else 0
    jobs = 1 + lanes / (config.in_flight or config.num_clients)  # of a client in a round, one after the other
    longest = (1 + config.link_time) * speeds.max() * jobs  # before noise
    if longest > LONGEST:
        raise ConfigError(
            f"speed = {config.speed!r}: a round may last {longest:,.0f} units of time, and the clock counts "
            f"{LONGEST:,} at most; lower speed_ratio or link_time"
        )
    if config.rounds * longest > 2**31:
        full = int(2**31 / longest)
        raise ConfigError(f"rounds = {config.rounds}: the clock is full after about {full:,} rounds; ask for fewer")
    if config.schedule == "sync" or config.clients_per_round:
        return config
    buffer = config.buffer or 1
    one = schedule_of(replace(config, clients_per_round=buffer, buffer=buffer))
    return replace(config, buffer=buffer, clients_per_round=buffer * plan.good_updates(one, speeds))

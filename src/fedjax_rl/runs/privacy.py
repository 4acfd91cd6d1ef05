"""What privacy a configuration has: the noise that its epsilon demands, what it has cost, what may be claimed.

Imports no jax.
"""

import functools
from dataclasses import replace
from typing import Any

import numpy as np

from fedjax_rl.config import ConfigError, trust
from fedjax_rl.config.notices import notices
from fedjax_rl.federation import accountant


def coefficients_of(config: Any) -> np.ndarray | None:
    """Those of banded noise; None for white noise."""
    bands = config.num_clients // config.clients_per_round  # rounds between two of a client, where all take their turns
    return _coefficients(config.rounds, bands) if config.dp_noise_kind == "banded" else None


@functools.cache
def _coefficients(rounds: int, bands: int) -> np.ndarray:
    return accountant.coefficients(rounds, bands)


def noise_factor(config: Any) -> float:
    """What the noise multiplier is multiplied by for the clients that are not simulated."""
    return config.num_clients / config.dp_population if config.dp_population else 1.0


def releases_of(config: Any) -> accountant.Releases:
    """What a run makes public, for the accountant."""
    return accountant.Releases(
        num_clients=config.num_clients,
        clients_per_round=config.clients_per_round,
        rounds=config.rounds,
        selection=config.selection,
        kind=config.dp_noise_kind,
        delta=config.dp_delta,
        population=config.dp_population,
        where=config.dp_where,
    )


@functools.lru_cache(maxsize=256)
def _epsilon(noise: float, releases: accountant.Releases, rounds: int) -> float:
    return accountant.epsilon(noise, releases, rounds)


@functools.lru_cache(maxsize=256)
def _calibrated(epsilon: float, releases: accountant.Releases) -> float:
    return accountant.calibrate(epsilon, releases)


def spent(config: Any, rounds: int) -> dict[str, float]:
    """Of a private run: the epsilon that its first rounds cost."""
    if not trust.is_private(config):
        return {}
    return {"privacy/epsilon": _epsilon(config.dp_noise, releases_of(config), rounds)}


def claim(config: Any, rounds: int) -> str:
    """The statement that a private run may make after so many rounds; "" for another run."""
    if not trust.is_private(config):
        return ""
    return accountant.claim(config.dp_noise, releases_of(config), rounds)


def is_of_one_length(config: Any) -> bool:
    """Is a run's privacy for one number of rounds, known beforehand?"""
    return trust.is_private(config) and (config.dp_epsilon > 0 or config.dp_noise_kind == "banded")


def with_noise(config: Any, begun: Any) -> Any:
    """The configuration with the noise that its epsilon demands; a run that was begun keeps its own.

    Raises:
      ConfigError: dp_epsilon and dp_noise are both given and say different things; or a run that was begun shall have
        more rounds than its privacy was bought for.
    """
    if not trust.is_private(config):
        return config
    if begun is not None and trust.is_private(begun):
        if config.dp_epsilon and not config.dp_noise:
            config = replace(config, dp_noise=begun.dp_noise)
        if config.rounds != begun.rounds and config.dp_noise_kind == "banded":
            raise ConfigError(f"rounds = {config.rounds}: banded noise was made for {begun.rounds}; train anew")
        if config.rounds > begun.rounds and config.dp_epsilon:
            raise ConfigError(
                f"rounds = {config.rounds}: dp_epsilon = {config.dp_epsilon} is spent by round {begun.rounds}; train "
                f"anew with dp_noise = {config.dp_noise:g}, which may go on"
            )
        return config
    if not config.dp_epsilon:
        _epsilon(config.dp_noise, releases_of(config), config.rounds)  # refused here, where it cannot be told
        return config
    noise = _calibrated(config.dp_epsilon, releases_of(config))
    if config.dp_noise and abs(config.dp_noise - noise) > 0.01 * noise:
        costs = _epsilon(config.dp_noise, releases_of(config), config.rounds)
        raise ConfigError(
            f"dp_epsilon = {config.dp_epsilon} and dp_noise = {config.dp_noise}: this noise costs {costs:.3g}; give "
            "one of them"
        )
    return replace(config, dp_noise=config.dp_noise or noise)


def remarks(config: Any) -> list[str]:
    """What a person should know of a run before it begins: of its privacy, and of what goes together badly."""
    lines = notices(config)
    if not trust.is_private(config):
        return lines
    if trust.is_central(config) and config.selection in ("uniform", "stratified", "by_kind"):
        drawn = releases_of(config)._replace(selection="poisson")
        proven, other = (_epsilon(config.dp_noise, of, config.rounds) for of in (releases_of(config), drawn))
        lines.append(
            f"selection = {config.selection!r}: the proven epsilon is {proven:.3g}; 'poisson' would give {other:.3g}"
        )
    noise = f"dp_noise = {config.dp_noise:.6g} at dp_clip = {config.dp_clip:g}"
    return [*lines, f"{noise}: {claim(config, config.rounds)}"]

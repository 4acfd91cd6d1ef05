"""What a film may be asked for, from the command line and from Python alike. Imports no jax."""

from collections.abc import Sequence
from numbers import Integral
from pathlib import Path

from fedjax_rl.config import Config, ConfigError

SUFFIXES = (".gif", ".html")


def refuse(out: Path, adapt_steps: int) -> None:
    """Refuse a file that cannot be a new film, and a film without adaptation.

    Raises:
      ConfigError: the name has another suffix, the file exists, its directory does not, or there is no step.
    """
    if adapt_steps < 1 or not isinstance(adapt_steps, Integral):
        raise ConfigError(f"adapt_steps = {adapt_steps!r}: must be an integer, at least 1")
    if out.suffix not in SUFFIXES:
        raise ConfigError(f"out = {out}: the name must end in {' or '.join(SUFFIXES)}")
    if out.exists():
        raise ConfigError(f"out = {out}: it exists; remove it or choose another name")
    if not out.parent.is_dir():
        raise ConfigError(f"out = {out}: the directory {out.parent} does not exist")


def refuse_clients(clients: Sequence[int], config: Config) -> None:
    """Refuse clients that a run does not have.

    Raises:
      ConfigError: one is unknown, or there is none.
    """
    if not isinstance(clients, Sequence) or not clients:
        raise ConfigError(f"clients = {clients!r}: must be the numbers of one or more clients, such as (0, 1)")
    for number in clients:
        if number not in range(config.num_clients):
            raise ConfigError(f"client {number!r} is unknown: this run has the clients 0 to {config.num_clients - 1}")

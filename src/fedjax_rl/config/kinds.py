"""Unlike clients: how many there are of each kind, and what network and rate a client of a kind has."""

import re
from typing import NamedTuple

from fedjax_rl.host.exits import ConfigError

FORM = "COUNTxWIDTH-WIDTH:tanh or relu[:RATE], such as 100x64-64:tanh:0.001, separated by commas"
_KIND = re.compile(r"([1-9]\d{0,8})x([1-9]\d{0,3}(?:-[1-9]\d{0,3})*):(tanh|relu)(?::([0-9.eE+-]+))?")


class Kind(NamedTuple):
    """count clients whose policy has these hidden layers, and whose local steps have this rate (None: local_lr)."""

    count: int  # type: ignore[assignment]  # hides tuple.count, which nobody needs
    hidden: tuple[int, ...]
    activation: str
    rate: float | None


def parse(text: str) -> tuple[Kind, ...]:
    """The kinds of a text.

    Raises:
      ConfigError: a part has another form; the line says which.

    >>> parse("2x8-8:tanh, 1x16:relu:0.01")[1]
    Kind(count=1, hidden=(16,), activation='relu', rate=0.01)
    """
    return tuple(_parse_one(part.strip()) for part in text.split(",")) if text else ()


def _parse_one(part: str) -> Kind:
    found = _KIND.fullmatch(part)
    try:
        rate = float(found[4]) if found and found[4] else None
    except ValueError:
        found = None
    if not found or max(map(int, found[2].split("-"))) > 4096 or not (rate is None or 0 < rate <= 100):
        raise ConfigError(f"kinds: {part!r} is none; a kind is {FORM}; widths to 4096, rates above 0 and to 100")
    return Kind(int(found[1]), tuple(map(int, found[2].split("-"))), found[3], rate)


def block(kinds: tuple[Kind, ...], num_clients: int, clients_per_round: int) -> tuple[int, ...]:
    """The kinds of clients 0 .. M - 1, M = clients_per_round; client i is of the kind of client i mod M.

    So every M clients in a row have each kind in its share, and those of one kind stand together.

    Raises:
      ConfigError: the counts do not add up, or M clients cannot have the shares of all.
    """
    counts = [kind.count for kind in kinds]
    if sum(counts) != num_clients:
        raise ConfigError(
            f"kinds: their counts add up to {sum(counts)}, but num_clients = {num_clients}; change one of them"
        )
    if num_clients % clients_per_round or any(n * clients_per_round % num_clients for n in counts):
        raise ConfigError(
            f"clients_per_round = {clients_per_round}: must divide num_clients = {num_clients}, and select a whole "
            f"number of clients of each kind (counts {', '.join(map(str, counts))}); {num_clients} always does"
        )
    return tuple(k for k, n in enumerate(counts) for _ in range(n * clients_per_round // num_clients))

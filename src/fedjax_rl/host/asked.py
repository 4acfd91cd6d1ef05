"""Names of other people's environments: PREFIX/NAME?FIELD=LOW:HIGH&horizon=STEPS. No jax, and nothing is imported."""

import math
import re
from typing import NamedTuple

from fedjax_rl.host.exits import ConfigError

PLAIN = re.compile(r"[A-Za-z0-9_.-]+")
# Gymnasium has NAMESPACE/NAME too, and MODULE:NAME, where importing the module registers the name
GYMNASIUM = re.compile(r"([A-Za-z_][\w.]*:)?([A-Za-z0-9_.-]+/)?[A-Za-z0-9_.-]+", re.ASCII)
RANGE = re.compile(r"([A-Za-z_]\w*)=([^:=]+):([^:=]+)", re.ASCII)
HORIZON = re.compile(r"horizon=([1-9][0-9]{0,8})")


class Asked(NamedTuple):
    """What a name asks for: the environment, its horizon in steps (None: its own), and the range of each field."""

    name: str
    horizon: int | None
    ranges: dict[str, tuple[float, float]]


class Prefix(NamedTuple):
    """What stands behind a prefix: the place of (name, horizon=, ranges=) -> Env, its names, and may fields vary?"""

    place: str
    names: re.Pattern = PLAIN
    signs: str = "_, - and ."
    has_fields: bool = True


def asked(name: str, start: str, prefix: Prefix) -> Asked:
    """The parts of a name that begins with `start`.

    Raises:
      ConfigError: it is not written as it has to be; the line begins with the name.

    >>> asked("gymnax/CartPole-v1?length=0.1:0.9", "gymnax/", Prefix(""))
    Asked(name='CartPole-v1', horizon=None, ranges={'length': (0.1, 0.9)})
    """
    own, mark, query = name.removeprefix(start).partition("?")
    if not prefix.names.fullmatch(own):
        raise ConfigError(f"{name!r}: only letters, digits, {prefix.signs} may follow {start}")
    horizon, ranges = None, {}
    for part in query.split("&") if mark else ():
        given, steps = RANGE.fullmatch(part), HORIZON.fullmatch(part)
        if steps and horizon is None:
            horizon = int(steps[1])
        elif given and prefix.has_fields and given[1] not in ranges:
            ranges[given[1]] = _range(name, part, given[2], given[3])
        else:
            fields = "FIELD=LOW:HIGH, once for each field, or " if prefix.has_fields else ""
            raise ConfigError(f"{name!r}: {part!r} is not understood; after ? comes {fields}horizon=STEPS, joined by &")
    return Asked(own, horizon, ranges)


def _range(name: str, part: str, low: str, high: str) -> tuple[float, float]:
    """Both ends of a range."""
    try:
        ends = float(low), float(high)
    except ValueError:
        ends = math.nan, math.nan
    if not -math.inf < ends[0] < ends[1] < math.inf:
        raise ConfigError(f"{name!r}: {part!r} is no range; write FIELD=LOW:HIGH with two numbers, the lower first")
    return ends

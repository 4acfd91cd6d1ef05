"""What a field of a configuration may hold: its rule, how it is declared, and the one line that refuses a value.

Imports neither jax nor mujoco, so that a mistake is answered at once.
"""

import difflib
import math
from collections.abc import Iterable
from dataclasses import field
from typing import Any, NamedTuple

from fedjax_rl.host import registry
from fedjax_rl.host.exits import ConfigError

FLOAT32_TINY = 2.0**-126  # the smallest number that float32 holds in full and processors do not take for 0


class Rule(NamedTuple):
    """The legal values of one field: a closed range (low excluded if `above`), a list of names, or what `plain` says.

    kind: whatever the registry has of this kind, guests too. "" for none.
    """

    low: float = -math.inf
    high: float = math.inf
    above: bool = False
    choices: tuple[str, ...] = ()
    kind: str = ""

    def __str__(self) -> str:
        if self.choices:
            return ", ".join(self.choices)
        return f"more than {self.low:g} and at most {self.high:g}" if self.above else f"{self.low:g} to {self.high:g}"


def number(default: Any, low: float, high: float, *, above: bool = False) -> Any:
    """A numeric field with its legal range."""
    return field(default=default, metadata={"rule": Rule(low, high, above)})


def name(default: str, *choices: str) -> Any:
    """A field that takes one of a few names."""
    return field(default=default, metadata={"rule": Rule(choices=choices)})


def registered(kind: str, default: str) -> Any:
    """A field that takes any name of a kind that the registry knows."""
    return field(default=default, metadata={"rule": Rule(kind=kind)})


def plain(default: bool | str) -> Any:
    """A field that is on or off, or any text."""
    return field(default=default, metadata={"rule": Rule()})


def nearest(word: str, legal: Iterable[str]) -> str:
    """' (did you mean X?)' for the legal name closest to `word`, or '' when none resembles it."""
    close = difflib.get_close_matches(word, list(legal), n=1, cutoff=0.4)
    return f" (did you mean {close[0]}?)" if close else ""


def checked(key: str, value: Any, item: Any) -> Any:
    """The value in its field's type, or a ConfigError that names the field, the value and the legal range."""
    rule, value = item.metadata["rule"], _python(value)
    if rule.kind:
        try:
            registry.refuse_unknown(rule.kind, value)
        except ConfigError as error:
            raise ConfigError(f"{key} = {error}") from None
        return value
    if rule.choices:
        return _checked_name(key, value, rule)
    if isinstance(item.default, (bool, str)):
        if type(value) is type(item.default):
            return value
        raise ConfigError(
            f"{key} = {value!r}: must be {'true or false' if item.default in (True, False) else 'a text'}"
        )
    if isinstance(item.default, tuple):
        try:
            if value or not item.default:
                return tuple(_checked_number(key, _python(part), rule, int) for part in value)
        except (ConfigError, TypeError):
            pass
        raise ConfigError(f"{key} = {value!r}: must be a list of one or more integers, each {rule}")
    return _checked_number(key, value, rule, type(item.default))


def _python(value: Any) -> Any:
    """Numbers and texts of NumPy as Python's own; numpy is not imported for it."""
    return value.tolist() if hasattr(value, "tolist") else value


def _checked_name(key: str, value: Any, rule: Rule) -> str:
    if value in rule.choices:
        return value
    raise ConfigError(f"{key} = {value!r}: must be one of {rule}{nearest(str(value), rule.choices)}")


def _checked_number(key: str, value: Any, rule: Rule, kind: type) -> Any:
    word = "an integer" if kind is int else "a number"
    allowed = (int,) if kind is int else (int, float)
    if isinstance(value, bool) or not isinstance(value, allowed):
        raise ConfigError(f"{key} = {value!r}: must be {word}, {rule}")
    if not (value > rule.low if rule.above else value >= rule.low) or not value <= rule.high:
        raise ConfigError(f"{key} = {value!r}: must be {word}, {rule}; choose a value in that range")
    if kind is float and 0 < abs(value) < FLOAT32_TINY:
        raise ConfigError(f"{key} = {value!r}: is 0 to the arithmetic, which is float32; choose 0 or at least 1.2e-38")
    return kind(value)

"""The options of a guest's algorithm, from the signature of its factory: a configuration class nobody had to write."""

import functools
import inspect
import math
import re
import typing
from collections.abc import Callable
from dataclasses import dataclass
from typing import Annotated, Any, Literal, NamedTuple

from fedjax_rl.config.options import ChangeConfig, Config
from fedjax_rl.config.rules import name, number, plain
from fedjax_rl.host.exits import ConfigError

GIVEN = frozenset("problem client_opt server_opt local_steps inner_lr client_batch".split())  # by the library
KINDS = "bool, int, float, str, Literal[...] or Annotated[number, Range(low, high)]"
MOST = 1e9
# Options of `train` and `sweep` that are no values of a run: a guest's option of the same name could not be typed.
TYPED = frozenset(
    "help log preset config out print_config json quiet seeds grid halvings no_cache coordinator num_processes "
    "process_id join_timeout".split()
)


class Range(NamedTuple):
    """The legal values of a number that is an option of your own algorithm.

    In the factory's signature: `mu: Annotated[float, Range(0, 1)] = 0.1`.

    Attributes:
      low: the smallest legal value.
      high: the largest legal value.
    """

    low: float
    high: float


@functools.cache
def config_of(algorithm: str, factory: Callable) -> type[Config]:
    """The configuration class of a guest's algorithm: the shared options, and one for each keyword argument of its own.

    An option has the name and default of its argument. Its kind is that of the annotation, or of the default where
    there is none. A factory that takes `server_opt` is one whose message is the change of a model.

    Raises:
      ConfigError: an argument has no default, a name that the library uses, or a kind that cannot be typed.
    """
    base: Any = ChangeConfig if "server_opt" in inspect.signature(factory).parameters else Config
    try:
        hints = typing.get_type_hints(factory, include_extras=True)
    except Exception as error:
        raise ConfigError(f"algorithm {algorithm!r}: its annotations cannot be read: {error}") from None
    taken = {*dir(ChangeConfig), *TYPED}  # of all parts of the library, whatever the base
    options = []
    for key, parameter in inspect.signature(factory).parameters.items():
        if key in GIVEN:
            continue
        if key in taken or (parameter.default is True and f"no_{key}" in taken):  # True is turned off by --no-KEY
            raise ConfigError(f"algorithm {algorithm!r}: its option {key} is one of the library's; choose another name")
        options.append(_option(algorithm, key, parameter, hints.get(key)))
    batches = getattr(factory, "batches", 1)

    class Made(base):  # a statement: the help has its texts from the source of classes, of this one and its bases
        pass

    space = {
        "algorithm": algorithm,
        "batches": property(lambda self: batches(self) if callable(batches) else batches),
        "__doc__": (inspect.getdoc(factory) or algorithm).split("\n")[0],
        "__annotations__": {key: kind for key, kind, _ in options},
        **{key: default for key, _, default in options},
    }
    for key, value in space.items():
        setattr(Made, key, value)
    made: Any = dataclass(frozen=True, kw_only=True)(Made)
    title, shown = "".join(part.title() for part in re.split("[:._]", algorithm)) + "Config", made.__repr__
    made.__name__ = title
    made.__repr__ = lambda self: title + shown(self).removeprefix(made.__qualname__)
    return made


def _option(algorithm: str, key: str, parameter: inspect.Parameter, hint: Any) -> tuple[str, type, Any]:
    """One option as a field: (name, type, field)."""
    default, where = parameter.default, f"algorithm {algorithm!r}: its option {key}"
    if default is inspect.Parameter.empty:
        raise ConfigError(f"{where} has no default; give it one")
    low, high = -MOST, MOST
    if typing.get_origin(hint) is Annotated:
        hint, *notes = typing.get_args(hint)
        low, high = next(((note.low, note.high) for note in notes if isinstance(note, Range)), (low, high))
    kind = type(default) if hint is None else hint
    if typing.get_origin(kind) is Literal:
        choices = typing.get_args(kind)
        if not all(isinstance(choice, str) for choice in choices):
            raise ConfigError(f"{where} has the choices {choices}; they must be strings")
        made, is_legal = (str, name(default, *choices)), default in choices
    elif kind in (bool, str):
        made, is_legal = (kind, plain(default)), type(default) is kind
    elif kind in (int, float):
        is_legal = isinstance(default, (int, kind)) and not isinstance(default, bool)
        made = kind, number(kind(default) if is_legal else default, low, high)
    else:
        raise ConfigError(f"{where} has the type {getattr(kind, '__name__', kind)}; possible are {KINDS}")
    if not is_legal:
        raise ConfigError(f"{where} has the default {default!r}, which is not of its type; give it one that is")
    if kind in (int, float) and not (math.isfinite(default) and low <= default <= high):
        raise ConfigError(f"{where} has the default {default!r}, which is not from {low:g} to {high:g}")
    return (key, *made)

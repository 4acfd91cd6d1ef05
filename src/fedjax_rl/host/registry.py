"""Names and what they stand for: the library's own, those registered in this process, and those of guests. No jax.

A guest's thing is named by its place, `package.module:function`, or by an entry point of an installed distribution
(groups fedjax_rl.algorithms, fedjax_rl.environments, fedjax_rl.aggregators, fedjax_rl.policies). Entry points are read
only where a name is unknown, and by `fedjax-rl list`.
"""

import difflib
import functools
import importlib
import os
import re
import sys
import traceback
from collections.abc import Callable
from importlib.metadata import EntryPoint, entry_points
from typing import Any, TypeVar

from fedjax_rl.host.asked import GYMNASIUM, Prefix, asked
from fedjax_rl.host.exits import ConfigError, Refusal

Factory = TypeVar("Factory", bound=Callable[..., Any])
PLACE = re.compile(r"[A-Za-z_][\w.]*:[A-Za-z_][\w.]*")
# The only lists to touch when one of ours is added.
OWN: dict[str, dict[str, str]] = {
    "algorithm": {
        name: f"fedjax_rl.algorithms.{name}:{name}"
        for name in (
            "fmrl fedavg fedprox scaffold per_fedavg pfedme fedrep ditto reptile meta_sgd independent fedhpd dpa_fedrl "
            "afedpg nigt fedasync lapg npg npg_admm fedpg_br fedstrategy "
            "dqn_avg q_avg"
        ).split()
    },
    "environment": {
        **{
            f"{robot}/{family}": f"fedjax_rl.envs.{robot}:{family}"
            for robot in ("half_cheetah", "ant")
            for family in ("direction", "velocity", "dynamics")
        },
        "half_cheetah/run": "fedjax_rl.envs.half_cheetah:run",
        **{
            f"{robot}/run{version}": f"fedjax_rl.envs.gym_robots:{robot}{version}"
            for robot, version in (("hopper", ""), ("hopper", "_v4"), ("walker2d", ""), ("walker2d", "_v4"))
        },
        "swimmer/run": "fedjax_rl.envs.gym_robots:swimmer",
        "navigation": "fedjax_rl.envs.navigation:navigation",
        "finite/random": "fedjax_rl.envs.finite:random",
        **{f"probe/{name}": f"fedjax_rl.envs.probes:{name}" for name in ("constant", "target", "delayed", "ending")},
    },
    "aggregator": {
        "mean": "fedjax_rl.federation.aggregators:mean",
        **{
            name: f"fedjax_rl.federation.robust:{name.replace('+', '_')}"
            for name in (
                "median trimmed geomed krum multi_krum bulyan centered_clip norm_clip meamed nnm+trimmed nnm+median "
                "nnm+geomed bucket+geomed fedpg_br"
            ).split()
        },
    },
    "policy": {name: f"fedjax_rl.rl.policies:{name}" for name in ("mlp", "gaussian_mlp", "categorical_mlp", "table")},
}
GROUPS = {kind: f"fedjax_rl.{kind}s" for kind in OWN} | {"policy": "fedjax_rl.policies"}
# Other people's libraries, of which any name may follow.
PREFIX: dict[str, dict[str, Prefix]] = {
    "environment": {
        "brax/": Prefix("fedjax_rl.envs.brax:brax", has_fields=False),
        "gymnax/": Prefix("fedjax_rl.envs.gymnax:gymnax"),
        "gym/": Prefix("fedjax_rl.envs.gym:gym", GYMNASIUM, "_, -, ., / and :"),
        "envpool/": Prefix("fedjax_rl.envs.envpool:envpool", has_fields=False),
    },
}
_REGISTERED: dict[str, dict[str, Callable]] = {kind: {} for kind in OWN}
_OF_RUNS: set[tuple[str, str]] = set()


def names(kind: str) -> tuple[str, ...]:
    """The library's own names of a kind, and those registered in this process."""
    return (*OWN[kind], *_REGISTERED[kind])


def register(kind: str, factory: Factory, name: str | None = None) -> Factory:
    """Give a factory a name in this process; the name of the function by default.

    Raises:
      ConfigError: another factory has it, or no program could open a run of it by that name (see `recall`).
    """
    name = str(name or getattr(factory, "__name__", type(factory).__name__))
    if not name.isidentifier():
        raise ConfigError(f"{kind} {name!r}: a name is of letters, digits and _, such as {_identifier(name)!r}")
    other = _REGISTERED[kind].get(name)
    if name in OWN[kind] or (other is not None and _place(other) != _place(factory)):
        raise ConfigError(f"{kind} {name!r} exists already; choose another name")
    _REGISTERED[kind][name] = factory
    return factory


def recall(kind: str, name: Any) -> None:
    """A run has this name: it is legal, though the program that registered it may be another one."""
    if isinstance(name, str) and name.isidentifier():
        _OF_RUNS.add((kind, name))


def refuse_unknown(kind: str, name: Any) -> None:
    """A ConfigError for what no name of the kind is; nothing is imported, so a guest's may still not be there."""
    if isinstance(name, str) and (start := prefix(kind, name)):
        asked(name, start, PREFIX[kind][start])
    elif not isinstance(name, str) or not (
        name in names(kind) or PLACE.fullmatch(name) or (kind, name) in _OF_RUNS or name in guests(kind)
    ):
        known = [*names(kind), *guests(kind)]
        close = difflib.get_close_matches(str(name), known, n=1, cutoff=0.4)
        hint = f" (did you mean {close[0]}?)" if close else ""
        known += [f"{start}NAME" for start in PREFIX.get(kind, ())]
        raise ConfigError(f"{name!r}: must be one of {', '.join(known)}, or module:name{hint}")


def find(kind: str, name: str) -> Callable:
    """The factory behind a name; what the name asks for besides is bound to it.

    Raises:
      ConfigError: there is none, or it cannot be imported; the line names the distribution or the module.
    """
    if name in _REGISTERED[kind]:
        return _REGISTERED[kind][name]
    if name in OWN[kind]:
        return _at(OWN[kind][name])
    if start := prefix(kind, name):
        behind = PREFIX[kind][start]
        own, horizon, ranges = asked(name, start, behind)
        fields = {"ranges": ranges} if behind.has_fields else {}
        _look_here()  # a name may say which module to import
        return functools.partial(_at(behind.place), own, horizon=horizon, **fields)
    if PLACE.fullmatch(name):
        return _load(name, f"{kind} {name!r}")
    if name not in guests(kind):
        try:
            refuse_unknown(kind, name)
        except ConfigError as error:
            raise ConfigError(f"{kind} {error}") from None
    if name not in guests(kind):
        raise ConfigError(
            f"{kind} {name!r} was registered by the program that began the run: go on from there, or register it first"
        )
    entry = guests(kind)[name]
    return _load(entry.value, f"{kind} {name!r} of the distribution {_distribution(entry)}")


def make(kind: str, name: str, wanted: type, factory: Callable[..., Any], *args: Any, **given: Any) -> Any:
    """What the factory behind a name makes.

    Raises:
      ConfigError: a guest's factory raises, or gives something else than is wanted; the line names it and says what.
    """
    try:
        made = factory(*args, **given)
    except Refusal:
        raise
    except (Exception, SystemExit) as error:
        if not is_guest(kind, name):
            raise
        raise ConfigError(f"{kind} {name!r} cannot be made: {reason(error, factory)}") from error
    if is_guest(kind, name) and not isinstance(made, wanted):
        shown = "None" if made is None else f"a value of type {type(made).__name__}"
        article = "an" if wanted.__name__[0] in "AE" else "a"
        raise ConfigError(f"{kind} {name!r} gives {shown}; it must give {article} {wanted.__name__}")
    return made


def reason(error: BaseException, function: Any = None) -> str:
    """An error in one line; where it was raised in the package of a guest's function, if it was raised there."""
    line = f"{type(error).__name__}: {(str(error).strip().splitlines() or ['?'])[0]}"
    home = _package(getattr(function, "__module__", None))
    frames = [] if home in ("", _package(__name__)) else [*traceback.walk_tb(error.__traceback__)]
    for frame, number in reversed(frames):
        if _package(frame.f_globals.get("__name__")) == home:
            return f"{line} ({os.path.basename(frame.f_code.co_filename)}, line {number})"
    return line


def _package(module: str | None) -> str:
    return (module or "").partition(".")[0]


def is_guest(kind: str, name: str) -> bool:
    """Is it none of the library's own?"""
    return name not in OWN[kind] and not prefix(kind, name)


def prefix(kind: str, name: str) -> str:
    """The prefix of another library that a name has, or ""."""
    return next((start for start in PREFIX.get(kind, ()) if name.startswith(start)), "")


@functools.cache
def guests(kind: str) -> dict[str, EntryPoint]:
    """The entry points of installed distributions by name.

    Raises:
      ConfigError: two distributions have one name.
    """
    found: dict[str, EntryPoint] = {}
    for entry in entry_points(group=GROUPS[kind]):
        other = found.setdefault(entry.name, entry)
        if other.value != entry.value:
            both = f"{_distribution(other)} and {_distribution(entry)}"
            raise ConfigError(f"{kind} {entry.name!r}: {both} both have it; uninstall one, or name it by module:name")
    return found


def _distribution(entry: EntryPoint) -> str:
    return entry.dist.name if entry.dist else "?"


def _load(place: str, what: str) -> Callable:
    """The function at module:name."""
    _look_here()
    try:
        found = _at(place)
    except (Exception, SystemExit) as error:  # a guest's module raises what it likes
        raise ConfigError(f"{what} cannot be imported: {reason(error)}") from error
    if not callable(found):
        raise ConfigError(f"{what} is not a function but a {type(found).__name__}")
    return found


def _look_here() -> None:
    """A module of the directory where the command was given is found too."""
    if not {os.getcwd(), ""} & set(sys.path):
        sys.path.append(os.getcwd())


def _at(place: str) -> Any:
    module, _, attribute = place.partition(":")
    return functools.reduce(getattr, attribute.split("."), importlib.import_module(module))


def _place(factory: Callable) -> tuple[str, str]:
    return factory.__module__, getattr(factory, "__qualname__", type(factory).__qualname__)


def _identifier(name: str) -> str:
    """A legal name that is like a name."""
    legal = re.sub(r"\W+", "_", name).strip("_")
    return legal if legal.isidentifier() else f"my_{legal}"

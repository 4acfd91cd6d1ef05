"""What the functions of a guest's algorithm, aggregator and policy must give; a fault is one line that names them."""

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import jax
import jax.numpy as jnp

from fedjax_rl.config import Config, ConfigError
from fedjax_rl.host import registry
from fedjax_rl.host.exits import Refusal
from fedjax_rl.types import Server, Tree, Upload

KINDS = ("algorithm", "aggregator", "policy")


def guests(config: Config) -> list[str]:
    """Those of a configuration's algorithm, aggregator and policy that are none of the library's own, in words."""
    named = {kind: getattr(config, kind) for kind in KINDS}
    return [f"{kind} {name!r}" for kind, name in named.items() if registry.is_guest(kind, name)]


@contextmanager
def named(config: Config) -> Iterator[None]:
    """What is raised by the library's functions, given what a guest's give, is one line that names the guests."""
    try:
        yield
    except Refusal:
        raise
    except (Exception, SystemExit) as error:
        if not (found := guests(config)):
            raise
        found += [f"environment {config.env!r}"] * registry.is_guest("environment", config.env)
        raise ConfigError(f"a round with {' and '.join(found)} fails: {registry.reason(error)}") from error


def made(kind: str, name: str, wanted: type, factory: Callable[..., Any], *args: Any, **given: Any) -> Any:
    """What the factory behind a name makes; each function of a guest's is watched wherever it is traced.

    Raises:
      ConfigError: as for `registry.make`. A function of a guest's raises it where it fails or gives what it must not.
    """
    made = registry.make(kind, name, wanted, factory, *args, **given)
    if not registry.is_guest(kind, name):
        return made

    def watched(field: str, function: Callable[..., Any]) -> Callable[..., Any]:
        def call(*args: Any, **given: Any) -> Any:
            try:
                found = function(*args, **given)
                fault = _fault(kind, field, found, args)
            except (Refusal, FloatingPointError):  # the latter is what `replay` looks for
                raise
            except (Exception, SystemExit) as error:
                reason = registry.reason(error, factory)
                raise ConfigError(f"{kind} {name!r}: {field} fails: {reason}") from error
            if fault:
                raise ConfigError(f"{kind} {name!r}: {field} gives {fault}")
            return found

        return call

    made = made._replace(**{key: watched(key, part) for key, part in made._asdict().items() if callable(part)})
    if getattr(made, "exchanges", None) is not None:
        made = made._replace(exchanges=(made.exchanges[0], watched("exchanges", made.exchanges[1])))
    return made


def _fault(kind: str, field: str, found: Any, args: tuple) -> str:
    """What is wrong with what a function gives; "" for nothing."""
    match kind, field:
        case "algorithm", "init":
            return "" if isinstance(found, Server) else f"a {type(found).__name__}; it must be a Server"
        case "algorithm", ("client_update" | "exchanges"):
            return _sent_fault(found, args[1], ("Upload", "client", "metrics")[: 3 if field == "client_update" else 2])
        case "algorithm", ("server_update" | "idle"):
            return _unlike("a server", found, args[0])
        case "algorithm", "adapt":
            return _unlike("parameters", found, args[2])
        case "aggregator", "update":
            if not (isinstance(found, tuple) and len(found) == 2):
                return f"a {type(found).__name__}; it must be (message, state)"
            row = jax.tree.map(lambda x: jax.ShapeDtypeStruct(x.shape[1:], x.dtype), args[0])
            return _unlike("a message", found[0], row, of_type=False) or _unlike("a state", found[1], args[2])
    return ""


def _sent_fault(found: Any, client: Tree, wanted: tuple[str, ...]) -> str:
    """What is wrong with what one client sends, keeps and shows."""
    parts = found if type(found) is tuple else (found,)
    metrics = parts[2] if len(parts) == 3 else {}
    if len(parts) != len(wanted) or not isinstance(parts[0], Upload) or not isinstance(metrics, dict):
        return f"({', '.join(type(part).__name__ for part in parts)}); it must be ({', '.join(wanted)})"
    numbers = {"a weight": found[0].weight} | {f"the metric {key!r}": metrics[key] for key in metrics}
    for what, number in numbers.items():
        if jnp.shape(number):
            return f"{what} of shape {list(jnp.shape(number))}; it must be []"
    return _unlike("a client", found[1], client)


def _unlike(what: str, found: Tree, wanted: Tree, *, of_type: bool = True) -> str:
    """The first leaf in which a tree is not of another's form; "" where there is none."""
    here, there = _leaves(found, of_type), _leaves(wanted, of_type)
    for path in (*there, *here):
        if here.get(path) != there.get(path):
            return f"{what} with {here.get(path, 'nothing')} at {path}; it must be {there.get(path, 'nothing')}"
    forms: list[Any] = [jax.tree.structure(found), jax.tree.structure(wanted)]
    return "" if forms[0] == forms[1] else f"{what} in other containers than it was given"


def _leaves(tree: Tree, of_type: bool) -> dict[str, str]:
    """The shapes of a tree's leaves by path."""
    leaves = [(jax.tree_util.keystr(path), jax.typeof(x)) for path, x in jax.tree.leaves_with_path(tree)]
    return {path or "its root": f"{x.dtype if of_type else ''}{list(x.shape)}" for path, x in leaves}

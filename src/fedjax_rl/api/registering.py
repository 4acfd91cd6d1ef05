"""Names in this process for environments, algorithms, aggregators and policies of one's own. Imports no jax."""

from collections.abc import Callable
from functools import partial
from typing import Any, overload

from fedjax_rl.config import Config
from fedjax_rl.host import registry
from fedjax_rl.host.registry import Factory

Batches = int | Callable[[Config], int]


def register_environment(factory: Factory, name: str | None = None) -> Factory:
    """Make a function () -> Env an environment of this process, under its own name or another. Also a decorator.

    A function that takes `backend` or `observation` is given them. Another process, `resume` say, does not know the
    name: name it there by module:name, or by an entry point.

    >>> from fedjax_rl.envs.navigation import navigation
    >>> _ = register_environment(navigation, "stroll")
    >>> make_env("stroll").spec.horizon
    100
    """
    return registry.register("environment", factory, name)


@overload
def register_algorithm(factory: Factory, name: str | None = None, *, batches: Batches = 1) -> Factory: ...


@overload
def register_algorithm(
    factory: None = None, name: str | None = None, *, batches: Batches = 1
) -> Callable[[Factory], Factory]: ...


def register_algorithm(
    factory: Callable[..., Any] | None = None, name: str | None = None, *, batches: Batches = 1
) -> Callable[..., Any]:
    """Make a function (problem, *, client_opt, ...) -> Algorithm an algorithm of this process. Also a decorator.

    Its other keyword arguments become options, of their annotations' kinds or their defaults'.

    Args:
      factory: takes, of problem, client_opt, server_opt, local_steps, inner_lr and client_batch, what it wants.
      name: the function's by default.
      batches: that a selected client samples in a round; or a function of the configuration. For counting steps.
    """
    if factory is None:
        return partial(register_algorithm, name=name, batches=batches)
    factory.batches = batches  # type: ignore[attr-defined]
    return registry.register("algorithm", factory, name)


def register_aggregator(factory: Factory, name: str | None = None) -> Factory:
    """Make a function () -> Aggregator a value of the option `aggregator`. Also a decorator."""
    return registry.register("aggregator", factory, name)


def register_policy(factory: Factory, name: str | None = None) -> Factory:
    """Make a function (spec, *, hidden, activation) -> Policy a value of the option `policy`. Also a decorator."""
    return registry.register("policy", factory, name)

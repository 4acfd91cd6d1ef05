"""Names in this process for environments, algorithms, aggregators and policies of one's own. Imports no jax."""

from collections.abc import Callable
from functools import partial, wraps
from typing import Any, overload

from fedjax_rl.config import Config
from fedjax_rl.host import registry
from fedjax_rl.host.registry import Factory

Batches = int | Callable[[Config], int]


def register_environment(factory: Factory, name: str | None = None) -> Factory:
    """Give an environment a name in this process. Also a decorator.

    Another process, such as a later `resume`, does not know the name. Where that matters, name the environment by
    module:name or by an entry point.

    Args:
      factory: () -> Env. If it takes `backend` or `observation`, it is given those options.
      name: the function's own by default.

    Returns:
      The factory.

    Raises:
      ConfigError: something else has the name.

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
    """Give an algorithm a name in this process. Also a decorator, with or without arguments.

    The factory's other keyword arguments become options: `train` takes them by name, and `--help` shows them. Each has
    the kind of its annotation, or of its default. `Range` bounds a number.

    Args:
      factory: (problem, *, ...) -> Algorithm. Of client_opt, server_opt, local_steps, inner_lr and client_batch it
        takes what it wants.
      name: the function's own by default.
      batches: how many batches a selected client samples in a round, for the count of environment steps. Or a function
        of the configuration.

    Returns:
      The factory; a decorator where none is given.

    Raises:
      ConfigError: something else has the name.

    >>> @register_algorithm(batches=1)
    ... def slow(problem, *, client_opt, server_opt, local_steps, inner_lr, factor=0.5):
    ...     change = parts.local_change(jax.grad(problem.loss), client_opt, local_steps, None)
    ...     def client_update(shared, client, task, key):
    ...         batch, before = problem.sample(shared, task, key)
    ...         less = jax.tree.map(lambda x: factor * x, change(shared, batch))
    ...         return Upload(less, jnp.ones(())), client, parts.measured(before)
    ...     return parts.one_model(problem, client_update, server_opt, inner_lr, None)
    >>> slow.batches
    1
    """
    if factory is None:
        return partial(register_algorithm, name=name, batches=batches)

    @wraps(factory)
    def counted(*args: Any, **kwargs: Any) -> Any:  # the factory itself may have other names, with other batches
        return factory(*args, **kwargs)

    counted.batches = batches  # type: ignore[attr-defined]
    return registry.register("algorithm", counted, name)


def register_aggregator(factory: Factory, name: str | None = None) -> Factory:
    """Give an aggregator a name in this process, for the option `aggregator`. Also a decorator.

    Args:
      factory: (*, ...) -> Aggregator. Of the options byzantine, clip_radius, filter_sigma and episodes it takes what it
        wants.
      name: the function's own by default.

    Returns:
      The factory.

    Raises:
      ConfigError: something else has the name.

    >>> import jax, jax.numpy as jnp
    >>> @register_aggregator
    ... def middle():
    ...     def update(messages, weights, state, key):  # who was not heard has weight 0, and zeros for a message
    ...         heard = lambda m: jnp.where((weights > 0).reshape(-1, *[1] * (m.ndim - 1)), m, jnp.nan)
    ...         return jax.tree.map(lambda m: jnp.nanmedian(heard(m), axis=0), messages), state
    ...     return Aggregator(lambda message: (), update)
    >>> middle().update(jnp.array([4.0, 5.0, 9.0, 0.0]), jnp.array([1.0, 1.0, 1.0, 0.0]), (), None)[0].item()
    5.0
    """
    return registry.register("aggregator", factory, name)


def register_policy(factory: Factory, name: str | None = None) -> Factory:
    """Give a policy a name in this process, for the option `policy`. Also a decorator.

    Args:
      factory: (spec, *, ...) -> Policy. Of the options hidden, activation, init and std it takes what it wants.
      name: the function's own by default.

    Returns:
      The factory.

    Raises:
      ConfigError: something else has the name.

    >>> import jax.numpy as jnp
    >>> @register_policy
    ... def linear(spec):
    ...     init = lambda key: {"w": jnp.zeros((spec.observation_size, spec.action_size))}
    ...     return Policy(init, lambda params, obs: (obs @ params["w"], jnp.zeros((len(obs), spec.action_size))))
    >>> policy = linear(make_env("navigation").spec)
    >>> policy.apply(policy.init(None), jnp.ones((3, 2)))[0].shape
    (3, 2)
    """
    return registry.register("policy", factory, name)

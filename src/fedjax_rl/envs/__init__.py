"""Environments: pure functions of one episode, by name. Importing this package imports no simulator."""

import functools
import inspect
from collections.abc import Callable

from fedjax_rl.envs.base import Env, EnvSpec, EnvState
from fedjax_rl.envs.physics import carried, platform, resolve_backend
from fedjax_rl.host import registry

__all__ = ["Env", "EnvSpec", "EnvState", "engine", "make_env", "platform", "resolve_backend"]


def make_env(name: str, *, backend: str = "auto", observation: str = "maml") -> Env:
    """Make the environment of a name.

    Args:
      name: one of `fedjax-rl list`. Or another library's, as gymnax/NAME, gym/NAME, envpool/NAME or brax/NAME, after
        which ?horizon=STEPS may follow and, for the first two, ?FIELD=LOW:HIGH. Or one of your own: a registered name,
        the name of an entry point, or module:name.
      backend: the physics engine: "native" (C MuJoCo on the host, one callback a step), "fused" (C++ made for the
        robot), "mjx" (inside the compiled program) or "auto". Environments in pure JAX take any of them.
      observation: of half-cheetah and ant, "maml" (the columns of the published lineage) or "compact" (without absolute
        positions). The others have one observation each.

    Returns:
      The environment. One of your own is tried first: shapes, types, finite numbers.

    Raises:
      ValueError: there is no such environment, or one of your own is not sound. The line names it and its fault.

    >>> make_env("navigation").spec.horizon
    100
    """
    factory = registry.find("environment", name)
    taken = inspect.signature(factory).parameters
    given = {key: value for key, value in (("backend", backend), ("observation", observation)) if key in taken}
    env = registry.make("environment", name, Env, factory, **given)
    if registry.is_guest("environment", name):
        from fedjax_rl.envs.soundness import refuse_unsound

        refuse_unsound(env, f"environment {name!r}")
    return env


def engine(name: str, backend: str = "auto", *, strict: bool = False) -> str:
    """The physics engine that a name stands for here: "native", "fused" or "mjx".

    Args:
      name: of an environment. One whose factory takes no `backend` is stepped by none of our engines: what was asked
        for is returned. So it is for other libraries' environments.
      backend: as for `make_env`.
      strict: is another engine in place of "fused" a ConfigError?

    >>> engine("navigation")
    'auto'
    """
    is_theirs = registry.prefix("environment", name)
    if is_theirs or "backend" not in inspect.signature(registry.find("environment", name)).parameters:
        return backend
    found = resolve_backend(backend, strict=strict)
    return (
        carried(_mjcf(registry.find("environment", name)), found) if backend == "auto" and found == "fused" else found
    )


@functools.cache
def _mjcf(factory: Callable[..., Env]) -> str:
    """The robot of an environment; "" where there is none, or it cannot be made, which whoever makes it will say."""
    try:
        return factory(backend="native").mjcf
    except (Exception, SystemExit):  # a guest's raises what it likes
        return ""

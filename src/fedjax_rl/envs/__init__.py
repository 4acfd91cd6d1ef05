"""Environments: pure functions of one episode, by name. Importing this package imports no simulator."""

import difflib
from collections.abc import Callable

from fedjax_rl.envs import ant, half_cheetah, navigation, probes
from fedjax_rl.envs.base import Env, EnvSpec, EnvState
from fedjax_rl.envs.physics import platform, resolve_backend

__all__ = ["ENVS", "Env", "EnvSpec", "EnvState", "engine", "make_env", "platform", "resolve_backend"]


def _pure(make: Callable[[], Env]) -> Callable[..., Env]:
    """A factory of an environment that has neither a simulator nor variants of its observation."""
    return lambda *, backend="auto", observation="maml": make()


_BY_MUJOCO: dict[str, Callable[..., Env]] = {
    "half_cheetah/direction": half_cheetah.direction,
    "half_cheetah/velocity": half_cheetah.velocity,
    "half_cheetah/dynamics": half_cheetah.dynamics,
    "ant/direction": ant.direction,
    "ant/velocity": ant.velocity,
    "ant/dynamics": ant.dynamics,
}
ENVS: dict[str, Callable[..., Env]] = {
    **_BY_MUJOCO,
    "navigation": _pure(navigation.navigation),
    "probe/constant": _pure(probes.constant),
    "probe/target": _pure(probes.target),
    "probe/delayed": _pure(probes.delayed),
    "probe/ending": _pure(probes.ending),
}


def make_env(name: str, *, backend: str = "auto", observation: str = "maml") -> Env:
    """The environment of that name.

    Args:
      name: one of ENVS, or brax/NAME for any environment of Brax.
      backend: "auto", "native" (C MuJoCo on the host, one callback a step), "fused" (C++ made for the robot) or "mjx"
        (inside the compiled program). Environments in pure JAX have only the latter kind and take any.
      observation: of half-cheetah and ant, "maml" (the columns of the published lineage) or "compact" (without absolute
        positions). The others have one observation each.

    >>> make_env("navigation").spec.horizon
    100
    """
    if name.startswith("brax/"):
        from fedjax_rl.envs.brax import brax

        return brax(name.removeprefix("brax/"), backend=backend)
    if name not in ENVS:
        nearest = difflib.get_close_matches(name, ENVS, n=1, cutoff=0.0)[0]
        raise ValueError(f"unknown environment {name!r}; the nearest name is {nearest!r}")
    return ENVS[name](backend=backend, observation=observation)


def engine(name: str, backend: str = "auto", *, strict: bool = False) -> str:
    """The physics engine that a name stands for here: "native", "fused" or "mjx".

    Args:
      name: of an environment. One that MuJoCo does not step has no engine of ours: what was asked for is returned.
      backend: as for `make_env`.
      strict: is another engine in place of "fused" a ConfigError?

    >>> engine("navigation")
    'auto'
    """
    return resolve_backend(backend, strict=strict) if name in _BY_MUJOCO else backend

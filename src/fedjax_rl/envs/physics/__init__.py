"""The physics seam: everything that an environment knows of a simulator.

Only `physics.native`, `physics.mjx` and `physics.fused` import MuJoCo. Two arrays cross the seam, qpos and qvel:
observations, rewards and terminations are functions of these alone, so the engines can be swapped (the policy gradient
never differentiates through physics).
"""

import functools
import os
from collections.abc import Callable
from importlib import import_module
from importlib.metadata import entry_points
from typing import NamedTuple

import jax

from fedjax_rl.host.episodes import silence
from fedjax_rl.host.exits import ConfigError
from fedjax_rl.host.output import inform
from fedjax_rl.types import Array, Tree

BACKENDS = ("native", "fused", "mjx")


class PhysicsState(NamedTuple):
    """qpos [nq] and qvel [nv] in float32 (m, rad, m/s, rad/s), and what else the engine carries between steps."""

    qpos: Array
    qvel: Array
    engine: Tree


class Factors(NamedTuple):
    """By what one simulation's mjModel fields of these names are multiplied: a number () or one for each row.

    body_mass and body_inertia [nbody], pair_friction [npair] (of the contacts that the MJCF lists), actuator_gear [nu].
    On both engines the constants that MuJoCo derives from masses follow, as if the MJCF said the product
    (`mj_setConst`): the softness of contacts and limits is relative to the inverse inertia that a body or joint feels.
    """

    body_mass: Array
    body_inertia: Array
    pair_friction: Array
    actuator_gear: Array


def scaled(field: Array, factor: Array) -> Array:
    """A field [n, ...] times a factor () or [n], or both with the same leading axes."""
    return field * factor.reshape(factor.shape + (1,) * (field.ndim - factor.ndim))


class Physics(NamedTuple):
    """init(qpos [nq], qvel [nv]) -> state; step(state, ctrl [nu], factors) -> state after `frame_skip` substeps.

    Not batched. Without factors (the default) a simulation is the model's own; `init` needs none, for a state is
    positions and speeds, whatever the masses.
    """

    init: Callable[[Array, Array], PhysicsState]
    step: Callable[..., PhysicsState]


class Model(NamedTuple):
    """One MJCF text and how it is stepped.

    Attributes:
      xml: the MJCF text.
      frame_skip: physics substeps in one environment step.
      mjx_iterations, mjx_ls_iterations: at most so many Newton iterations, and so many of each line search, on MJX. C
        MuJoCo iterates to its tolerance whatever they are.
    """

    xml: str
    frame_skip: int
    mjx_iterations: int = 8
    mjx_ls_iterations: int = 4


def platform() -> str:
    """The platform on which JAX computes: "cpu", "gpu" or "tpu".

    Raises:
      ConfigError: JAX has no device of the platforms that it was told to use.
    """
    try:
        return jax.default_backend()
    except Exception as error:  # a RuntimeError with the reason, or an AssertionError without a word
        said = str(error).split(" (set JAX_PLATFORMS")[0]
        reason = next(iter(said.splitlines()), "").rstrip(".") or "it has no device here"
        asked = jax.config.jax_platforms  # type: ignore[attr-defined]  # JAX declares only some of its settings
        plugins = [plugin.name for plugin in entry_points(group="jax_plugins")]
        raise ConfigError(
            f"JAX_PLATFORMS={asked}: {reason}; installed for JAX: {', '.join(['cpu', *plugins])}; "
            "set JAX_PLATFORMS=cpu, leave it out, or install what is missing (for NVIDIA: jax[cuda13])"
        ) from None


def resolve_backend(backend: str = "auto", *, strict: bool = False) -> str:
    """The engine behind a name: `auto` is "fused" on CPU hosts and "mjx" on GPUs and TPUs.

    Where the machine cannot make fused programs, it is C MuJoCo ("native") and one line on stderr says why; with
    `strict`, "fused" is a ConfigError there.

    Unless the answer can only be "mjx", switches JAX's asynchronous CPU dispatch off for the process: the callback of
    native physics reads its arguments as NumPy arrays, and with asynchronous dispatch these can wait for the very
    threads that wait for the callback. JAX reads the switch when it first touches a device, so it must come before
    `platform`, and before any other computation of the process.
    """
    if backend not in ("auto", *BACKENDS):
        raise ValueError(f"unknown physics backend {backend!r}; choose one of auto, {', '.join(BACKENDS)}")
    if backend != "mjx":
        jax.config.update("jax_cpu_enable_async_dispatch", False)
    here = platform()
    if backend == "auto" and here != "cpu":
        return "mjx"
    if backend in ("auto", "fused"):
        if not (why := _no_fused()):
            return "fused"
        if backend == "fused" and strict:
            raise ConfigError(f"there is no fused physics here: {why}")
        return _native_instead(why)
    return backend


def carried(xml: str, engine: str) -> str:
    """`engine`, or "native" and a line where it is "fused" and does not carry the robot of an MJCF ("" for none)."""
    if engine != "fused" or not xml:
        return engine
    _load_mujoco()
    from fedjax_rl.envs.physics.fused.refusals import why_not

    return _native_instead(why.split(";")[0]) if (why := why_not(xml)) else engine


def _load_mujoco() -> None:
    """Import MuJoCo, whose own handler of warnings would write MUJOCO_LOG.TXT where the user stands."""
    import_module("mujoco")
    silence()


def _native_instead(why: str) -> str:
    _say_once(f"fedjax-rl: no fused physics: {why}; C MuJoCo (native) instead")
    return "native"


_say_once = functools.cache(inform)


@functools.cache
def _no_fused() -> str:
    """Why, in one line; "" where there is one. FUSED_ON_CUDA tries it on a GPU, where it has not run yet."""
    here = platform()
    if here != "cpu" and not (here == "gpu" and os.environ.get("FUSED_ON_CUDA")):
        return f"it runs on CPUs, not on {here}"
    from fedjax_rl.envs.physics.fused import compiler

    try:
        (compiler.find if here == "cpu" else compiler.find_cuda)()
    except compiler.Unavailable as why:
        return str(why)
    return ""


def make_physics(model: Model, backend: str = "auto") -> Physics:
    """The model on the engine; MuJoCo is imported here, not before, and says and logs no warning from then on.

    On a CPU, `auto` takes fused physics where that carries the robot, and C MuJoCo with one line where it does not.

    Raises:
      ValueError: the engine that was asked for does not carry the robot.
    """
    engine = resolve_backend(backend)
    _load_mujoco()
    if engine == "fused":
        from fedjax_rl.envs.physics.fused.engine import make_fused

        if backend != "auto" or carried(model.xml, engine) == engine:
            return make_fused(model)
        engine = "native"
    if engine == "native":
        from fedjax_rl.envs.physics.native import make_native as make
    else:
        from fedjax_rl.envs.physics.mjx import make_mjx as make
    return make(model)

"""`fedjax-rl doctor`: what this machine has, and whether the physics works."""

import os
import platform
import tempfile
import time

import jax
import jax.numpy as jnp

from fedjax_rl.envs import make_env, resolve_backend
from fedjax_rl.envs.base import idle
from fedjax_rl.envs.physics.fused.compiler import Unavailable, find
from fedjax_rl.host import output
from fedjax_rl.host.cores import cores
from fedjax_rl.host.numerics import pinned, root_key
from fedjax_rl.runs.provenance import versions

ENV = "half_cheetah/direction"
BATCH = 64


@pinned()
def doctor(*, as_json: bool) -> int:
    """Print the findings; exit code 0 when the physics runs and the directory can be written."""
    backend = resolve_backend("auto")  # first: native physics needs a setting that JAX reads with its first device
    found = {
        "python": platform.python_version(),
        **versions(),
        "devices": ", ".join(f"{d.platform} {d.device_kind}" for d in jax.devices()),
        "cores": cores(),
        "backend": backend,
    }
    problems = []
    engines = dict.fromkeys([backend, "native"])
    try:
        found["compiler"] = compiler_of_fused()
        engines["fused"] = None
    except Unavailable as why:
        found["compiler"] = f"none for fused physics: {why}"
    for engine in engines:
        try:
            found[f"env steps/s, {engine}"] = round(physics_speed(engine))
        except Exception as error:  # whatever is wrong with the installation is what is asked for
            problems.append(f"{engine} physics: {type(error).__name__}: {error}".splitlines()[0])
    try:
        with tempfile.TemporaryFile(dir="."):
            found["writable directory"] = os.getcwd()
    except OSError as error:
        problems.append(f"the current directory cannot be written: {error.strerror}")
    if as_json:
        output.result(output.as_json({**found, "problems": problems}))
    else:
        width, lines = max(map(len, found)), []
        for key, value in found.items():
            lines.append(f"{key:<{width}}  {'not installed' if value is None else value}")
        output.result("\n".join([*lines, *([] if problems else ["all is well"])]))
        for problem in problems:
            output.inform(problem)
    return 1 if problems else 0


def compiler_of_fused() -> str:
    """The compiler that makes the programs of fused physics, and the width of its vectors."""
    found = find()
    return f"{' '.join(found.command)}: {found.version.splitlines()[0]}; {found.width} simulations a vector"


def physics_speed(engine: str, seconds: float = 1.0) -> float:
    """Environment steps per second of a batch of half-cheetahs at zero action, compilation left out."""
    env = make_env(ENV, backend=engine)
    tasks = jnp.ones(BATCH)
    keys = jax.random.split(root_key(0), BATCH)
    step = jax.jit(jax.vmap(lambda s, t: env.step(s, idle(env.spec), t)))
    state = jax.block_until_ready(step(jax.jit(jax.vmap(env.reset))(keys, tasks), tasks))
    if not bool(jnp.isfinite(state.obs).all()):
        raise FloatingPointError("the first step is not finite")
    began, done = time.perf_counter(), 0
    while time.perf_counter() - began < seconds:
        state = jax.block_until_ready(step(state, tasks))
        done += BATCH
    return done / (time.perf_counter() - began)
